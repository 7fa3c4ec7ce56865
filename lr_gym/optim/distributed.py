"""Trainings on several ranks: what one rank knows, made what all ranks know.

Ranks that train one model together must make equal decisions. A decision rests on losses, which
differ between ranks, and on statistics of gradients. Under DDP the gradients are equal on every
rank. Under FSDP2 a parameter is a DTensor, of which every rank holds a shard; sums over shards are
added up. Both happen at decisions only, in one collective call of a few kilobytes each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

__all__ = [
    "add_up",
    "check_equal_on_ranks",
    "gathered",
    "local",
    "own_shard",
    "ranks_of",
    "replicas",
    "shards",
]


def ranks_of(process_group: Any) -> Any | None:
    """The group of ranks that decide together, None where this process decides alone.

    Args:
        process_group: a torch.distributed.ProcessGroup; None for all ranks, where torch.distributed
            is initialised; False for this process alone.
    """
    if process_group is False or not distributed.is_available() or not distributed.is_initialized():
        return None
    group = distributed.group.WORLD if process_group is None else process_group
    return group if distributed.get_world_size(group) > 1 else None


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, in the same memory; any other tensor as it is."""
    if type(tensor) in (Tensor, Parameter):  # nearly always, and this is asked at every step
        return tensor
    to_local = getattr(tensor, "to_local", None)  # DTensor's module would take long to import
    shard: Tensor = tensor if to_local is None else to_local()
    return shard


def shards(tensor: Tensor) -> int:
    """In how many parts a tensor is held: 1 for one that every rank holds whole."""
    count = 1
    for dim, placement in enumerate(getattr(tensor, "placements", ())):
        if placement.is_shard():
            count *= tensor.device_mesh.size(dim)  # type: ignore[attr-defined]
    return count


def replicas(tensor: Tensor, ranks: Any) -> int:
    """How many ranks hold each element of a tensor.

    Args:
        tensor: a DTensor, or a tensor that is equal on all ranks.
        ranks: the group of ranks.
    """
    return distributed.get_world_size(ranks) // shards(tensor)


def gathered(tensor: Tensor) -> Tensor:
    """A whole DTensor on every rank; all ranks of its mesh must call this."""
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def own_shard(whole: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this rank holds of the DTensor `like`; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    spread = distribute_tensor(
        whole,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )
    return local(spread)


def add_up(sums: Tensor, ranks: Any) -> Tensor:
    """Sums over the shards of all ranks, changed in place."""
    distributed.all_reduce(sums, group=ranks)
    return sums


def check_equal_on_ranks(params: Sequence[Tensor], ranks: Any) -> None:
    """Raise an error unless every rank has parameters of the same shapes.

    Args:
        params: parameters of the optimizer, in order.
        ranks: the group of ranks.

    Raises:
        RuntimeError: where ranks hold different parameters, as under FSDP1 and
            ZeroRedundancyOptimizer. The error is raised on every rank.
    """
    flattened = any(getattr(param, "_fsdp_flattened", False) for param in params)
    shapes = [(tuple(param.shape), str(param.dtype)) for param in params]
    digest = hashlib.sha256(repr((flattened, shapes)).encode()).digest()
    mine = int.from_bytes(digest[:7], "big")
    device = local(params[0]).device
    # the largest digest, the smallest one (as the largest negative), and whether any is FSDP1's
    found = torch.tensor([mine, -mine, int(flattened)], dtype=torch.int64).to(device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=ranks)
    largest, smallest, any_flattened = found.tolist()
    if any_flattened or largest != -smallest:
        raise RuntimeError(
            "the ranks hold different parameters, so they cannot make equal decisions: "
            "FullyShardedDataParallel (FSDP1) and ZeroRedundancyOptimizer are not supported; use "
            "torch.distributed.fsdp.fully_shard (FSDP2) or DistributedDataParallel, or pass "
            "process_group=False to let every rank decide alone"
        )
