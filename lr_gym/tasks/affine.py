"""Affine maps of B runs at once, each run with its own weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["affine"]


class _Affine(torch.autograd.Function):
    """baddbmm, but the weight's gradient comes out contiguous.

    The update goes through gradients and weights side by side, so both need the same layout.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        grad_x = torch.bmm(grad, weight) if ctx.needs_input_grad[0] else None
        return grad_x, torch.bmm(grad.transpose(1, 2), x), grad.sum(1)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply each run's inputs by its weights and add its bias.

    Args:
        x: (B, n, i).
        weight: (B, o, i).
        bias: (B, o), or None for none.

    Returns:
        (B, n, o).
    """
    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
    out: Tensor = _Affine.apply(x, weight, bias)
    return out
