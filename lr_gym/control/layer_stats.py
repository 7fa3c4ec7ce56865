"""Gradients -> LayerStats: the statistics of each layer that a policy's observation is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.layers import Layout
from lr_gym.types import LayerStats, numbers_like
from lr_gym.updates.muon import MUON_RMS
from lr_gym.updates.rule import BaseRule, MomentMasses

__all__ = ["layer_statistics", "measure", "pooled", "tensor_sums"]

# A mass is 0 before the first step; the moment is then 0 too, and 0 over this is 0.
SMALLEST_MASS = 1e-15


def _square_sum(x: Tensor) -> Tensor:
    """Sum of squares over all but the first dimension: (B,)."""
    if x.ndim == 1:
        return x.square()
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)))
    return norm.square()


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
    masses: MomentMasses,
) -> Tensor:
    """Sums over one tensor's elements, from which `pooled` makes the statistics of its layer.

    The first dimension holds B runs, or B tensors of one shape in one run. The tensors may also be
    samples of larger ones (`optim/sampling.py`).

    Args:
        rule: update rule of the tensor.
        param: (B, *shape) parameters.
        grad: (B, *shape) pending gradient, which has not joined the moments yet.
        first: (B, *shape) first moment.
        second: (B, *shape) second moment; None for all rules but Adam.
        momentum: (B,) mu or beta1.
        masses: masses (B,) of the moments.

    Returns:
        (7, B) sums: squares of the parameters, of the gradient, of the first moment, and of the
        bias-corrected first moment; the bias-corrected second moment; squares of the next update at
        lr 1; products of gradient and first moment.
    """
    first_mass = masses.first.clamp_min(SMALLEST_MASS)
    second_mass = masses.second.clamp_min(SMALLEST_MASS)
    grad_square = _square_sum(grad)
    first_square = _square_sum(first)
    second_sum = grad_square if second is None else _total(second) / second_mass
    if rule.family == "muon":
        # A sample is no matrix, so Muon's update is not computed. Its root mean square is MUON_RMS
        # where the first moment has full rank, and less elsewhere.
        both = grad_square + first_square
        nominal = MUON_RMS**2 * param[0].numel()
        # 0 * both is 0, or NaN where a gradient is not finite, which must stay visible.
        update_square = torch.where(both == 0.0, both, nominal + 0.0 * both)
    else:
        next_masses = rule.next_masses(masses, momentum)
        next_first, next_second = rule.next_moments(grad, first, second, momentum)
        direction = rule.direction(next_first, next_second, next_masses)
        update_square = _square_sum(direction) * rule.factor(next_masses).square()
    return torch.stack(
        [
            _square_sum(param),
            grad_square,
            first_square,
            first_square / first_mass.square(),
            second_sum,
            update_square,
            _total(grad * first),
        ]
    )


def pooled(layout: Layout, sums: Tensor) -> LayerStats:
    """The statistics of every layer from the sums of its tensors.

    Args:
        layout: the layer of each of n tensors, and their sizes.
        sums: (7, B, n) sums of each tensor.

    Returns:
        Statistics (B, L).
    """
    return layer_statistics(layout.pool(sums), numbers_like(layout.layer_sizes(), sums))


def layer_statistics(sums: Tensor, count: Tensor) -> LayerStats:
    """Statistics from the `tensor_sums` of whole layers.

    Args:
        sums: (7, B, L) sums over the elements of each layer.
        count: (L,) number of elements of each layer, at least 1.

    Returns:
        Statistics (B, L).
    """
    param_square, grad_square, first_square, momentum_square, second_moment, update_square, dots = (
        sums
    )
    # The root of the product of the squares would be one operation less, but it may overflow.
    length = grad_square.sqrt() * first_square.sqrt()
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
    masses: MomentMasses,
    momentum: Tensor,
) -> LayerStats:
    """Measure every layer, changing nothing.

    Args:
        rules: update rule of each of n tensors. The next update is measured without weight decay
            and noise.
        layout: the layer of each tensor, and their sizes.
        params: per tensor (B, *shape).
        grads: per tensor (B, *shape) pending gradients, which have not joined the moments yet.
        firsts: per tensor (B, *shape) first moments.
        seconds: per tensor (B, *shape) second moments; None for all rules but Adam.
        masses: masses (B, n) of the moments.
        momentum: (B, n) mu or beta1 of each tensor.

    Returns:
        Statistics (B, L).
    """
    sums = []
    for i, tensors in enumerate(zip(rules, params, grads, firsts, seconds, strict=True)):
        own_masses = MomentMasses(masses.first[:, i], masses.second[:, i])
        sums.append(tensor_sums(*tensors, momentum[:, i], own_masses))
    return pooled(layout, torch.stack(sums, dim=-1))
