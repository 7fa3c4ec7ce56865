"""Find out what a stream of data lacks before a training starts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lr_gym.tasks.stream import Changes, DataStream, Moments, StreamBatch
from lr_gym.tasks.task import Split, Task

__all__ = ["call", "drawn_examples", "shape_of"]

RUNS = 2
STEPS = 3  # minibatches of a stream that are drawn
# What a stream draws for one run at one step differs by rounding only.
ROUNDING = 1e-4


def call(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the task; an error of torch says what was called with which shapes."""
    try:
        return function(*args)
    except (ImportError, OSError):
        raise
    except Exception as error:
        shapes = [shape_of(x) for x in args if isinstance(x, Tensor)]
        on = f" on {' and '.join(shapes)}" if shapes else ""
        raise ValueError(f"{what} fails{on}: {type(error).__name__}: {error}") from error


def shape_of(x: Tensor) -> str:
    """Dtype and shape of a tensor in words."""
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"


def drawn_examples(task: Task, stream: DataStream) -> Split:
    """Try the stream of a task, and once more the one that a second call of data() returns.

    Args:
        task: the task.
        stream: what its data() has returned.

    Returns:
        Examples (n, ...) of some minibatches, in float32.

    Raises:
        ValueError: for the first thing that is wrong.
    """
    batch = _checked_batch(task, stream)
    again = call("data()", task.data)
    if not isinstance(again, DataStream):
        raise ValueError(f"data() returned a stream first, then type {type(again).__name__}")
    _check_same_stream(batch, _drawn(task, _moved(again))[0])
    return Split(batch.inputs.flatten(0, 2), batch.targets.flatten(0, 2))


def _checked_batch(task: Task, stream: DataStream) -> StreamBatch:
    """Minibatches (K, B, b, ...) of a stream in float32."""
    changes, concepts = (getattr(stream, name, None) for name in ("changes", "concepts"))
    if not isinstance(changes, Changes):
        raise ValueError(
            f"changes of the stream is of type {type(changes).__name__}, and must be "
            "lr_gym.tasks.stream.Changes(); Changes(between=None) for a stream that never changes"
        )
    if not isinstance(concepts, int) or not _is_prime_or_one(concepts):
        raise ValueError(
            f"concepts of the stream is {concepts!r}, and must be 1 or a prime number, so that "
            "every stride from one concept to the next one visits all of them"
        )
    moved = _moved(stream)
    batch, moments = _drawn(task, moved)
    _check_batch(task, batch)
    _check_runs_and_steps(task, moved, batch, moments)
    return batch


def _is_prime_or_one(number: int) -> bool:
    return number >= 1 and all(number % k for k in range(2, math.isqrt(number) + 1))


def _moved(stream: DataStream) -> DataStream:
    """The stream on the CPU in float32."""
    moved = call("to() of the stream", stream.to, "cpu", torch.float32)
    if not isinstance(moved, DataStream):
        raise ValueError(
            f"to() of the stream returns type {type(moved).__name__}, and must return the stream "
            "itself or a moved copy of it"
        )
    return moved


def _seeds_and_steps() -> tuple[Tensor, Tensor]:
    """Seeds (B,), and the first steps (K, B)."""
    steps = torch.arange(STEPS).unsqueeze(1).expand(STEPS, RUNS)
    return torch.arange(RUNS), steps


def _drawn(task: Task, stream: DataStream) -> tuple[StreamBatch, Moments]:
    """The first minibatches of each run."""
    seeds, steps = _seeds_and_steps()
    start = call("start() of the stream", stream.start, seeds, torch.float32)
    moments = call("moments() of the stream", stream.moments, seeds, start, steps)
    examples = _examples(task, stream, seeds.expand_as(steps), steps, moments)
    return examples, moments


def _examples(
    task: Task, stream: DataStream, seeds: Tensor, steps: Tensor, moments: Moments
) -> StreamBatch:
    batch = call(
        "examples() of the stream", stream.examples, seeds, steps, moments, task.batch_size
    )
    if not isinstance(batch, StreamBatch):
        raise ValueError(
            f"examples() of the stream returns type {type(batch).__name__}, and must return "
            f"lr_gym.tasks.stream.StreamBatch({', '.join(StreamBatch._fields)})"
        )
    return batch


def _check_batch(task: Task, batch: StreamBatch) -> None:
    """Every part is a tensor of finite numbers, of the right first dimensions."""
    for part, values in batch._asdict().items():
        where = f"the {part} that examples() of the stream returns"
        if not isinstance(values, Tensor):
            raise ValueError(f"{where} is of type {type(values).__name__}, and must be a tensor")
        count = (STEPS, RUNS) if part == "floor" else (STEPS, RUNS, task.batch_size)
        found = values.shape if part == "floor" else values.shape[:3]
        if found != count:
            letters = "(K, B)" if part == "floor" else "(K, B, b, ...)"
            raise ValueError(
                f"{where} is {shape_of(values)} for K = {STEPS} steps, B = {RUNS} runs and "
                f"b = {task.batch_size} examples, and must have the shape {letters}"
            )
        floating = values.is_floating_point()
        if (floating or part == "floor") and values.dtype != torch.float32:
            raise ValueError(
                f"{where} is {shape_of(values)} after to(device, torch.float32), and must have "
                "that dtype: move all floating-point tensors in to()"
            )
        if floating and not values.isfinite().all():
            count_odd = int((~values.isfinite()).sum())
            raise ValueError(f"{where} holds {count_odd} numbers that are NaN or infinite")


def _check_runs_and_steps(
    task: Task, stream: DataStream, batch: StreamBatch, moments: Moments
) -> None:
    """One run at one step sees what it sees among others."""
    seeds, steps = _seeds_and_steps()
    for step, run in itertools.product(range(STEPS), range(RUNS)):
        rows = slice(step, step + 1), slice(run, run + 1)
        alone = _examples(
            task,
            stream,
            seeds.expand_as(steps)[rows],
            steps[rows],
            Moments(*(values[rows] for values in moments)),
        )
        for part, values in alone._asdict().items():
            expected = getattr(batch, part)[rows]
            if not torch.allclose(values.double(), expected.double(), ROUNDING, ROUNDING):
                raise ValueError(
                    f"the {part} of the stream differ where run {run} is drawn alone at step "
                    f"{step}: examples() must follow from run_seed, step and moments, see "
                    "lr_gym.rng, and keep nothing from one call to the next"
                )


def _check_same_stream(first: StreamBatch, second: StreamBatch) -> None:
    """A second call of data() has returned the same stream."""
    for part, values in first._asdict().items():
        if not torch.equal(values, getattr(second, part)):
            raise ValueError(
                f"data() returned another stream the second time: its {part} differ. Every "
                "environment and every process calls it: draw its random numbers from a generator "
                "with a fixed seed"
            )
