"""Slot: a parameter of PolicyOptimizer and its place in the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lr_gym.optim.distributed import local, shards
from lr_gym.updates.rule import BaseRule

__all__ = ["Slot", "gradient_of"]


class Slot(NamedTuple):
    """A parameter and its place.

    Attributes:
        param: the parameter.
        group: the parameter group of the optimizer that holds it.
        layer: index of its layer.
        start: number of elements of the model before it; it makes gradient noise differ between
            tensors.
        rule: the base optimizer's rule for it.
    """

    param: Tensor
    group: dict[str, Any]
    layer: int
    start: int
    rule: BaseRule

    @property
    def data(self) -> Tensor:
        """The parameter's values on this rank: a view of its shard where it is sharded."""
        return local(self.param)

    @property
    def sharded(self) -> bool:
        """Whether this rank holds a part of the parameter only."""
        return shards(self.param) > 1


def gradient_of(slot: Slot) -> Tensor:
    """The gradient on this rank to descend along, zeros where the parameter has none.

    Raises:
        RuntimeError: the gradient is sparse.
    """
    grad = slot.param.grad
    if grad is None:
        return torch.zeros_like(slot.data)
    if grad.is_sparse:
        raise RuntimeError("sparse gradients are not supported; use a layer with sparse=False")
    grad = local(grad)
    return -grad if slot.group["maximize"] else grad
