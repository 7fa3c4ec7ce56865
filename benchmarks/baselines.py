"""Best known baseline of each task.

Adam under the cosine schedule, learning rate tuned on the selection split.

    python benchmarks/baselines.py --tasks mnist1d-mlp digits-cnn

Prints what the `best` column of lr_gym.tasks.TASKS says: mean over seeds of the test split's
metric, or loss.
"""

from __future__ import annotations

import dataclasses
import statistics

import tyro

from lr_gym.benchmark.run import Cell, Contestant, attempt
from lr_gym.engine import local_engine
from lr_gym.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Args:
    """Adam under the cosine schedule, learning rate tuned on the selection split."""

    tasks: tuple[str, ...]
    """Names of lr_gym.tasks.TASKS."""
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Peak learning rates tried."""
    seeds: int = 3
    """Trainings of each."""
    workers: int = 1
    """Processes, of one thread each."""


def main(args: Args) -> None:
    """Train every task at every learning rate, print the best."""
    for task in args.tasks:
        contestants = [Contestant("adam-cosine", lr) for lr in args.lrs]
        cells = [Cell(c, task, seed, test=True) for c in contestants for seed in range(args.seeds)]
        with local_engine(args.workers) as engine:
            outcomes = dict(engine(attempt, cells))
        of = {
            c: [outcome for cell, outcome in outcomes.items() if cell.contestant == c]
            for c in contestants
        }
        best = min(contestants, key=lambda c: statistics.mean(o.selection_loss for o in of[c]))
        metric = next(iter(TASKS[task].metrics), "loss")
        values = [o.test_loss if metric == "loss" else o.metrics[metric] for o in of[best]]
        print(
            f"{task}: {metric} {statistics.mean(values):.3g}, Adam, cosine from lr {best.lr:g}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
