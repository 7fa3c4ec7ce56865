"""Measuring the tensors of one training: the large ones by a sample, those of one size in one call.

A sample is of runs of elements that lie side by side, evenly spaced.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.layer_stats import pooled, tensor_sums
from lr_gym.layers import Layout
from lr_gym.optim.base import in_blocks
from lr_gym.types import LayerStats, numbers_like
from lr_gym.update import BaseRule, MomentScale

__all__ = ["Piece", "measure_gradients", "measure_pieces", "pieces_of", "sampled", "stride_of"]

RUN = 16  # elements; what a CPU's cache reads at once
SMALL = 2**15  # elements of a piece that is measured together with others
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


def stride_of(elements: int, sample: int | None) -> int:
    """Distance of the runs of elements that are measured, in runs; 1 for all.

    It shares no divisor with their number, so that no column of a matrix is missed each time.

    Args:
        elements: of the tensor.
        sample: about how many are measured, where there are over 4 times as many; None for all.
    """
    runs = elements // RUN
    if sample is None or elements <= 4 * sample or runs < 2:
        return 1
    stride = elements // sample
    while math.gcd(stride, runs) > 1:
        stride += 1
    return stride


def sampled(tensor: Tensor, stride: int) -> Tensor:
    """Every stride-th run of a tensor's elements, flat."""
    return _strided(tensor, stride).reshape(-1)


def _strided(tensor: Tensor, stride: int) -> Tensor:
    """The same as a view (runs, RUN), where the tensor is contiguous; all of it at stride 1."""
    if stride == 1:
        return tensor
    return tensor.reshape(-1)[: tensor.numel() // RUN * RUN].view(-1, RUN)[::stride]


def pieces_of(tensors: tuple[Tensor, ...], slot: int, sample: int | None, block: int) -> list[Piece]:
    """What is measured of a parameter and of what belongs to it: a sample, or all in parts of at most `block` elements.

    Args:
        tensors: of a Piece, whole.
        slot: index of the parameter.
        sample: see `stride_of`.
        block: elements.
    """
    elements = tensors[0].numel()
    if (stride := stride_of(elements, sample)) > 1:
        sample_of_each = tuple(sampled(tensor, stride) for tensor in tensors)
        return [Piece(sample_of_each, slot, elements / sample_of_each[0].numel())]
    if elements <= SMALL:
        return [Piece(tuple(tensor.reshape(-1) for tensor in tensors), slot, 1.0)]
    return [Piece(part, slot, 1.0) for part in in_blocks(*tensors, size=block)]


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
    pieces = sorted(pieces, key=lambda piece: (piece.size, rules[piece.slot].family))
    slots, layers = [piece.slot for piece in pieces], [layer_of[piece.slot] for piece in pieces]
    mass, second_mass, beta = _columns(scale.mass, slots), _columns(scale.second, slots), _columns(momentum, layers)
    sums, start = [], 0
    for group in _together(pieces, rules):
        part = slice(start, start := start + len(group))
        columns = zip(*(piece.tensors for piece in group), strict=True)
        tensors = [_stacked(column).to(momentum.dtype) for column in columns]
        param, grad, first = tensors[:3]
        second = tensors[3] if len(tensors) > 3 else None
        masses = MomentScale(mass[0, part], second_mass[0, part])
        sums.append(tensor_sums(rules[group[0].slot], param, grad, first, second, beta[0, part], masses))
    weights = [piece.weight for piece in pieces]
    table = torch.cat(sums, dim=1)
    if any(weight != 1.0 for weight in weights):
        table = table * numbers_like(weights, table)
    sizes = tuple(round(piece.weight * piece.size) for piece in pieces)
    return pooled(Layout(names, tuple(layers), sizes), table.unsqueeze(1))


def measure_gradients(
    names: tuple[str, ...], layer_of: Sequence[int], grads: Sequence[Tensor], sample: int | None, like: Tensor
) -> LayerStats:
    """Of `measure_pieces` the size of the gradient alone, at a fraction of its cost; all else is 0.

    Args:
        names: of the layers.
        layer_of: the layer of each tensor.
        grads: pending, whole.
        sample: see `stride_of`.
        like: device and dtype of the statistics.
    """
    parts = [_strided(grad, stride_of(grad.numel(), sample)) for grad in grads]
    weights = [grad.numel() / max(1, part.numel()) for grad, part in zip(grads, parts, strict=True)]
    squares = torch.stack(torch._foreach_norm(parts, 2, dtype=like.dtype)).square()
    if any(weight != 1.0 for weight in weights):
        squares = squares * numbers_like(weights, squares)
    layout = Layout(names, tuple(layer_of), tuple(grad.numel() for grad in grads))
    grad_rms = (layout.pool(squares.unsqueeze(0)) / numbers_like(layout.layer_sizes(), squares)).sqrt()
    zero = torch.zeros_like(grad_rms)
    return LayerStats(zero, grad_rms, zero, zero, zero, zero)


def _together(pieces: Sequence[Piece], rules: Sequence[BaseRule]) -> Iterator[list[Piece]]:
    """Groups of sorted pieces that are measured in one call: of one size and rule if small, else each alone."""
    for (size, _), alike in itertools.groupby(pieces, key=lambda piece: (piece.size, rules[piece.slot].family)):
        group = list(alike)
        step = TOGETHER if size <= SMALL else 1
        yield from (group[i : i + step] for i in range(0, len(group), step))


def _stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    """torch.stack, which would copy a large tensor that is alone."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _columns(table: Tensor, index: Sequence[int]) -> Tensor:
    """Columns (1, len(index)) of a table (1, n), without an index that would have to travel to the device."""
    columns = table.unbind(1)
    return torch.stack([columns[i] for i in index], dim=1)
