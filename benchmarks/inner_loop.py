"""Inner steps per second of the batched loop against a plain loop, in one interleaved run of one thread.

    python benchmarks/inner_loop.py
    python benchmarks/inner_loop.py --all

The plain loop trains one nn.Module with torch.optim.Adam on data in memory, minibatches by index: nothing in it
is slower than it has to be. The batched loop, eager and compiled, makes the same steps for B runs and measures every
layer each 10 steps. Times are processor time, in which the turns of other programs do not count.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import rich.console
import rich.table
import torch
import tyro

from lr_gym.tasks import TASKS, Task, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams

INTERVAL = 10
ROW_BY_ROW = ("bert", "resnet")  # families that batching cannot help on a CPU


@dataclasses.dataclass(frozen=True)
class Args:
    """Inner steps per second of the batched loop against a plain loop."""

    task: str = "mnist1d-mlp"
    """A name of lr_gym.tasks.TASKS."""
    all: bool = False
    """A table of every task whose data are there, at its own batch size.

    B = 1, 16, 64, or 1 where no more can help.
    """
    batch_size: int = 32
    """Examples per minibatch."""
    compile: bool = True
    """The compiled loop beside the eager one."""
    runs: tuple[int, ...] = (1, 16, 64)
    """Batch sizes B of the batched loop."""
    repeats: int = 7
    """Rounds; each measures every contestant once, and medians over rounds are reported."""


def plain(task: Task, fused: bool) -> Callable[[], float]:
    """Steps of one module in a plain loop; each call gives steps per second of processor time."""
    data, model = task.data().gradient, plain_model(task, torch.tensor([0]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    generator = torch.Generator().manual_seed(0)

    def measure(steps: int = 100) -> float:
        start = time.process_time()
        for _ in range(steps):
            index = torch.randint(len(data.inputs), (task.batch_size,), generator=generator)
            loss = task.loss(model(data.inputs[index]), data.targets[index]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return steps / (time.process_time() - start)

    return measure


def batched(task: Task, runs: int, compile: bool) -> Callable[[], float]:
    """Steps of all runs together, statistics every INTERVAL steps included."""
    start = time.perf_counter()
    loop = Executor(task, base="adam", compile=compile)
    state = loop.init(torch.arange(runs))
    ones = torch.ones(runs, loop.layout.num_layers)
    hyper = Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0)
    factor = torch.ones(INTERVAL, runs)

    def measure(intervals: int = max(1, 160 // (runs * INTERVAL))) -> float:
        nonlocal state
        start = time.process_time()
        for _ in range(intervals):
            state, _ = loop.advance(state, hyper, factor)
            loop.stats(state, hyper)
        return intervals * INTERVAL * runs / (time.process_time() - start)

    measure()
    if compile:
        print(f"B = {runs}: ready after {time.perf_counter() - start:.0f} s", flush=True)
    return measure


def step_time(task: Task, runs: int, seconds: float) -> float:
    """Processor seconds of one step of all runs, median, `runs` = 0 for the plain loop.

    Statistics not included.
    """
    data, indices = task.data().gradient, torch.arange(runs)
    if runs:
        loop = Executor(task, base="adam")
        state = loop.init(indices)
        ones = torch.ones(runs, loop.layout.num_layers)
        hyper, factor = (
            Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0),
            torch.ones(1, runs),
        )
    else:
        model, generator = plain_model(task, torch.tensor([0])), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    times: list[float] = []
    end = time.process_time() + seconds
    while len(times) < 3 or time.process_time() < end:
        start = time.process_time()
        if runs:
            state, _ = loop.advance(state, hyper, factor)
        else:
            index = torch.randint(len(data.inputs), (task.batch_size,), generator=generator)
            loss = task.loss(model(data.inputs[index]), data.targets[index]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        times.append(time.process_time() - start)
    return statistics.median(times)


def every_task(seconds: float = 0.7) -> None:
    """Batched over plain loop for every task, in processor time.

    Other programs take turns, they are not counted.
    """
    table = rich.table.Table(title="batched over plain loop, inner steps/s, 1 thread")
    for heading in ("task", "batch", "plain steps/s", "B = 1", "B = 16", "B = 64"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, task in TASKS.items():
        try:
            plain_time = step_time(task, 0, seconds)
        except (ImportError, FileNotFoundError) as error:
            table.add_row(name, str(task.batch_size), str(error).partition(":")[0][:40])
            continue
        counts = (1,) if task.family in ROW_BY_ROW else (1, 16, 64)
        ratios = [f"{plain_time * runs / step_time(task, runs, seconds):.2f}" for runs in counts]
        table.add_row(name, str(task.batch_size), f"{1 / plain_time:.4g}", *ratios)
    rich.console.Console(width=120).print(table)


def main(args: Args) -> None:
    """Measure in rounds, print medians and ratios."""
    torch.set_num_threads(1)
    if args.all:
        every_task()
        return
    task = dataclasses.replace(find_task(args.task), batch_size=args.batch_size)
    contestants: dict[str, Callable[[], float]] = {
        "plain loop, Adam": plain(task, fused=False),
        "plain loop, Adam(fused=True)": plain(task, fused=True),
    }
    for runs in args.runs:
        for compile in (False, True) if args.compile else (False,):
            contestants[f"{'compiled' if compile else 'eager'}, B = {runs}"] = batched(
                task, runs, compile
            )
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.repeats):
        for name, measure in contestants.items():
            speeds[name].append(measure())
    reference, fused = (speeds[name] for name in list(contestants)[:2])
    table = rich.table.Table(
        title=f"{task.name}, batch {task.batch_size}, 1 thread, median of {args.repeats} rounds"
    )
    for heading in ("contestant", "inner steps/s", "over plain", "over fused"):
        table.add_column(heading, justify="left" if heading == "contestant" else "right")
    for name, values in speeds.items():
        ratios = [
            statistics.median(v / r for v, r in zip(values, other, strict=True))
            for other in (reference, fused)
        ]
        table.add_row(
            name, f"{statistics.median(values):.0f}", *(f"{ratio:.2f}" for ratio in ratios)
        )
    rich.console.Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
