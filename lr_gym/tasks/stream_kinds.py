"""Kinds of streams: noisy teachers, permuted labels or inputs, groups of classes, rows in order.

Whatever a concept can show is computed beforehand for every example of a pool, so that drawing a
minibatch is looking numbers up, and costs no more than with fixed data.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import torch
from torch import Tensor

from lr_gym.rng import Stream, integers, normal, uniform
from lr_gym.tasks.stream import Changes, DataStream, Moments, StreamBatch, log_uniform

__all__ = ["ClassStream", "GroupStream", "OrderedStream", "PermutedStream", "ValueStream"]

STEADY = Changes(between=None)


def _noise_level(run_seed: Tensor, bounds: tuple[float, float], dtype: torch.dtype) -> Tensor:
    """The label noise that each run draws for itself, of the shape of the seeds."""
    place = uniform(run_seed, Stream.STREAM, 3, 1, dtype=dtype)[..., 0]
    return log_uniform(place, bounds)


def _chosen(run_seed: Tensor, step: Tensor, moments: Moments, count: int) -> Tensor:
    """The concept (K, B, b) of each example: while a change takes place, some are of the old one.

    An example is of the new concept with the probability `moments.weight`.
    """
    chance = uniform(run_seed, Stream.MIXTURE, step, count, dtype=moments.weight.dtype)
    new = chance < moments.weight.unsqueeze(-1)
    return torch.where(new, moments.concept.unsqueeze(-1), moments.previous.unsqueeze(-1))


@dataclasses.dataclass(frozen=True)
class ValueStream(DataStream):
    """Regression on the values of teachers, with normal noise.

    During a change the target turns from one teacher's value to the next one's, along the quarter
    of a circle, so that its variance stays. Slow changes are thus a steady drift.

    Attributes:
        inputs: (n, ...) pool of inputs.
        values: (M, n) value of each teacher, mean 0 and variance 1.
        noise: range of the noise's standard deviation, log-uniform.
        share: range of the variance that changes; the rest is that of a teacher that stays.
        changes: when and how the teachers change.
    """

    inputs: Tensor
    values: Tensor
    noise: tuple[float, float] = (0.1, 3.0)
    share: tuple[float, float] = (0.5, 1.0)
    changes: Changes = dataclasses.field(default_factory=Changes)

    @property
    def concepts(self) -> int:  # type: ignore[override]
        """Teachers that change; the last one of the table stays."""
        return len(self.values) - 1

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """See DataStream."""
        moved = {name: getattr(self, name).to(device, dtype) for name in ("inputs", "values")}
        return dataclasses.replace(self, **moved)

    def examples(
        self, run_seed: Tensor, step: Tensor, moments: Moments, batch_size: int
    ) -> StreamBatch:
        """See DataStream."""
        dtype = self.inputs.dtype
        rows = integers(run_seed, Stream.BATCH, step, batch_size, len(self.inputs))
        angle = (0.5 * math.pi) * moments.weight.unsqueeze(-1)
        new = self.values[moments.concept.unsqueeze(-1), rows]
        old = self.values[moments.previous.unsqueeze(-1), rows]
        place = uniform(run_seed, Stream.STREAM, 4, 1, dtype=dtype)
        share = self.share[0] + (self.share[1] - self.share[0]) * place
        changing = angle.sin() * new + angle.cos() * old
        target = share.sqrt() * changing + (1.0 - share).sqrt() * self.values[-1][rows]
        noise = normal(run_seed, Stream.LABEL, step, batch_size, dtype=dtype)
        noise = noise * _noise_level(run_seed, self.noise, dtype).unsqueeze(-1)
        return StreamBatch(
            inputs=self.inputs[rows],
            targets=(target + noise).unsqueeze(-1),
            floor=noise.square().mean(-1),
        )


@dataclasses.dataclass(frozen=True)
class ClassStream(DataStream):
    """Classification in which the classes of the inputs change, with wrong labels among them.

    Attributes:
        inputs: (n, ...) pool of inputs.
        classes: (M, n) int64 class of each input under each concept.
        number: number of classes.
        noise: range of the share of wrong labels, log-uniform; None for none.
        changes: when and how the concepts change.
    """

    inputs: Tensor
    classes: Tensor
    number: int
    noise: tuple[float, float] | None = None
    changes: Changes = dataclasses.field(default_factory=Changes)

    @property
    def concepts(self) -> int:  # type: ignore[override]
        """Rows of the table."""
        return len(self.classes)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """See DataStream."""
        return dataclasses.replace(
            self, inputs=self.inputs.to(device, dtype), classes=self.classes.to(device)
        )

    def examples(
        self, run_seed: Tensor, step: Tensor, moments: Moments, batch_size: int
    ) -> StreamBatch:
        """See DataStream."""
        dtype = self.inputs.dtype
        rows = integers(run_seed, Stream.BATCH, step, batch_size, len(self.inputs))
        concept = _chosen(run_seed, step, moments, batch_size)
        targets = self.classes[concept, rows]
        floor = torch.zeros_like(moments.weight)
        if self.noise is not None:
            share = _noise_level(run_seed, self.noise, dtype).unsqueeze(-1)
            chance = uniform(run_seed, Stream.LABEL, step, 2 * batch_size, dtype=dtype)
            wrong = chance[..., :batch_size] < share
            other = 1 + (chance[..., batch_size:] * (self.number - 1)).long()
            targets = torch.where(wrong, (targets + other) % self.number, targets)
            likely = torch.where(wrong, share / (self.number - 1), 1.0 - share)
            floor = -likely.log().mean(-1)
        return StreamBatch(self.inputs[rows], targets, floor)


@dataclasses.dataclass(frozen=True)
class PermutedStream(DataStream):
    """Classification in which the order of the inputs' entries changes.

    Attributes:
        inputs: (n, d) pool of inputs.
        targets: (n,) int64 their classes.
        orders: (M, d) int64 order of the entries under each concept.
        changes: when and how the orders change.
    """

    inputs: Tensor
    targets: Tensor
    orders: Tensor
    changes: Changes = dataclasses.field(default_factory=Changes)

    @property
    def concepts(self) -> int:  # type: ignore[override]
        """Rows of the table."""
        return len(self.orders)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """See DataStream."""
        return dataclasses.replace(
            self,
            inputs=self.inputs.to(device, dtype),
            targets=self.targets.to(device),
            orders=self.orders.to(device),
        )

    def examples(
        self, run_seed: Tensor, step: Tensor, moments: Moments, batch_size: int
    ) -> StreamBatch:
        """See DataStream."""
        rows = integers(run_seed, Stream.BATCH, step, batch_size, len(self.inputs))
        order = self.orders[_chosen(run_seed, step, moments, batch_size)]
        inputs = self.inputs[rows].gather(-1, order)
        return StreamBatch(inputs, self.targets[rows], torch.zeros_like(moments.weight))


@dataclasses.dataclass(frozen=True)
class GroupStream(DataStream):
    """Classification that shows a group of classes at a time (class-incremental learning).

    Attributes:
        inputs: (M, m, ...) equally many inputs of each group.
        targets: (M, m) int64 their classes.
        changes: when and how the groups change.
    """

    inputs: Tensor
    targets: Tensor
    changes: Changes = dataclasses.field(default_factory=Changes)

    @property
    def concepts(self) -> int:  # type: ignore[override]
        """Number of groups."""
        return len(self.inputs)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """See DataStream."""
        return dataclasses.replace(
            self, inputs=self.inputs.to(device, dtype), targets=self.targets.to(device)
        )

    def examples(
        self, run_seed: Tensor, step: Tensor, moments: Moments, batch_size: int
    ) -> StreamBatch:
        """See DataStream."""
        rows = integers(run_seed, Stream.BATCH, step, batch_size, self.inputs.shape[1])
        group = _chosen(run_seed, step, moments, batch_size)
        return StreamBatch(
            self.inputs[group, rows], self.targets[group, rows], torch.zeros_like(moments.weight)
        )


@dataclasses.dataclass(frozen=True)
class OrderedStream(DataStream):
    """Recorded data in their own order. When they change is not known, so no moment counts as one.

    Each run begins somewhere; after the last row the first one follows.

    Attributes:
        inputs: (n, ...) rows in the order of time.
        targets: (n, ...).
        changes: none.
        concepts: one.
    """

    inputs: Tensor
    targets: Tensor
    changes: Changes = STEADY
    concepts: int = 1

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """See DataStream."""
        kind = dtype if self.targets.is_floating_point() else self.targets.dtype
        return dataclasses.replace(
            self, inputs=self.inputs.to(device, dtype), targets=self.targets.to(device, kind)
        )

    def examples(
        self, run_seed: Tensor, step: Tensor, moments: Moments, batch_size: int
    ) -> StreamBatch:
        """See DataStream."""
        first = integers(run_seed, Stream.STREAM, 4, 1, len(self.inputs))
        place = torch.arange(batch_size, device=step.device)
        rows = (first + step.unsqueeze(-1) * batch_size + place) % len(self.inputs)
        return StreamBatch(self.inputs[rows], self.targets[rows], torch.zeros_like(moments.weight))
