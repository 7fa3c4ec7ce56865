"""Measuring the tensors of one training.

The large ones by a sample, those of about one size in one call.

A sample is of runs of elements that lie side by side, as many of each tensor.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.control.layer_stats import pooled, tensor_sums
from lr_gym.layers import Layout
from lr_gym.optim.base import in_blocks
from lr_gym.types import LayerStats, numbers_like
from lr_gym.updates.rules import BaseRule, MomentScale

__all__ = ["Piece", "measure_gradients", "measure_pieces", "pieces_of", "sampled_runs"]

RUN = 16  # elements; what a CPU's cache reads at once
SMALL = 2**15  # elements of a piece that is measured together with others
CLASSES = (2**10, 2**12, 2**14, SMALL)  # sizes up to which those of others are padded
TOGETHER = 64  # of them at most, for the memory of copies


class Piece(NamedTuple):
    """A part of a tensor, or a sample of it.

    Attributes:
        tensors: parameter, gradient, first moment and, for Adam, second moment; of one shape.
        slot: index of the tensor.
        weight: how many elements of the tensor each element stands for.
    """

    tensors: tuple[Tensor, ...]
    slot: int
    weight: float

    @property
    def size(self) -> int:
        """Elements."""
        return self.tensors[0].numel()


@functools.lru_cache(maxsize=256)
def sampled_runs(elements: int, sample: int | None, device: torch.device) -> Tensor | None:
    """Which of a tensor's runs of elements are measured, ascending.

    None for all, where it is small.

    One at random, always the same, of each of as many parts of the tensor: so no column of a matrix
    is missed.

    Args:
        elements: of the tensor.
        sample: how many are measured, rounded to whole runs, where there are over 4 times as many;
            None for all.
        device: of the indices.
    """
    runs = elements // RUN
    count = 0 if sample is None else max(1, sample // RUN)
    if sample is None or elements <= 4 * sample or runs < 4 * count:
        return None
    edges = torch.arange(count + 1, device="cpu") * runs // count
    chosen = torch.rand(
        count, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu"
    )
    places = edges[:-1] + (chosen * edges.diff()).long()
    return (places.pin_memory() if device.type == "cuda" else places).to(device, non_blocking=True)


def _taken(tensor: Tensor, runs: Tensor | None) -> Tensor:
    """Some runs of a tensor's elements, or all of it; flat."""
    flat = tensor.reshape(-1)
    if runs is None:
        return flat
    return flat[: flat.numel() // RUN * RUN].view(-1, RUN).index_select(0, runs).view(-1)


def pieces_of(
    tensors: tuple[Tensor, ...], slot: int, sample: int | None, block: int
) -> list[Piece]:
    """What is measured of a parameter and of what belongs to it.

    A sample, or all in parts of at most `block` elements.

    Args:
        tensors: of a Piece, whole.
        slot: index of the parameter.
        sample: see `sampled_runs`.
        block: elements.
    """
    elements = tensors[0].numel()
    runs = sampled_runs(elements, sample, tensors[0].device)
    if runs is None and elements > SMALL:
        return [Piece(part, slot, 1.0) for part in in_blocks(*tensors, size=block)]
    taken = tuple(_taken(tensor, runs) for tensor in tensors)
    return [Piece(taken, slot, elements / max(1, taken[0].numel()))]


def measure_pieces(
    rules: Sequence[BaseRule],
    names: tuple[str, ...],
    layer_of: Sequence[int],
    pieces: Sequence[Piece],
    scale: MomentScale,
    momentum: Tensor,
) -> LayerStats:
    """`measure` for one run (B = 1) of which there are n tensors, given as pieces.

    Args:
        rules: of each tensor.
        names: of the layers.
        layer_of: the layer of each tensor.
        pieces: of the tensors, in any order.
        scale: masses (1, n) of their moments.
        momentum: (1, L).
    """
    groups = _together(pieces, rules)
    pieces = [piece for group in groups for piece in group]
    slots, layers = [piece.slot for piece in pieces], [layer_of[piece.slot] for piece in pieces]
    mass, second_mass, beta = (
        _columns(scale.mass, slots),
        _columns(scale.second, slots),
        _columns(momentum, layers),
    )
    sums, start = [], 0
    for group in groups:
        part = slice(start, start := start + len(group))
        columns = zip(*(piece.tensors for piece in group), strict=True)
        tensors = [_stacked(column).to(momentum.dtype) for column in columns]
        param, grad, first = tensors[:3]
        second = tensors[3] if len(tensors) > 3 else None
        masses = MomentScale(mass[0, part], second_mass[0, part])
        sums.append(
            tensor_sums(rules[group[0].slot], param, grad, first, second, beta[0, part], masses)
        )
    weights = [piece.weight for piece in pieces]
    table = torch.cat(sums, dim=1)
    if any(weight != 1.0 for weight in weights):
        table = table * numbers_like(weights, table)
    sizes = tuple(round(piece.weight * piece.size) for piece in pieces)
    return pooled(Layout(names, tuple(layers), sizes), table.unsqueeze(1))


def measure_gradients(
    names: tuple[str, ...],
    layer_of: Sequence[int],
    grads: Sequence[Tensor],
    sample: int | None,
    like: Tensor,
) -> LayerStats:
    """Of `measure_pieces` the size of the gradient alone, at a fraction of its cost; all else is 0.

    Args:
        names: of the layers.
        layer_of: the layer of each tensor.
        grads: pending, whole.
        sample: see `sampled_runs`.
        like: device and dtype of the statistics.
    """
    parts = [_taken(grad, sampled_runs(grad.numel(), sample, grad.device)) for grad in grads]
    weights = [grad.numel() / max(1, part.numel()) for grad, part in zip(grads, parts, strict=True)]
    squares = torch.stack(torch._foreach_norm(parts, 2, dtype=like.dtype)).square()
    if any(weight != 1.0 for weight in weights):
        squares = squares * numbers_like(weights, squares)
    layout = Layout(names, tuple(layer_of), tuple(grad.numel() for grad in grads))
    grad_rms = (
        layout.pool(squares.unsqueeze(0)) / numbers_like(layout.layer_sizes(), squares)
    ).sqrt()
    zero = torch.zeros_like(grad_rms)
    return LayerStats(zero, grad_rms, zero, zero, zero, zero)


def _kind(piece: Piece, rules: Sequence[BaseRule]) -> tuple[Any, ...]:
    """What pieces that are measured in one call have in common.

    The rule, types of numbers, and about their size.

    That is one of CLASSES, up to which they are padded with zeros, of which no sum takes note; but
    the size itself where they are large, or Muon's, to which it matters.
    """
    family, size = rules[piece.slot].family, piece.size
    padded = family != "muon" and size <= SMALL
    return (
        padded,
        bisect_left(CLASSES, size) if padded else size,
        family,
        *(tensor.dtype for tensor in piece.tensors),
    )


def _together(pieces: Sequence[Piece], rules: Sequence[BaseRule]) -> list[list[Piece]]:
    """Groups of pieces that are measured in one call; large ones alone."""
    alike: dict[tuple[Any, ...], list[Piece]] = {}
    for piece in pieces:
        alike.setdefault(_kind(piece, rules), []).append(piece)
    steps = ((group, TOGETHER if group[0].size <= SMALL else 1) for group in alike.values())
    return [group[i : i + step] for group, step in steps for i in range(0, len(group), step)]


def _stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    """Rows of one length, the shorter ones padded; one alone is no copy."""
    if len(tensors) == 1:
        return tensors[0].unsqueeze(0)
    if all(len(tensor) == len(tensors[0]) for tensor in tensors):
        return torch.stack(tensors)
    return nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


def _columns(table: Tensor, index: Sequence[int]) -> Tensor:
    """Columns (1, len(index)) of a table (1, n), without an index that would have to travel to the device."""
    columns = table.unbind(1)
    return torch.stack([columns[i] for i in index], dim=1)
