"""The best known baseline of each task: Adam under the cosine schedule with a tuned learning rate.

    python benchmarks/baselines.py --tasks mnist1d-mlp digits-cnn

The learning rate is tuned on the selection split. The script prints what the `best` column of
lr_gym.tasks.TASKS says: the mean over seeds of the task's metric on the test split, or of the loss.
"""

from __future__ import annotations

import dataclasses
import statistics

import tyro

from lr_gym.benchmark.contestants import Baseline
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.run import Cell, attempt
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
    """Trainings of each task at each learning rate."""
    workers: int = 1
    """Processes, of one thread each."""


def train(task: str, args: Args) -> dict[float, list[Outcome]]:
    """Learning rate -> the outcome of each seed."""
    cells = [
        Cell(Baseline("adam-cosine"), lr, task, seed, test=True)
        for lr in args.lrs
        for seed in range(args.seeds)
    ]
    with local_engine(args.workers) as engine:
        outcomes = dict(engine(attempt, cells))
    return {lr: [outcomes[cell] for cell in cells if cell.lr == lr] for lr in args.lrs}


def main(args: Args) -> None:
    """Train every task at every learning rate, print the best."""
    for task in args.tasks:
        found = train(task, args)
        best = min(found, key=lambda lr: statistics.mean(o.selection_loss for o in found[lr]))
        metric = next(iter(TASKS[task].metrics), "loss")
        values = [o.test_loss if metric == "loss" else o.metrics[metric] for o in found[best]]
        print(
            f"{task}: {metric} {statistics.mean(values):.3g}, Adam, cosine from lr {best:g}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
