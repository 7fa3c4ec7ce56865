"""Gradients -> LayerStats: the per-layer statistics that a policy's observation is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.layers import Layout
from lr_gym.types import LayerStats
from lr_gym.update import BaseRule, MomentScale, advanced_moments, direction

__all__ = ["measure"]


def _square_sum(x: Tensor) -> Tensor:
    """Sum of squares over all but the first dimension: (B,)."""
    return x.square() if x.ndim == 1 else torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim))).square()


def _total(x: Tensor) -> Tensor:
    """Sum over all but the first dimension: (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def measure(
    rule: BaseRule,
    layout: Layout,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor | None],
    scale: MomentScale,
    momentum: Tensor,
    weights: Sequence[float] | None = None,
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
        weights: per tensor how many elements each of its elements stands for, 1 by default; more for a sample.
    """
    ahead = scale.advanced(rule, momentum)
    sums: list[Tensor] = []
    for i, (param, grad, first, second) in enumerate(zip(params, grads, firsts, seconds, strict=True)):
        next_first, next_second = advanced_moments(rule, grad, first, second, momentum[:, i])
        way = direction(rule, next_first, next_second, MomentScale(ahead.mass[:, i], ahead.second[:, i]))
        grad_square = _square_sum(grad)
        second_sum = grad_square if second is None else _total(second)
        values = _square_sum(param), grad_square, _square_sum(first), second_sum, _square_sum(way), _total(grad * first)
        sums.append(torch.stack(values) if weights is None else torch.stack(values) * weights[i])
    table = torch.stack(sums, dim=-1)  # (6, B, n)
    param_square, grad_square, first_square, second_sum, way_square, dots = table
    mass, second_mass = (value.clamp_min(1e-15) for value in (scale.mass, scale.second))
    momentum_square = first_square / mass.square()
    second_moment = second_sum if rule.family == "sgd" else second_sum / second_mass
    update_square = way_square * ahead.factor(rule).square()
    columns = (param_square, grad_square, first_square, momentum_square, second_moment, update_square, dots)
    pooled = layout.pool(torch.stack(columns))
    param_square, grad_square, first_square, momentum_square, second_moment, update_square, dots = pooled
    count = params[0].new_tensor(layout.layer_sizes())
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
