"""How an optimizer walks through the tensors of a model.

Small tensors are stacked and computed together, because there the calls cost more than the
arithmetic. Large tensors are cut into blocks, because there the memory traffic does. The formulas
themselves stand elsewhere and know nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "BLOCK",
    "MAX_BATCH",
    "SMALL",
    "in_blocks",
    "kernel_calls",
    "same_kind_batches",
    "stacked",
    "stacked_or_in_blocks",
    "use_foreach",
]

# Elements of one block. Smaller blocks cost more in calls than they save in memory traffic.
BLOCK = 2**18
# Elements. Above this, copying a tensor into a stack costs more than a call of its own.
SMALL = 2**15
# Tensors in one stack. The bound limits the memory that the copies take.
MAX_BATCH = 64

Item = TypeVar("Item")


def same_kind_batches(
    items: Iterable[Item], size: Callable[[Item], int], kind: Callable[[Item], Hashable]
) -> list[list[Item]]:
    """Group tensors that one call can compute; a large one is a batch of its own.

    Args:
        items: the tensors, or records of them.
        size: gives the number of elements of an item.
        kind: gives what all items of a batch have in common. Items of one kind are all small or
            all large.

    Returns:
        Batches of at most MAX_BATCH items, sorted by kind in the order of first appearance.
    """
    kinds: dict[Hashable, list[Item]] = {}
    for item in items:
        kinds.setdefault(kind(item), []).append(item)
    batches = []
    for members in kinds.values():
        step = MAX_BATCH if size(members[0]) <= SMALL else 1
        batches += [members[i : i + step] for i in range(0, len(members), step)]
    return batches


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors along a new first dimension; shorter vectors are padded with zeros.

    A single tensor is not copied: the result is a view of it, so writing to the result writes to
    the tensor.
    """
    if len(tensors) == 1:
        return tensors[0].unsqueeze(0)
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(list(tensors))
    return nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


def in_blocks(*tensors: Tensor, size: int = 2**17) -> Iterable[tuple[Tensor, ...]]:
    """Cut tensors of one shape into flat blocks that fit a CPU's cache.

    Several operations on a block then read memory once. The blocks are views, so operations in
    place reach the tensors. On an accelerator, or where a tensor is not contiguous, the only block
    is the tensors as they are.

    Args:
        *tensors: tensors of one shape.
        size: elements of a block.
    """
    if all(t.device.type == "cpu" and t.is_contiguous() for t in tensors):
        return zip(*(torch.split(t.view(-1), size) for t in tensors), strict=True)
    return [tensors]


def stacked_or_in_blocks(
    columns: Sequence[Sequence[Tensor]], *, whole: bool
) -> Iterable[list[Tensor]]:
    """Columns of n tensors each as tensors (n, *shape).

    Where n is 1 they come block by block and are views; otherwise they are copies.

    Args:
        columns: for example all parameters, all gradients, all moments.
        whole: never cut a tensor into blocks.
    """
    if len(columns[0]) > 1:
        return [[torch.stack(list(column)) for column in columns]]
    single = [column[0] for column in columns]
    parts = [single] if whole else in_blocks(*single, size=BLOCK)
    return ([tensor.unsqueeze(0) for tensor in part] for part in parts)


def use_foreach(setting: bool | None, params: Sequence[Tensor]) -> bool:
    """Whether one kernel call handles many tensors: `setting`, or the default where that is None.

    The default is True on accelerators, as in torch. On a CPU the plain loop is as fast, and its
    temporaries are as large as one tensor only.
    """
    return all(p.device.type != "cpu" for p in params) if setting is None else setting


def kernel_calls(
    setting: bool | None, params: list[Tensor], *columns: list[Any]
) -> Iterable[list[list[Any]]]:
    """Arguments of the calls that a foreach function takes, for the parameters and more columns.

    Args:
        setting: see `use_foreach`.
        params: n parameters.
        *columns: n values each.

    Returns:
        All columns for one call, or for each parameter its own columns of length 1.
    """
    if use_foreach(setting, params):
        return [[params, *columns]]
    return ([[value] for value in row] for row in zip(params, *columns, strict=True))
