"""Statistics of tensors of which every rank may hold only a shard (FSDP2).

A statistic is made of sums over elements. Each rank adds up its own shard, and one collective call
adds up the ranks. A tensor that several ranks hold counts in equal parts. Without shards there is
no call, and the values stay as they are, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from lr_gym.optim.distributed import add_up, replicas, shards
from lr_gym.types import numbers_like

__all__ = ["any_sharded", "averaged", "pooled", "pooled_largest", "pooled_norms"]


def averaged(value: Tensor, ranks: Any | None) -> Tensor:
    """The mean () over ranks of a number () that each of them has, equal on all to the bit."""
    if ranks is None:
        return value
    return add_up(value.clone(), ranks) / distributed.get_world_size(ranks)


def any_sharded(tensors: Sequence[Tensor], ranks: Any | None) -> bool:
    """Whether ranks hold different parts of any of the tensors."""
    return ranks is not None and any(shards(tensor) > 1 for tensor in tensors)


def pooled(sums: Tensor, tensors: Sequence[Tensor], ranks: Any | None) -> Tensor:
    """Sums (n, ...) of n tensors over all ranks.

    Args:
        sums: (n, ...) sums over the elements that this rank holds.
        tensors: the n tensors, or others that are sharded alike.
        ranks: the group of ranks, None for this process alone.
    """
    if not any_sharded(tensors, ranks):
        return sums
    weights = numbers_like([1.0 / replicas(tensor, ranks) for tensor in tensors], sums)
    return add_up(sums * weights.view(-1, *[1] * (sums.ndim - 1)), ranks)


def pooled_norms(
    norms: Sequence[Tensor], tensors: Sequence[Tensor], ranks: Any | None
) -> list[Tensor]:
    """Euclidean norms () of n tensors, from those of the parts that this rank holds.

    Args:
        norms: n norms () of what this rank holds.
        tensors: the n tensors, or others that are sharded alike.
        ranks: the group of ranks, None for this process alone.
    """
    if not any_sharded(tensors, ranks):
        return list(norms)
    squares = torch.stack([norm.to(norms[0]).square() for norm in norms])
    return list(pooled(squares, tensors, ranks).sqrt().unbind())


def pooled_largest(values: Tensor, tensors: Sequence[Tensor], ranks: Any | None) -> Tensor:
    """The largest values (n,) of n tensors over all ranks; infinite where any rank has a NaN."""
    if not any_sharded(tensors, ranks):
        return values
    values = torch.where(values.isnan(), torch.inf, values)  # a maximum may lose a NaN
    distributed.all_reduce(values, op=distributed.ReduceOp.MAX, group=ranks)
    return values
