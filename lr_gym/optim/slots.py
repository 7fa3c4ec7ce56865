"""Slot: a parameter of PolicyOptimizer and its place in the model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

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


def gradient_of(slot: Slot) -> Tensor:
    """The gradient to descend along, zeros where the parameter has none.

    Raises:
        RuntimeError: the gradient is sparse.
    """
    grad = slot.param.grad
    if grad is None:
        return torch.zeros_like(slot.param)
    if grad.is_sparse:
        raise RuntimeError("sparse gradients are not supported; use a layer with sparse=False")
    return -grad if slot.group["maximize"] else grad
