"""Inner steps per second on streams of data, against the same model on fixed data.

    python benchmarks/stream_loop.py
    python benchmarks/stream_loop.py --task stream-values-16 --rounds 5

A stream makes its minibatches anew at every step, which costs time. So the same model, loss, batch
size and number of runs are also trained on fixed data of the same shapes: some minibatches of the
stream. Both loops are compiled. They are measured in turns, a whole decision of the controller at a
time, in one process. Times are processor time, so other programs on the machine do not count much.
The ratio is the steps per second on the stream over those on fixed data: the median over rounds,
and the interval that holds 95 % of the medians of resampled rounds. The aim is 0.8 or more.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import rich.table
import torch
import tyro

from lr_gym.console import print_whole
from lr_gym.tasks import SUITES, Data, Split, Task, find_task
from lr_gym.tasks.stream import DataStream
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams

AIM = 0.8
RESAMPLES = 2000
FIXED_EXAMPLES = 4096  # of the fixed data, at least


@dataclasses.dataclass(frozen=True)
class Args:
    """Inner steps per second on streams of data, against the same model on fixed data."""

    task: tuple[str, ...] = SUITES["stream-train"]
    """Names of streams."""
    runs: int = 64
    """Number of runs B."""
    interval: int = 80
    """Inner steps between two decisions, as in an environment of 4,000 steps and 50 decisions."""
    rounds: int = 15
    """Rounds. Each measures both loops once."""
    compile: bool = True
    """Whether the loops are compiled."""
    device: str = "cpu"
    """Where the trainings run."""


def fixed(task: Task) -> Task:
    """The task on fixed data: examples of one run of its stream, in every split."""
    stream = task.data()
    assert isinstance(stream, DataStream)
    stream = stream.to("cpu", torch.float32)
    seeds = torch.tensor([0])
    count = -(-FIXED_EXAMPLES // task.batch_size)
    steps = torch.arange(count).unsqueeze(1)
    batch, _ = stream.draw(seeds, stream.start(seeds, torch.float32), steps, task.batch_size)
    split = Split(batch.inputs.flatten(0, 2), batch.targets.flatten(0, 2))
    data = Data(split, split, split, split)
    return dataclasses.replace(task, name=f"{task.name}-fixed", data=lambda: data)


def measurement(task: Task, args: Args) -> Callable[[], float]:
    """A loop; each call of the result makes one interval and returns the steps of a second."""
    loop = Executor(task, base="adamw", device=args.device, compile=args.compile)
    state = loop.init(torch.arange(args.runs))
    ones = torch.ones(args.runs, loop.layout.num_layers, device=args.device)
    hyper = Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0)
    factor = torch.ones(args.interval, args.runs, device=args.device)
    on_host = loop.device.type == "cpu"
    clock = time.process_time if on_host else time.perf_counter

    def measure() -> float:
        nonlocal state
        start = clock()
        state, _ = loop.advance(state, hyper, factor)
        if not on_host:
            torch.cuda.synchronize(loop.device)
        return args.interval * args.runs / (clock() - start)

    for _ in range(2):  # captures, and fills caches
        measure()
    return measure


def median_interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Median, and the 95 % interval of the bootstrap."""
    draw = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[draw], axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def main(args: Args) -> None:
    """Measure every task in rounds and print steps per second and ratios."""
    torch.set_num_threads(1)
    table = rich.table.Table(
        title=f"B = {args.runs}, {args.interval} steps a decision, {args.rounds} rounds, "
        f"{'compiled' if args.compile else 'eager'}, {args.device}"
    )
    for heading in ("task", "batch", "stream, steps/s", "fixed, steps/s", "ratio", "95 %", "aim"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name in args.task:
        task = find_task(name)
        loops = [measurement(task, args), measurement(fixed(task), args)]
        speeds = np.array([[measure() for measure in loops] for _ in range(args.rounds)])
        ratio, low, high = median_interval(speeds[:, 0] / speeds[:, 1])
        table.add_row(
            name,
            str(task.batch_size),
            *(f"{speed:.0f}" for speed in np.median(speeds, axis=0)),
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            "met" if ratio >= AIM else "missed",
        )
        print(f"{name}: {ratio:.2f}")
    print_whole(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
