"""DataStream: endless minibatches whose distribution changes at times that nobody is told.

A network is tested on each minibatch and then trained on it, once. What a stream shows follows from
the run's seed and the number of the step, by counter-based numbers, so runs in a batch, runs alone
and plain training loops see the same examples.

Between two changes a stream shows one *concept*: one teacher, one order of the labels, one group of
classes. Changes come at random, with a hazard that each run draws for itself, so that the times
between changes differ by factors of ten from run to run.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor

from lr_gym.rng import Stream, integers, uniform
from lr_gym.types import check_number

__all__ = [
    "Changes",
    "DataStream",
    "Moments",
    "StreamBatch",
    "StreamPosition",
    "advanced",
    "log_uniform",
    "moments_of",
]

RECURRING = (2, 5)  # fewest and most concepts of a run whose concepts repeat


class StreamPosition(NamedTuple):
    """How far the streams of B runs are; it belongs to the minibatch that was drawn last.

    Attributes:
        segment: (B,) int64 number of changes so far.
        since: (B,) int64 steps since the last change, or since the start; -1 before the first
            minibatch.
        floor: (B,) lowest possible loss, see `StreamBatch`, the mean over the minibatches that
            were drawn last.
    """

    segment: Tensor
    since: Tensor
    floor: Tensor


class Moments(NamedTuple):
    """What the streams of B runs show at K steps.

    Attributes:
        segment: (K, B) int64 number of changes so far.
        since: (K, B) int64 steps since the last change, or since the start.
        concept: (K, B) int64 index of the present concept, or of the one that is replacing another.
        previous: (K, B) int64 index of the concept before it; before the first change, the same.
        weight: (K, B) how far the new concept has taken the place of the previous one, in [0, 1].
    """

    segment: Tensor
    since: Tensor
    concept: Tensor
    previous: Tensor
    weight: Tensor


class StreamBatch(NamedTuple):
    """Minibatches of B runs at K steps.

    Attributes:
        inputs: (K, B, b, ...).
        targets: (K, B, b, ...).
        floor: (K, B) loss of the best possible prediction on these very examples. Subtracting it
            takes most of the label noise out of a loss. It is 0 where the best is not known.
    """

    inputs: Tensor
    targets: Tensor
    floor: Tensor


@dataclasses.dataclass(frozen=True)
class Changes:
    """When and how the streams of a task change; each run draws its own.

    Attributes:
        between: range of the mean number of steps between two changes, log-uniform; None for
            streams that never change.
        gradual: share of the runs in which a new concept replaces the old one gradually.
        width: range of the number of steps of such a change, log-uniform.
        recurring: share of the runs in which a few concepts repeat in a fixed cycle.

    Raises:
        ValueError: for a field out of range, naming it.
    """

    between: tuple[float, float] | None = (200.0, 5000.0)
    gradual: float = 0.25
    width: tuple[float, float] = (10.0, 1000.0)
    recurring: float = 1.0 / 3.0

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("between", "width"):
            value = getattr(self, name)
            if value is not None and not 1.0 <= value[0] <= value[1]:
                raise ValueError(f"{name} must be (low, high), 1 <= low <= high; got {value!r}")
        for name in ("gradual", "recurring"):
            check_number(name, getattr(self, name), 0.0, 1.0)


class _Run(NamedTuple):
    """What each run draws for itself, (B,) each.

    Attributes:
        hazard: probability of a change at a step.
        width: steps that a change takes; 1 for changes at once.
        distinct: how many of all concepts this run uses.
        first: index of the first concept.
        stride: from the index of a concept to that of the next one.
    """

    hazard: Tensor
    width: Tensor
    distinct: Tensor
    first: Tensor
    stride: Tensor


def log_uniform(place: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The number at a place in [0, 1) of a range, on a logarithmic scale."""
    low, high = bounds
    return low * torch.exp(place * math.log(high / low))


