"""Minibatches of many runs: indices of examples that all runs share, or examples of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.tasks.stream import DataStream, Moments, StreamBatch, StreamPosition, advanced
from lr_gym.tasks.task import Split
from lr_gym.training.compiled import CompiledFunction, Compiler
from lr_gym.training.inner_loop import InnerState

__all__ = [
    "Batches",
    "Draw",
    "batch_at",
    "batches_of",
    "compiled_draw",
    "one_step",
    "stream_batches",
]

# Indices of the gradient split, int64, or the examples of streams. The minibatches of K steps are
# (K, B, b, ...), those of one step (B, b, ...).
Batches = Tensor | Split

# `DataStream.draw` for one batch size.
Draw = Callable[[Tensor, StreamPosition, Tensor], tuple[StreamBatch, Moments]]


def batch_at(batches: Batches, k: int) -> Batches:
    """The minibatches of the k-th step."""
    return Split(*(part[k] for part in batches)) if isinstance(batches, Split) else batches[k]


def batches_of(batches: Batches, rows: slice) -> Batches:
    """The minibatches of K steps, of some runs."""
    if isinstance(batches, Split):
        return Split(*(part[:, rows] for part in batches))
    return batches[:, rows]


def one_step(batch: Batches) -> Batches:
    """The minibatches of one step as those of K = 1 steps."""
    if isinstance(batch, Split):
        return Split(*(part.unsqueeze(0) for part in batch))
    return batch.unsqueeze(0)


def stream_batches(
    draw: Draw, state: InnerState, first: int, count: int, limit: NDArray[np.int64] | None
) -> tuple[Split, StreamPosition]:
    """Minibatches of the streams of B runs.

    Args:
        draw: draws them.
        state: the trainings.
        first: number of the first minibatch, counted from `state.step`.
        count: K, how many minibatches.
        limit: (B,) how many of them each run will take; None for all.

    Returns:
        The examples (K, B, b, ...), and the positions of the streams after `limit` of them.
    """
    assert isinstance(state.stream, StreamPosition)
    device = state.step.device
    steps = state.step + torch.arange(first, first + count, device=device).unsqueeze(1)
    batch, moments = draw(state.run_seed, state.stream, steps)
    made = torch.from_numpy(np.full(len(state.step), count) if limit is None else limit)
    position = advanced(state.stream, batch, moments, made.to(device, non_blocking=True))
    return Split(batch.inputs, batch.targets), position


def compiled_draw(stream: DataStream, batch_size: int) -> Draw | None:
    """`stream.draw`, compiled for the number of steps of its first call.

    Random numbers are many small operations on integers, which take longer than the training of a
    small network until a compiler has made one loop of them.

    Args:
        stream: the stream, on the device.
        batch_size: examples of a minibatch.

    Returns:
        None for a stream that is no dataclass, since a compiled function must be given all tensors
        that it looks at.
    """
    if not hasattr(stream, "__dataclass_fields__"):
        return None
    source: Any = stream
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    tables = {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    def draw(
        given: tuple[Tensor, ...], run_seed: Tensor, position: StreamPosition, step: Tensor
    ) -> tuple[StreamBatch, Moments]:
        same: Any = dataclasses.replace(source, **dict(zip(tables, given, strict=True)))
        drawn: tuple[StreamBatch, Moments] = same.draw(run_seed, position, step, batch_size)
        return drawn

    # Its own compiler: where it fails, on a stream of a user's own, only drawing stays eager.
    compiled = CompiledFunction(Compiler(), draw)

    def call(
        run_seed: Tensor, position: StreamPosition, step: Tensor
    ) -> tuple[StreamBatch, Moments]:
        drawn: tuple[StreamBatch, Moments] = compiled(
            tuple(tables.values()), run_seed, position, step
        )
        return drawn

    return call
