"""Momentum SGD whose hyperparameters are tensors, one value for each parameter tensor."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sgd_step_"]


def sgd_step_(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor],
    momenta: list[Tensor],
    lrs: list[Tensor],
    *,
    lr_scale: float | Tensor,
    weight_decay: float,
    decay_factors: list[Tensor] | None = None,
    grad_factors: list[Tensor] | None = None,
) -> None:
    """Update parameters and momentum buffers as `torch.optim.SGD` does, in place.

        buf = momentum buf + grad_factor g + weight_decay decay_factor p,    p -= lr_scale lr buf

    `lr_gym.updates.rules.step_` is the same rule for stacked runs. It adds the decayed weights to
    the gradient first, so the two differ by rounding, and it has no form for lists of tensors.

    Args:
        params: n parameters.
        grads: n gradients, which are not written to.
        buffers: n momentum buffers.
        momenta: n tensors without dimensions.
        lrs: n tensors without dimensions.
        lr_scale: factor on all of `lrs`, a number or a tensor of one element.
        weight_decay: coefficient of L2 weight decay.
        decay_factors: n tensors without dimensions; None for factors of 1.
        grad_factors: n tensors without dimensions; None for factors of 1.
    """
    torch._foreach_mul_(buffers, momenta)
    if grad_factors is None:
        torch._foreach_add_(buffers, grads)
    else:
        torch._foreach_addcmul_(buffers, grads, grad_factors)
    if weight_decay != 0:
        if decay_factors is None:
            torch._foreach_add_(buffers, params, alpha=weight_decay)
        else:
            torch._foreach_addcmul_(buffers, params, decay_factors, weight_decay)
    if isinstance(lr_scale, Tensor):
        lrs = [lr * lr_scale.reshape(()) for lr in lrs]
        lr_scale = 1.0
    torch._foreach_addcmul_(params, buffers, lrs, -lr_scale)