def _draw_run(changes: Changes, concepts: int, run_seed: Tensor, dtype: torch.dtype) -> _Run:
    place = uniform(run_seed, Stream.STREAM, 0, 6, dtype=dtype).unbind(-1)
    often, kind, slow, back, some, _ = place
    hazard = torch.zeros_like(often)
    if changes.between is not None:
        hazard = 1.0 / log_uniform(often, changes.between)
    width = torch.where(kind < changes.gradual, log_uniform(slow, changes.width), 1.0)
    low, high = RECURRING
    few = low + (some * (high - low + 1)).long()
    return _Run(
        hazard=hazard,
        width=width,
        distinct=torch.where(back < changes.recurring, few.clamp_max(concepts), concepts),
        first=integers(run_seed, Stream.STREAM, 1, 1, concepts)[..., 0],
        stride=1 + integers(run_seed, Stream.STREAM, 2, 1, max(1, concepts - 1))[..., 0],
    )


def moments_of(
    changes: Changes,
    concepts: int,
    run_seed: Tensor,
    position: StreamPosition,
    step: Tensor,
) -> Moments:
    """What streams show at the K steps that follow a position.

    Args:
        changes: when and how they change.
        concepts: number of concepts there are, a prime or 1, so that every stride visits all.
        run_seed: (B,) int64.
        position: position of the minibatch before.
        step: (K, B) int64 numbers of the K minibatches that follow it.
    """
    dtype = position.floor.dtype
    run = _draw_run(changes, concepts, run_seed, dtype)
    chance = uniform(run_seed.expand_as(step), Stream.CHANGE, step, 1, dtype=dtype)[..., 0]
    changed = (chance < run.hazard) & (step > 0)
    segment = position.segment + changed.cumsum(0)
    number = torch.arange(1, len(step) + 1, device=step.device).unsqueeze(1)  # (K, 1)
    last = torch.where(changed, number, 0).cummax(0).values  # (K, B) 0 where none has come yet
    since = torch.where(last > 0, number - last, position.since + number)
    weight = ((since + 1) / run.width).clamp_max(1.0)

    def index(segment: Tensor) -> Tensor:
        return (run.first + run.stride * (segment % run.distinct)) % concepts

    return Moments(
        segment=segment,
        since=since,
        concept=index(segment),
        previous=index((segment - 1).clamp_min(0)),
        weight=torch.where(segment > 0, weight, 1.0),
    )


class DataStream(ABC):
    """Minibatches of a stream for B runs.

    Attributes:
        changes: when and how the concepts change.
        concepts: number of concepts there are, a prime or 1.
    """

    changes: Changes
    concepts: int

    @abstractmethod
    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Move all tensors to a device; floating-point tensors become `dtype`."""

    @abstractmethod
    def examples(
        self, run_seed: Tensor, step: Tensor, moments: Moments, batch_size: int
    ) -> StreamBatch:
        """The minibatches at K steps.

        Args:
            run_seed: (K, B) int64.
            step: (K, B) int64.
            moments: what the streams show then.
            batch_size: b.
        """

    def start(self, run_seed: Tensor, dtype: torch.dtype) -> StreamPosition:
        """The position before the first minibatch, for seeds (B,)."""
        zeros = torch.zeros_like(run_seed)
        return StreamPosition(zeros, zeros - 1, zeros.to(dtype))

    def moments(self, run_seed: Tensor, position: StreamPosition, step: Tensor) -> Moments:
        """What streams with seeds (B,) show at the steps (K, B) that follow a position."""
        return moments_of(self.changes, self.concepts, run_seed, position, step)

    def draw(
        self, run_seed: Tensor, position: StreamPosition, step: Tensor, batch_size: int
    ) -> tuple[StreamBatch, Moments]:
        """The minibatches at the steps (K, B) that follow a position, for seeds (B,)."""
        moments = self.moments(run_seed, position, step)
        return self.examples(run_seed.expand_as(step), step, moments, batch_size), moments


def advanced(
    position: StreamPosition, batch: StreamBatch, moments: Moments, made: Tensor
) -> StreamPosition:
    """The position after the first `made` (B,) of K minibatches; it is `position` for 0 of them."""

    def last(old: Tensor, values: Tensor) -> Tensor:
        all_values = torch.cat((old.unsqueeze(0), values))
        return all_values.gather(0, made.unsqueeze(0))[0]

    total = batch.floor.cumsum(0)
    return StreamPosition(
        segment=last(position.segment, moments.segment),
        since=last(position.since, moments.since),
        floor=last(position.floor, total) / made.clamp_min(1),
    )
