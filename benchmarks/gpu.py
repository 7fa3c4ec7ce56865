"""Inner steps per second on a GPU.

Eager, compiled, captured as one graph, beside what its memory allows at best.

    PYTHONPATH=. python benchmarks/gpu.py
    PYTHONPATH=. python benchmarks/gpu.py --task mnist1d-gru --runs 64 1024

Adam, statistics every 10 steps, contestants in turns, median and quartiles over rounds. The floor
is the traffic that no implementation avoids: gradient, moments and parameters read and written once
a step, at the bandwidth of a copy of 1 GiB that is measured beside. Activations are not counted;
where all of it fits the cache, more than 1 can be reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable

import rich.console
import rich.table
import torch

from lr_gym.tasks import TASKS, Task
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams

INTERVAL = 10
TOUCHED = 8  # gradient written and read, parameters and both moments read and written


def seconds(function: Callable[[], object]) -> float:
    """Of a call, until the device is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def contestant(task: Task, runs: int, compile: bool, capture: bool) -> Callable[[], float]:
    """A call gives inner steps per second of all runs."""
    loop = Executor(task, base="adam", device="cuda", compile=compile)
    if not capture:
        loop._graph = None
    state = loop.init(torch.arange(runs))
    ones = torch.ones(runs, loop.layout.num_layers, device="cuda")
    hyper, factor = (
        Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0),
        ones.new_ones(INTERVAL, runs),
    )

    def interval() -> None:
        nonlocal state
        state, _ = loop.advance(state, hyper, factor)
        loop.stats(state, hyper)

    for _ in range(3):  # compiles, captures
        interval()
    return lambda: INTERVAL * runs / seconds(interval)


def bandwidth() -> float:
    """Bytes per second of a copy, read and written."""
    source, target = (torch.empty(2**28, dtype=torch.float32, device="cuda") for _ in range(2))
    target.copy_(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(9))


def shown(values: list[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mnist1d-mlp")
    parser.add_argument("--runs", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "error: this needs a CUDA device; benchmarks/inner_loop.py measures on a CPU"
        )
    task = dataclasses.replace(TASKS[args.task], batch_size=args.batch_size)
    parameters = sum(p.numel() for p in task.model().parameters())
    table = rich.table.Table(
        title=f"{task.name}, batch {task.batch_size}, {torch.cuda.get_device_name()}"
    )
    for heading in (
        "B",
        "eager, steps/s",
        "compiled over eager",
        "captured over eager",
        "captured over floor",
    ):
        table.add_column(heading, justify="right")
    for runs in args.runs:
        kinds = [(False, False), (True, False), (True, True)]
        measures = [contestant(task, runs, compile, capture) for compile, capture in kinds]
        rounds = [[measure() for measure in measures] for _ in range(args.rounds)]
        floor = bandwidth() / (4 * TOUCHED * parameters)
        eager = [values[0] for values in rounds]
        ratios = [[values[i] / values[0] for values in rounds] for i in (1, 2)]
        table.add_row(
            str(runs),
            shown(eager, 0),
            *map(shown, ratios),
            shown([values[2] / floor for values in rounds], 3),
        )
        del measures
        gc.collect()  # loops hold functions that hold them
        torch.cuda.empty_cache()
    rich.console.Console(width=120).print(table)


if __name__ == "__main__":
    main()
