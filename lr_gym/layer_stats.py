"""Gradients -> LayerStats: the per-layer statistics that a policy's observation is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.layers import Layout
from lr_gym.types import LayerStats, numbers_like
from lr_gym.update import BaseRule, MomentScale, advanced_moments, direction

__all__ = ["measure", "pooled", "tensor_sums"]


def _square_sum(x: Tensor) -> Tensor:
    """Sum of squares over all but the first dimension: (B,)."""
    return x.square() if x.ndim == 1 else torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim))).square()


def _total(x: Tensor) -> Tensor:
    """Sum over all but the first dimension: (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def tensor_sums(
    rule: BaseRule,
    param: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor | None,
    momentum: Tensor,
    ahead: MomentScale,
) -> Tensor:
    """What the statistics of a layer are made of, for one tensor of each of B runs, or B tensors of one shape.

    Args:
        rule: the base optimizer.
        param: (B, *shape).
        grad: (B, *shape), pending: it has not joined the moments yet.
        first: (B, *shape) first moment.
        second: (B, *shape) second moment, None for SGD.
        momentum: (B,).
        ahead: masses (B,) of the moments once the gradient has joined them.

    Returns:
        (6, B) sums over the tensor's elements: squares of parameter, gradient and first moment; second moment; squares
        of the direction of the next update; products of gradient and first moment.
    """
    next_first, next_second = advanced_moments(rule, grad, first, second, momentum)
    way = direction(rule, next_first, next_second, ahead)
    grad_square = _square_sum(grad)
    second_sum = grad_square if second is None else _total(second)
    values = _square_sum(param), grad_square, _square_sum(first), second_sum, _square_sum(way), _total(grad * first)
    return torch.stack(values)


def pooled(rule: BaseRule, layout: Layout, sums: Tensor, scale: MomentScale, ahead: MomentScale) -> LayerStats:
    """Statistics of every layer from the `tensor_sums` (6, B, n) of its tensors.

    Args:
        rule: the base optimizer.
        layout: the layer of each of n tensors, and their sizes.
        sums: (6, B, n).
        scale: masses (B, n) of the moments.
        ahead: the same once the gradients have joined them.
    """
    param_square, grad_square, first_square, second_sum, way_square, dots = sums
    mass, second_mass = (value.clamp_min(1e-15) for value in (scale.mass, scale.second))
    momentum_square = first_square / mass.square()
    second_moment = second_sum if rule.family == "sgd" else second_sum / second_mass
    update_square = way_square * ahead.factor(rule).square()
    columns = (param_square, grad_square, first_square, momentum_square, second_moment, update_square, dots)
    param_square, grad_square, first_square, momentum_square, second_moment, update_square, dots = layout.pool(
        torch.stack(columns)
    )
    count = numbers_like(layout.layer_sizes(), sums)
    length = (grad_square * first_square).sqrt()
    cosine = torch.where(length > 0, dots / length, torch.zeros_like(length)).clamp(-1.0, 1.0)
    return LayerStats(
        param_rms=(param_square / count).sqrt(),
        grad_rms=(grad_square / count).sqrt(),
        momentum_rms=(momentum_square / count).sqrt(),
        second_moment_rms=(second_moment / count).sqrt(),
        update_rms=(update_square / count).sqrt(),
        cosine=cosine,
    )


def measure(
    rule: BaseRule,
    layout: Layout,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor | None],
    scale: MomentScale,
    momentum: Tensor,
) -> LayerStats:
    """Measure every layer, changing nothing.

    Args:
        rule: the base optimizer, whose next update is measured without weight decay and noise.
        layout: the layer of each of n tensors.
        params: per tensor (B, *shape).
        grads: per tensor (B, *shape), pending: they have not joined the moments yet.
        firsts: per tensor (B, *shape) first moments.
        seconds: per tensor (B, *shape) second moments, None for SGD.
        scale: masses (B, n) of those moments.
        momentum: (B, n).
    """
    ahead = scale.advanced(rule, momentum)
    sums = [
        tensor_sums(rule, *tensors, momentum[:, i], MomentScale(ahead.mass[:, i], ahead.second[:, i]))
        for i, tensors in enumerate(zip(params, grads, firsts, seconds, strict=True))
    ]
    return pooled(rule, layout, torch.stack(sums, dim=-1), scale, ahead)
