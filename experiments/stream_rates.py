"""How much could a controller gain on a stream?

Every stream is trained at constant learning rates, and by an oracle that is told when the data
change: its learning rate is `low` a long time after a change, and `low * boost` right after it,

    low * (1 + (boost - 1) / (1 + steps since the change / decay)).

Its three numbers are tuned like the constant rate, on runs of their own. A boost below 1 lowers the
rate after a change. All figures are mean losses of minibatches before they are learned from, above
the floor; the gain of the oracle is that over the best constant rate, in per cent of its loss.

    python -m experiments.stream_rates stream-values-16 stream-mnist1d-labels --runs 32
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.imitation import oracle_factor
from lr_gym.analysis.certificate import FIRST_SEED
from lr_gym.analysis.intervals import paired_difference
from lr_gym.envs.rollout import controlled_env, final_losses
from lr_gym.policies.policy import load_policy
from lr_gym.rng import run_seeds
from lr_gym.tasks import find_task
from lr_gym.tasks.stream import StreamPosition
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams

CONSTANTS = tuple(float(f"{rate:.3g}") for rate in np.geomspace(3e-4, 3e-2, 9))
BOOSTS = (0.2, 0.5, 2.0, 5.0)
DECAYS = (10.0, 50.0, 250.0)
INITIAL_LRS = (3e-4, 3e-2)  # from which policies start
CHUNK = 100  # steps that are drawn at a time
TUNING_SEED = FIRST_SEED + (1 << 20)


class Oracle(NamedTuple):
    """A learning rate as a function of the steps since the last change."""

    low: float
    boost: float = 1.0
    decay: float = 1.0

    def factor(self, since: Tensor) -> Tensor:
        """Factor on `low`, of the shape of `since`."""
        return oracle_factor(self.boost, self.decay, since)


def online_losses(
    executor: Executor, seeds: Sequence[int], steps: int, rates: Oracle
) -> NDArray[np.float64]:
    """Mean loss (runs,) above the floor; infinite where it is not finite."""
    state = executor.init(run_seeds(torch.tensor(seeds), 0))
    ones = torch.ones(len(seeds), executor.layout.num_layers)
    hyper = Hyperparams(ones * rates.low, ones * executor.rule.momentum, ones * 0.0, ones * 0.0)
    stream = executor.stream
    assert stream is not None
    total = torch.zeros(len(seeds))
    for start in range(0, steps, CHUNK):
        count = min(CHUNK, steps - start)
        assert isinstance(state.stream, StreamPosition)
        ahead = state.step + torch.arange(1, count + 1).unsqueeze(1)
        coming = stream.moments(state.run_seed, state.stream, ahead).since
        since = torch.cat((state.stream.since.unsqueeze(0), coming[:-1]))  # of pending minibatches
        state, losses = executor.advance(state, hyper, rates.factor(since))
        assert isinstance(state.stream, StreamPosition)
        total += losses.sum(0) - count * state.stream.floor
    mean = (total / steps).double().numpy()
    return np.where(np.isfinite(mean), mean, np.inf)


def best_of(candidates: Sequence[Oracle], score: Callable[[Oracle], NDArray[np.float64]]) -> Oracle:
    """The candidate of the lowest mean loss."""
    return min(candidates, key=lambda rates: float(np.mean(score(rates))))


def policy_losses(
    path: str, name: str, seeds: Sequence[int], args: argparse.Namespace
) -> NDArray[np.float64]:
    """Mean loss (runs,) above the floor under a policy, from initial rates of all sizes."""
    policy = load_policy(path)
    env = controlled_env(policy.spec, name, len(seeds), INITIAL_LRS)
    return final_losses(env, policy, seeds, "test")


def log_gap(losses: NDArray[np.float64], others: NDArray[np.float64]) -> dict[str, float]:
    """Mean difference of the logarithms with its interval, over runs."""
    gap = paired_difference(np.log(losses).tolist(), np.log(others).tolist())
    return gap._asdict()


def study(name: str, args: argparse.Namespace) -> dict[str, object]:
    """The figures of one stream."""
    task = find_task(name)
    executor = Executor(task, base=args.base, granularity="global", compile=args.compile)
    tuning = [TUNING_SEED + i for i in range(args.tuning_runs)]
    reported = [FIRST_SEED + i for i in range(args.runs)]

    def tried(rates: Oracle) -> NDArray[np.float64]:
        return online_losses(executor, tuning, task.horizon, rates)

    constant = best_of([Oracle(rate) for rate in CONSTANTS], tried)
    lows = [constant.low * 10.0**power for power in (-0.5, -0.25, 0.0, 0.25)]
    grid = [Oracle(*numbers) for numbers in itertools.product(lows, BOOSTS, DECAYS)]
    oracle = best_of([constant, *grid], tried)
    found = {
        rates: online_losses(executor, reported, task.horizon, rates)
        for rates in (*(Oracle(rate) for rate in CONSTANTS), oracle)
    }
    each = np.stack([found[Oracle(rate)] for rate in CONSTANTS])
    policies = {path: policy_losses(path, name, reported, args) for path in args.policy}
    return {
        "task": name,
        "base": args.base,
        "constant": {"lr": constant.low, "loss": float(found[constant].mean())},
        "hindsight": float(each.min(0).mean()),
        "oracle": {**oracle._asdict(), "loss": float(found[oracle].mean())},
        "log_oracle_minus_constant": log_gap(found[oracle], found[constant]),
        "policies": {
            path: {
                "loss": float(losses.mean()),
                "log_minus_constant": log_gap(losses, found[constant]),
            }
            for path, losses in policies.items()
        },
        "rates": dict(zip(map(str, CONSTANTS), each.mean(1).tolist(), strict=True)),
    }


def main(args: argparse.Namespace) -> None:
    """Study streams, print their figures, and write them to a file if one is named."""
    torch.set_num_threads(1)
    rows = []
    for name in args.tasks:
        row = study(name, args)
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How much could a controller gain on a stream?")
    parser.add_argument("tasks", nargs="+", help="names of streams")
    parser.add_argument("--base", default="adamw", help="base optimizer")
    parser.add_argument("--runs", type=int, default=32, help="runs that are reported")
    parser.add_argument("--tuning-runs", type=int, default=16, help="runs that tune")
    parser.add_argument("--compile", action="store_true", help="compile the trainings")
    parser.add_argument(
        "--policy", action="append", default=[], help="policy to compare, many times"
    )
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    main(parser.parse_args())
