"""Inner steps per second of two workers over one, as threads and as processes.

    python benchmarks/two_cores.py
    python benchmarks/two_cores.py --no-compile

Each worker trains runs of its own in an Executor of its own. A round measures one worker, two
threads and two processes in turn, by the wall clock, and ratios are taken within rounds. The last
rows repeat this with two intra-op threads for each worker; they show why the default is one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import rich.table
import torch
import tyro

from lr_gym.console import print_whole
from lr_gym.tasks import find_task
from lr_gym.training.executor import Executor
from lr_gym.training.inner_loop import InnerState
from lr_gym.types import Hyperparams

INTERVAL = 10


@dataclasses.dataclass(frozen=True)
class Args:
    """Inner steps per second of two workers over one."""

    task: str = "mnist1d-mlp"
    """A name of lr_gym.tasks.TASKS."""
    runs: int = 32
    """Runs of each worker."""
    intervals: int = 12
    """Intervals of 10 steps that each worker makes in a measurement."""
    rounds: int = 9
    """Number of rounds; the table shows medians and quartiles over rounds."""
    compile: bool = True
    """Whether the trainings are compiled."""
    intra_op: tuple[int, ...] = (1, 2)
    """Numbers of intra-op threads of each worker, measured one after the other."""


class Worker:
    """B trainings under way."""

    def __init__(self, args: Args, threads: int) -> None:
        torch.set_num_threads(threads)
        self.loop = Executor(find_task(args.task), compile=args.compile)
        self.state: InnerState = self.loop.init(torch.arange(args.runs))
        ones = torch.ones(args.runs, self.loop.layout.num_layers)
        self.hyper = Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0)
        self.factor = torch.ones(INTERVAL, args.runs)
        self.train(1)

    def train(self, intervals: int) -> None:
        """Train for some intervals, with statistics after each."""
        for _ in range(intervals):
            self.state, _ = self.loop.advance(self.state, self.hyper, self.factor)
            self.loop.stats(self.state, self.hyper)


_own: dict[str, Worker] = {}  # the worker of this process, if it is a process of the pool


def _begin(args: Args, threads: int) -> None:
    _own["worker"] = Worker(args, threads)


def _train(intervals: int) -> None:
    _own["worker"].train(intervals)


def rounds_of(args: Args, threads: int) -> dict[str, list[float]]:
    """Inner steps per second in every round: one worker, two threads, two processes."""
    workers = [Worker(args, threads), Worker(args, threads)]
    context = multiprocessing.get_context("spawn")
    speeds: dict[str, list[float]] = {"one worker": [], "two threads": [], "two processes": []}
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                ProcessPoolExecutor(1, context, initializer=_begin, initargs=(args, threads))
            )
            for _ in range(2)
        ]
        for process in processes:
            process.submit(_train, 1).result()
        for _ in range(args.rounds):
            for name in speeds:
                start = time.perf_counter()
                if name == "one worker":
                    workers[0].train(args.intervals)
                elif name == "two threads":
                    list(pool.map(lambda worker: worker.train(args.intervals), workers))
                else:
                    for future in [process.submit(_train, args.intervals) for process in processes]:
                        future.result()
                share = 1 if name == "one worker" else 2
                steps = share * args.intervals * INTERVAL * args.runs
                speeds[name].append(steps / (time.perf_counter() - start))
    return speeds


def main(args: Args) -> None:
    """Measure in rounds and print medians and ratios."""
    table = rich.table.Table(
        title=f"{args.task}, {args.runs} runs a worker, {os.cpu_count()} cores"
    )
    for heading in ("intra-op threads", "workers", "inner steps/s", "over one worker"):
        table.add_column(heading)
    for threads in args.intra_op:
        speeds = rounds_of(args, threads)
        for name, values in speeds.items():
            ratios = [a / b for a, b in zip(values, speeds["one worker"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            median = f"{statistics.median(values):.0f}"
            table.add_row(str(threads), name, median, f"{middle:.2f} [{low:.2f}, {high:.2f}]")
    print_whole(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
