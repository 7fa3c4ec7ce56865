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
    scales: Sequence[MomentScale],
    momenta: Sequence[Tensor],
    weights: Sequence[float] | None = None,
) -> LayerStats:
    """Measure every layer, changing nothing.

    Args:
        rule: the base optimizer, whose next update is measured without weight decay and noise.
        layout: the layer of each tensor.
        params: per tensor (B, *shape).
        grads: per tensor (B, *shape), pending: they have not joined the moments yet.
        firsts: per tensor (B, *shape) first moments.
        seconds: per tensor (B, *shape) second moments, None for SGD.
        scales: per tensor masses of those moments.
        momenta: per tensor (B,) momentum.
        weights: per tensor how many elements each of its elements stands for, 1 by default; more for a sample.
    """
    sums: list[list[Tensor]] = [[] for _ in range(7)]
    for i, (param, grad, first, second, scale, momentum) in enumerate(
        zip(params, grads, firsts, seconds, scales, momenta, strict=True)
    ):
        mass = scale.mass.clamp_min(1e-15)
        grad_square = _square_sum(grad)
        second_sum = grad_square if second is None else _total(second)
        second_mass = torch.ones_like(mass) if second is None else scale.second.clamp_min(1e-15)
        first_square = _square_sum(first)
        next_first, next_second = advanced_moments(rule, grad, first, second, momentum)
        way, factor = direction(rule, next_first, next_second, scale.advanced(rule, momentum))
        for column, value in zip(
            sums,
            (
                _square_sum(param),
                grad_square,
                first_square,
                first_square / mass.square(),
                second_sum / second_mass,
                _square_sum(way) * (factor * factor),
                _total(grad * first),
            ),
            strict=True,
        ):
            column.append(value if weights is None else value * weights[i])

    count = params[0].new_tensor(layout.layer_sizes())
    param_square, grad_square, first_square, momentum_square, second_sum, update_square, dots = map(layout.pool, sums)
    length = (grad_square * first_square).sqrt()
    cosine = torch.where(length > 0, dots / length, torch.zeros_like(length)).clamp(-1.0, 1.0)
    return LayerStats(
        param_rms=(param_square / count).sqrt(),
        grad_rms=(grad_square / count).sqrt(),
        momentum_rms=(momentum_square / count).sqrt(),
        second_moment_rms=(second_sum / count).sqrt(),
        update_rms=(update_square / count).sqrt(),
        cosine=cosine,
    )
