"""Inner steps per second on a GPU: eager, compiled, and compiled as one CUDA graph.

    PYTHONPATH=. python benchmarks/gpu.py
    PYTHONPATH=. python benchmarks/gpu.py --task mnist1d-gru --runs 64 1024

The optimizer is Adam, with statistics every 10 steps. The contestants take turns; the table shows
medians and quartiles over rounds. The last column compares with what the GPU's memory allows: no
implementation can avoid to read and write gradient, moments and parameters once a step, at the
bandwidth of a copy of 1 GiB, measured in the same run. Activations are not counted. Where all
tensors fit the cache, the ratio can exceed 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable

import rich.table
import torch

from lr_gym.console import print_whole
from lr_gym.tasks import TASKS, Task
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams

INTERVAL = 10
# Accesses of memory in a step: gradient, parameters and both moments are each read and written.
TOUCHED = 8


def seconds(function: Callable[[], object]) -> float:
    """Seconds of a call, until the device has finished."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def contestant(task: Task, runs: int, compile: bool, capture: bool) -> Callable[[], float]:
    """Trainings; each call of the result returns inner steps per second of all runs together."""
    loop = Executor(task, base="adam", device="cuda", compile=compile)
    if not capture:
        loop._graph = None
    state = loop.init(torch.arange(runs))
    ones = torch.ones(runs, loop.layout.num_layers, device="cuda")
    hyper = Hyperparams(ones * 1e-3, ones * 0.9, ones * 0.0, ones * 0.0)
    factor = ones.new_ones(INTERVAL, runs)

    def interval() -> None:
        nonlocal state
        state, _ = loop.advance(state, hyper, factor)
        loop.stats(state, hyper)

    for _ in range(3):  # compiles and captures
        interval()
    return lambda: INTERVAL * runs / seconds(interval)


def bandwidth() -> float:
    """Bytes read and written per second by a copy."""
    source, target = (torch.empty(2**28, dtype=torch.float32, device="cuda") for _ in range(2))
    target.copy_(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(9))


def shown(values: list[float], digits: int = 2) -> str:
    """Median and quartiles as text."""
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
        gc.collect()  # an executor and its functions refer to each other
        torch.cuda.empty_cache()
    print_whole(table)


if __name__ == "__main__":
    main()
