"""Statistics of a deployed model's tensors at little cost.

    tensors -> pieces (a sample of a large tensor, or all of a small one)
            -> batches of pieces of about one size, measured in one call
            -> sums (7, 1, L) over the elements of each layer

A sample consists of runs of RUN neighbouring elements, spread over the tensor. The formulas are
those of `lr_gym.control.layer_stats`, which the environment uses.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.control.layer_stats import tensor_sums
from lr_gym.layers import Layout
from lr_gym.optim.batching import SMALL, in_blocks, same_kind_batches, stacked
from lr_gym.types import numbers_like
from lr_gym.updates.rule import BaseRule, MomentMasses

__all__ = ["Piece", "pieces_of", "sampled_runs", "square_sums", "sums_of_pieces"]

# Elements in one run. A CPU reads a cache line of 64 bytes at once, which is 16 of float32.
RUN = 16
# Small pieces are padded to the next of these sizes, so that few calls serve all of them.
PADDED_SIZES = (2**10, 2**12, 2**14, SMALL)


class Piece(NamedTuple):
    """A block or a sample of one parameter, with its gradient and moments.

    Attributes:
        tensors: parameter, gradient, first moment and, for Adam, second moment; all of one shape.
        slot: index of the parameter.
        weight: how many elements of the parameter each element stands for.
    """

    tensors: tuple[Tensor, ...]
    slot: int
    weight: float

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tensors[0].numel()


@functools.lru_cache(maxsize=256)
def sampled_runs(elements: int, sample: int | None, device: torch.device) -> Tensor | None:
    """Indices of the runs of a tensor that are measured, ascending; None to measure every element.

    The tensor is cut into equal parts and one run is taken at random from each. Runs at equal
    distances would miss whole columns of a matrix. The same runs are taken at every decision, so a
    change in the statistics is a change of the training.

    Args:
        elements: number of elements of the tensor.
        sample: number of elements to measure, rounded down to whole runs. A tensor of at most 4
            times as many is measured whole, because gathering has a cost too. None measures every
            tensor whole.
        device: where the indices are needed.
    """
    runs = elements // RUN
    count = 0 if sample is None else max(1, sample // RUN)
    if sample is None or elements <= 4 * sample or runs < 4 * count:
        return None
    edges = torch.arange(count + 1, device="cpu") * runs // count
    # A generator of its own: the optimizer must not touch the user's random numbers.
    generator = torch.Generator("cpu").manual_seed(0)
    chosen = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    places = edges[:-1] + (chosen * edges.diff()).long()
    return (places.pin_memory() if device.type == "cuda" else places).to(device, non_blocking=True)


def _sampled(tensor: Tensor, runs: Tensor | None) -> Tensor:
    """The given runs of a tensor, or all of it; flat."""
    flat = tensor.reshape(-1)
    if runs is None:
        return flat
    # A remainder of fewer than RUN elements at the end is never sampled.
    return flat[: flat.numel() // RUN * RUN].view(-1, RUN).index_select(0, runs).view(-1)


def pieces_of(
    tensors: tuple[Tensor, ...], slot: int, sample: int | None, block: int
) -> list[Piece]:
    """What is measured of a parameter: one sample, or all of it in blocks.

    Args:
        tensors: the tensors of a Piece, whole.
        slot: index of the parameter.
        sample: see `sampled_runs`.
        block: largest number of elements of a piece that is not a sample.
    """
    elements = tensors[0].numel()
    runs = sampled_runs(elements, sample, tensors[0].device)
    if runs is None and elements > SMALL:
        return [Piece(part, slot, 1.0) for part in in_blocks(*tensors, size=block)]
    parts = tuple(_sampled(tensor, runs) for tensor in tensors)
    return [Piece(parts, slot, elements / max(1, parts[0].numel()))]


def sums_of_pieces(
    rules: Sequence[BaseRule],
    layout: Layout,
    pieces: Sequence[Piece],
    masses: MomentMasses,
    momentum: Tensor,
) -> Tensor:
    """The `tensor_sums` of every layer of one training (B = 1), from pieces of its tensors.

    Args:
        rules: the rule of each of n parameters.
        layout: the layer of each parameter.
        pieces: pieces of all parameters, in any order.
        masses: (1, n) masses of the moments.
        momentum: (1, L) momentum or beta1.

    Returns:
        (7, 1, L) sums.
    """
    if not pieces:
        return momentum.new_zeros(7, 1, layout.num_layers)
    batches = _batches(pieces, rules)
    pieces = [piece for batch in batches for piece in batch]
    slots = [piece.slot for piece in pieces]
    layers = [layout.layer_of[piece.slot] for piece in pieces]
    own = MomentMasses(_columns(masses.first, slots), _columns(masses.second, slots))
    sums = _piece_sums(batches, rules, own, _columns(momentum, layers))  # (7, pieces)
    weights = [piece.weight for piece in pieces]
    if any(weight != 1.0 for weight in weights):
        sums = sums * numbers_like(weights, sums)
    return layout._replace(layer_of=tuple(layers)).pool(sums.unsqueeze(1))


def _piece_sums(
    batches: Sequence[Sequence[Piece]],
    rules: Sequence[BaseRule],
    masses: MomentMasses,
    momentum: Tensor,
) -> Tensor:
    """`tensor_sums` (7, m) of m pieces, batch by batch; masses and momentum are (m,)."""
    sums = []
    start = 0
    for batch in batches:
        part = slice(start, start + len(batch))
        start = part.stop
        columns = zip(*(piece.tensors for piece in batch), strict=True)
        param, grad, first, *second = (stacked(column).to(momentum.dtype) for column in columns)
        own = MomentMasses(masses.first[part], masses.second[part])
        rule = rules[batch[0].slot]
        moment = second[0] if second else None
        sums.append(tensor_sums(rule, param, grad, first, moment, momentum[part], own))
    return torch.cat(sums, dim=1)


def square_sums(
    layout: Layout,
    grads: Sequence[Tensor],
    sample: int | None,
    weights: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Sums of squares of the gradients of every layer, at a fraction of the cost of all sums.

    Args:
        layout: the layer of each of n gradients.
        grads: pending gradients, whole.
        sample: see `sampled_runs`.
        weights: factor on the sum of each gradient.
        dtype: floating-point type of the sums, at least as wide as that of any gradient.

    Returns:
        (1, L) sums.
    """
    parts = [_sampled(grad, sampled_runs(grad.numel(), sample, grad.device)) for grad in grads]
    scales = [
        weight * (grad.numel() / max(1, part.numel()))
        for weight, grad, part in zip(weights, grads, parts, strict=True)
    ]
    squares = torch.stack(torch._foreach_norm(parts, 2, dtype=dtype)).square()  # (n,)
    if any(scale != 1.0 for scale in scales):
        squares = squares * numbers_like(scales, squares)
    return layout.pool(squares.unsqueeze(0))


def _batches(pieces: Sequence[Piece], rules: Sequence[BaseRule]) -> list[list[Piece]]:
    """Batches of pieces that are measured in one call.

    All of a batch have one rule, the same types of numbers and about one size.
    """

    def kind(piece: Piece) -> Hashable:
        family = rules[piece.slot].family
        types = tuple(tensor.dtype for tensor in piece.tensors)
        # Small pieces of about one size are padded with zeros, which add nothing to any sum.
        # Muon's update counts the elements, so its pieces must have exactly one size.
        padded = family != "muon" and piece.size <= SMALL
        size = bisect_left(PADDED_SIZES, piece.size) if padded else piece.size
        return padded, size, family, types

    return same_kind_batches(pieces, lambda piece: piece.size, kind)


def _columns(table: Tensor, index: Sequence[int]) -> Tensor:
    """Columns (len(index),) of a table (1, n).

    Indexing with a list would copy the list to the device and wait for it.
    """
    columns = table.unbind(1)
    return torch.cat([columns[i] for i in index])
