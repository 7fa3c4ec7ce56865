"""Seconds that an update of the agent sweep takes: in one process, in processes, and on Ray.

    python -m benchmarks.sweep_engine
    python -m benchmarks.sweep_engine --slots 16 --horizon 500 --rounds 15

Each engine has a learner of its own, and all learners make the same updates, on random tasks. In a
round each learner makes one update, and ratios are taken within rounds. The first update is not
counted, since workers import torch and make data in it. An update is the sweeps, which the workers
share, and the fit of the network to them, which this process makes alone. Without Ray its row is
left out. The script fails where two engines disagree about a figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import statistics
import time

import rich.table
import torch
import tyro

from agents.command_line import parse
from agents.sweep import SweepLearner
from agents.table import sweep_env
from lr_gym.console import print_whole
from lr_gym.engine import open_engine


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds that an update of the agent sweep takes: in one process, in processes, and on Ray."""

    workers: int = 2
    """Local processes, and cores of the Ray cluster that is started here."""
    slots: int = 4
    """Tasks of an update, each of which is swept once."""
    horizon: int = 100
    """Inner steps of a training."""
    rounds: int = 5
    """Number of rounds; the table shows medians and quartiles over rounds."""


def make_learner(args: Args, name: str, workers: int, stack: contextlib.ExitStack) -> SweepLearner:
    """A learner with an engine of its own, which ends with the stack."""
    settings = parse(
        [
            *("--agent", "sweep", "--preset", "generalist", "--output-dir", "unused"),
            *("--slots", str(args.slots), "--horizon", str(args.horizon)),
        ]
    )
    return SweepLearner(
        functools.partial(sweep_env, settings),
        args.slots,
        [],
        settings.sweep,
        seed=0,
        updates=args.rounds + 1,
        engine=stack.enter_context(open_engine(name, workers)),
    )


def main(args: Args) -> None:
    """Measure in rounds and print medians and ratios."""
    torch.set_num_threads(1)
    engines = {"1 process": ("local", 1), f"{args.workers} processes": ("local", args.workers)}
    if importlib.util.find_spec("ray") is not None:
        engines[f"{args.workers} Ray workers"] = ("ray", args.workers)
    with contextlib.ExitStack() as stack:
        learners = {
            label: make_learner(args, name, workers, stack)
            for label, (name, workers) in engines.items()
        }
        for learner in learners.values():
            learner.update()  # warms up
        seconds: dict[str, list[float]] = {label: [] for label in learners}
        for _ in range(args.rounds):
            figures = []
            for label, learner in learners.items():
                start = time.perf_counter()
                figures.append(learner.update())
                seconds[label].append(time.perf_counter() - start)
            if any(found != figures[0] for found in figures):
                raise RuntimeError(f"the engines disagree: {figures}")
    print_table(args, seconds)


def print_table(args: Args, seconds: dict[str, list[float]]) -> None:
    """Print medians, and the speed over one process with its quartiles."""
    table = rich.table.Table(
        title=f"{args.slots} sweeps of {args.horizon} steps, {os.cpu_count()} cores"
    )
    for heading in ("engine", "seconds", "speed over 1 process"):
        table.add_column(heading)
    for label, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds["1 process"], values, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = f"{statistics.median(values):.2f}"
        table.add_row(label, median, f"{middle:.2f} [{low:.2f}, {high:.2f}]")
    print_whole(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
