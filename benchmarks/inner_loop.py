"""Inner steps per second of the batched loop against a plain loop, on one thread.

    python benchmarks/inner_loop.py
    python benchmarks/inner_loop.py --all

The plain loop trains one nn.Module with torch.optim.Adam on data in memory, with minibatches by
index: nothing in it is slower than it has to be. The batched loop, eager and compiled, makes the
same steps for B runs and measures every layer each 10 steps. All contestants are measured in turns
in one process. Times are processor time, so other programs on the machine do not count.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import rich.table
import torch
import tyro

from lr_gym.console import print_whole
from lr_gym.tasks import TASKS, Task, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.tasks.task import splits_of
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams

INTERVAL = 10  # inner steps between two measurements of the layers
# Families of tasks whose models run row by row, so that batching cannot help on a CPU.
ROW_BY_ROW = ("bert", "resnet")


@dataclasses.dataclass(frozen=True)
class Args:
    """Inner steps per second of the batched loop against a plain loop."""

    task: str = "mnist1d-mlp"
    """A name of lr_gym.tasks.TASKS."""
    all: bool = False
    """Measure every task whose data are on this machine instead, each at its own batch size.

    B is 1, 16 and 64, or only 1 for models that run row by row.
    """
    batch_size: int = 32
    """Examples per minibatch."""
    compile: bool = True
    """Whether the compiled loop is measured beside the eager one."""
    runs: tuple[int, ...] = (1, 16, 64)
    """Numbers of runs B of the batched loop."""
    repeats: int = 7
    """Rounds. Each measures every contestant once; the table shows medians over rounds."""


def plain(task: Task, fused: bool) -> Callable[[], float]:
    """A plain loop; each call of the result returns its steps per second of processor time."""
    data = splits_of(task).gradient
    model = plain_model(task, torch.tensor([0]))
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
    """The batched loop; each call of the result returns the steps per second of all runs together.

    Statistics every INTERVAL steps are included.
    """
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

    measure()  # compiles, and fills caches
    if compile:
        print(f"B = {runs}: ready after {time.perf_counter() - start:.0f} s", flush=True)
    return measure


def step_time(task: Task, runs: int, seconds: float) -> float:
    """Median processor seconds of one step of all runs, without statistics.

    Args:
        task: what is trained.
        runs: B of the batched loop; 0 for the plain loop.
        seconds: processor time to measure for.
    """
    data = splits_of(task).gradient
    if runs:
        loop = Executor(task, base="adam")
        state = loop.init(torch.arange(runs))
        ones = torch.ones(runs, loop.layout.num_layers)
        hyper = Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0)
        factor = torch.ones(1, runs)
    else:
        model = plain_model(task, torch.tensor([0]))
        generator = torch.Generator().manual_seed(0)
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
    """Print the ratio of the batched to the plain loop for every task, in processor time."""
    table = rich.table.Table(title="batched over plain loop, inner steps/s, 1 thread")
    for heading in ("task", "batch", "plain steps/s", "B = 1", "B = 16", "B = 64"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, task in TASKS.items():
        if name.startswith("stream-"):
            continue  # see benchmarks/stream_loop.py
        try:
            plain_time = step_time(task, 0, seconds)
        except (ImportError, FileNotFoundError) as error:
            table.add_row(name, str(task.batch_size), str(error).partition(":")[0][:40])
            continue
        counts = (1,) if task.family in ROW_BY_ROW else (1, 16, 64)
        ratios = [f"{plain_time * runs / step_time(task, runs, seconds):.2f}" for runs in counts]
        table.add_row(name, str(task.batch_size), f"{1 / plain_time:.4g}", *ratios)
    print_whole(table)


def main(args: Args) -> None:
    """Measure in rounds and print medians and ratios."""
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
    print_whole(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
