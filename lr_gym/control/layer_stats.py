"""Gradients -> LayerStats: the per-layer statistics that a policy's observation is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.layers import Layout
from lr_gym.types import LayerStats, numbers_like
from lr_gym.updates.rules import MUON_RMS, BaseRule, MomentScale, advanced_moments, direction

__all__ = ["measure", "pooled", "tensor_sums"]


def _square_sum(x: Tensor) -> Tensor:
    """Sum of squares over all but the first dimension: (B,)."""
    return (
        x.square()
        if x.ndim == 1
        else torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim))).square()
    )


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
    scale: MomentScale,
) -> Tensor:
    """What the statistics of a layer are made of, for one tensor of each of B runs, or B tensors of one shape.

    It may be a sample of a tensor, of which no matrix could be made: Muon's update counts as of MUON_RMS, which it is
    where the momentum has full rank, and less elsewhere.

    Args:
        rule: of the tensor.
        param: (B, *shape).
        grad: (B, *shape), pending: it has not joined the moments yet.
        first: (B, *shape) first moment.
        second: (B, *shape) second moment, None but for Adam.
        momentum: (B,).
        scale: masses (B,) of the moments.

    Returns:
        (7, B) sums over the tensor's elements: squares of parameter, gradient, first moment and momentum, which is the
        unbiased first moment; the unbiased second moment; squares of the next update at lr 1; products of gradient and
        first moment.
    """
    ahead = scale.advanced(rule, momentum)
    mass, second_mass = (value.clamp_min(1e-15) for value in (scale.mass, scale.second))
    grad_square, first_square = _square_sum(grad), _square_sum(first)
    second_sum = grad_square if second is None else _total(second) / second_mass
    if rule.family == "muon":
        both = grad_square + first_square
        nominal = MUON_RMS**2 * param[0].numel()
        update_square = torch.where(
            both == 0.0, both, nominal + 0.0 * both
        )  # what is no number stays none
    else:
        moments = advanced_moments(rule, grad, first, second, momentum)
        update_square = _square_sum(direction(rule, *moments, ahead)) * ahead.factor(rule).square()
    momentum_square = first_square / mass.square()
    values = (
        _square_sum(param),
        grad_square,
        first_square,
        momentum_square,
        second_sum,
        update_square,
    )
    return torch.stack([*values, _total(grad * first)])


def pooled(layout: Layout, sums: Tensor) -> LayerStats:
    """Statistics of every layer from the `tensor_sums` (7, B, n) of its tensors.

    Args:
        layout: the layer of each of n tensors, and their sizes.
        sums: (7, B, n).
    """
    param_square, grad_square, first_square, momentum_square, second_moment, update_square, dots = (
        layout.pool(sums)
    )
    count = numbers_like(layout.layer_sizes(), sums)
    length = grad_square.sqrt() * first_square.sqrt()  # the product of the squares may overflow
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
    rules: Sequence[BaseRule],
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
        rules: per tensor, whose next update is measured without weight decay and noise.
        layout: the layer of each of n tensors.
        params: per tensor (B, *shape).
        grads: per tensor (B, *shape), pending: they have not joined the moments yet.
        firsts: per tensor (B, *shape) first moments.
        seconds: per tensor (B, *shape) second moments, None but for Adam.
        scale: masses (B, n) of those moments.
        momentum: (B, n).
    """
    sums = [
        tensor_sums(*tensors, momentum[:, i], MomentScale(scale.mass[:, i], scale.second[:, i]))
        for i, tensors in enumerate(zip(rules, params, grads, firsts, seconds, strict=True))
    ]
    return pooled(layout, torch.stack(sums, dim=-1))
