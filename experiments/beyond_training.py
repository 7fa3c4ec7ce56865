"""A policy on wider networks and longer trainings than those that it has learned from.

The tasks are mnist1d-mlp with another width or another horizon. The policy starts from 1e-3 and is
not tuned, `adam` stays at 1e-3, and WSD has the best rate of `--lrs` by the selection split, one
training of another seed each. The figures are losses on the test split, mean and range over seeds;
`its lr` is the median over layers of the policy's learning rate in the middle of the training.

    python -m experiments.beyond_training --policy builtin:default --widths 100 400 1600
    python -m experiments.beyond_training --policy builtin:default --widths 100 --horizons 30000
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Sequence

from lr_gym.benchmark.contestants import Baseline, Contestant, DeployedPolicy
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.policy_recipe import POLICY_LR
from lr_gym.benchmark.run import Cell, attempt
from lr_gym.engine import process_pool
from lr_gym.tasks import TASKS, Task
from lr_gym.tasks.architectures import mlp


def variant(width: int, horizon: int) -> Task:
    """mnist1d-mlp with another width of the hidden layers and another number of steps."""
    model = functools.partial(mlp, (40, width, width, 10))
    name = f"mnist1d-mlp-{width}-{horizon}"
    return dataclasses.replace(TASKS["mnist1d-mlp"], name=name, model=model, horizon=horizon)


def summary(outcomes: list[Outcome]) -> str:
    """Mean and range of the test losses, as text."""
    losses = [outcome.test_loss for outcome in outcomes]
    return f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="builtin:default")
    parser.add_argument("--widths", type=int, nargs="+", default=[100, 400, 1600])
    parser.add_argument("--horizons", type=int, nargs="+", default=[500])
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(
        "| width | steps | policy | its lr | adam 1e-3 | wsd | tuned lr "
        "|\n|---|---|---|---|---|---|---|"
    )
    policy = (DeployedPolicy(args.policy), POLICY_LR)
    adam = (Baseline("adam"), 1e-3)
    with process_pool(args.workers) as pool:

        def train(
            task: Task, who: Sequence[tuple[Contestant, float]], seeds: range
        ) -> dict[tuple[Contestant, float], list[Outcome]]:
            """Outcomes of each (contestant, learning rate), one for each seed."""
            groups = {
                (contestant, lr): [
                    # a task that is no row of TASKS stands for itself
                    Cell(contestant, lr, task, seed, test=True)  # type: ignore[arg-type]
                    for seed in seeds
                ]
                for contestant, lr in who
            }
            cells = [cell for group in groups.values() for cell in group]
            outcomes = iter(list(pool.map(attempt, cells)))
            return {key: [next(outcomes) for _ in group] for key, group in groups.items()}

        for width, horizon in itertools.product(args.widths, args.horizons):
            task = variant(width, horizon)
            wsd = Baseline("adam-wsd")
            tried = train(task, [(wsd, lr) for lr in args.lrs], range(-1, 0))
            best = min(tried, key=lambda key: tried[key][0].selection_loss)
            found = train(task, [policy, adam, best], range(args.seeds))
            half = [
                statistics.median(outcome.lr[len(outcome.lr) // 2]) for outcome in found[policy]
            ]
            row = [width, horizon, summary(found[policy]), f"{statistics.median(half):.2g}"]
            row += [summary(found[adam]), summary(found[best]), f"{best[1]:g}"]
            print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
