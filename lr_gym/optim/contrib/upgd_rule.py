"""The update rule of AdaptiveUPGD: utility-gated perturbed gradient descent on Adam's direction.

Per element, with gradient g, parameter p and bias-corrected averages (Elsayed & Mahmood,
"Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning", ICLR 2024, in its
Adam form):

    u = average of -g p             utility: how much the loss grows, to first order, without p
    gate = 1 - sigmoid(u / max |u|)       maximum over the whole network; useful weights move less
    p -= lr gate (m / (sqrt(v) + eps) + noise)
    noise = sigma xi                                         adaptive_noise=False, as in the source
    noise = std xi / (sqrt(v + std^2) + eps)                 adaptive_noise=True
    std = max(sigma S, min_noise_std)                        S: size of the tensor's gradient

The paper divides by the maximum of u, which reverses the order where every utility is negative; the
maximum of |u| does not. The sigmoid keeps the gate within [0.27, 0.73]: it freezes no weight, and
equal utilities halve the step.

Relative noise joins the gradient's mean before the division, because the Adam direction has no
scale: noise proportional to |g| added after it would vanish as gradients shrink. It is divided by
the second moment that the noisy gradient would have, v + std^2. This differs from sqrt(v) by
sigma^2 / 2 for a typical element; but an element without any gradient, such as one of a dead unit,
has v = 0 and would jump by lr std / eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.batching import in_blocks

__all__ = ["advance_utilities_", "per_utility", "upgd_step_"]

# Largest utilities below this count as this, so that dividing by them stays within float32.
TINY = 1e-30


def advance_utilities_(
    utilities: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    steps: Sequence[int],
    beta: float,
    device: torch.device,
) -> Tensor:
    """Let -g p join the averages, in place.

    Args:
        utilities: n averages.
        params: n parameters.
        grads: n gradients.
        steps: number of gradients in each average, this one included.
        beta: decay of the averages.
        device: where the result is needed.

    Returns:
        The largest bias-corrected |u| (n,) of each; NaN or infinite where one of its elements is.
    """
    largest = []
    for *tensors, step in zip(utilities, params, grads, steps, strict=True):
        found = []
        for utility, param, grad in in_blocks(*tensors):
            utility.mul_(beta).addcmul_(
                param.to(utility.dtype), grad.to(utility.dtype), value=beta - 1
            )
            if utility.numel():  # this rank's shard may be empty
                low, high = utility.aminmax()
                found.append(torch.maximum(-low, high).to(device, torch.float32))
        zero = torch.zeros((), device=device)
        largest.append((torch.stack(found).max() if found else zero) / (1 - beta**step))
    return torch.stack(largest)


def per_utility(largest: Tensor) -> Tensor:
    """1 / max |u|, the factor that scales utilities to [-1, 1]; 0 where all utilities are 0."""
    return torch.where(largest > 0, 1 / largest.clamp_min(TINY), 0.0)


def upgd_step_(
    group: dict[str, Any],
    utility_scale: Tensor,
    steps: Sequence[int],
    stds: Sequence[Tensor | float],
    params: list[Tensor],
    grads: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    utilities: list[Tensor],
    noises: list[Tensor] | None = None,
) -> None:
    """Update the moments and parameters of n tensors, in place.

    Both bias corrections are folded: with a = 1 - beta1^t and c = sqrt(1 - beta2^t), the Adam
    direction is c / a * m / (sqrt(v) + eps c).

    Args:
        group: options; its lr may be a tensor.
        utility_scale: `per_utility` of the network.
        steps: number of gradients in each average, these included.
        stds: n stds of the noise, numbers or tensors without dimensions.
        params: n parameters; those of a narrower dtype than the averages are computed in theirs.
        grads: n gradients.
        firsts: n first moments, not bias-corrected, like all averages here.
        seconds: n second moments.
        utilities: n averages that the gradients have joined.
        noises: n tensors of noise with these stds, which are overwritten; None for no noise.
    """
    beta1, beta2 = group["betas"]
    narrow = params
    # A tensor that has the right dtype is not copied.
    params = [param.to(first.dtype) for param, first in zip(params, firsts, strict=True)]
    grads = [grad.to(first.dtype) for grad, first in zip(grads, firsts, strict=True)]
    if noises is not None:
        noises = [noise.to(first.dtype) for noise, first in zip(noises, firsts, strict=True)]
    first_bias = [1 - beta1**step for step in steps]  # a
    second_bias = [(1 - beta2**step) ** 0.5 for step in steps]  # c
    torch._foreach_lerp_(firsts, grads, 1 - beta1)
    torch._foreach_mul_(seconds, beta2)
    torch._foreach_addcmul_(seconds, grads, grads, 1 - beta2)
    moved = _gates(utilities, utility_scale, steps, group["utility_beta"])
    roots = list(torch._foreach_sqrt(seconds))
    torch._foreach_add_(roots, [group["eps"] * c for c in second_bias])
    if noises is not None:
        firsts = _noisy(group, noises, firsts, seconds, roots, stds, first_bias, second_bias)
    torch._foreach_mul_(moved, firsts)
    if group["weight_decay"] != 0:
        kept = 1 - group["lr"] * group["weight_decay"]
        torch._foreach_mul_(params, kept.reshape(()) if isinstance(kept, Tensor) else kept)
    sizes = [-group["lr"] * c / a for a, c in zip(first_bias, second_bias, strict=True)]
    if isinstance(group["lr"], Tensor):
        torch._foreach_mul_(moved, [size.reshape(()) for size in sizes])
        torch._foreach_addcdiv_(params, moved, roots)
    else:
        torch._foreach_addcdiv_(params, moved, roots, sizes)
    for wide, param in zip(params, narrow, strict=True):
        if wide is not param:
            param.copy_(wide)


def _gates(
    utilities: list[Tensor], utility_scale: Tensor, steps: Sequence[int], beta: float
) -> list[Tensor]:
    """1 - sigmoid(u / max |u|), which is sigmoid(-u / max |u|), of bias-corrected utilities."""
    factors = [
        -utility_scale.to(u.device) / (1 - beta**step)
        for u, step in zip(utilities, steps, strict=True)
    ]
    gates = list(torch._foreach_mul(utilities, factors))
    torch._foreach_sigmoid_(gates)
    return gates


def _noisy(
    group: dict[str, Any],
    noises: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    roots: list[Tensor],
    stds: Sequence[Tensor | float],
    first_bias: Sequence[float],
    second_bias: Sequence[float],
) -> list[Tensor]:
    """First moments with the noise in them, in the memory of `noises`.

    The noise is multiplied by a / c (sqrt(v) + eps c) before it joins m. The division of the
    update undoes this factor, so that noise arrives as the formula says.
    """
    factors = [a / c for a, c in zip(first_bias, second_bias, strict=True)]
    if group["adaptive_noise"]:
        squares: list[Any] = [(c * std) ** 2 for std, c in zip(stds, second_bias, strict=True)]
        widths = torch._foreach_add(seconds, squares)
        torch._foreach_sqrt_(widths)
        torch._foreach_add_(widths, [group["eps"] * c for c in second_bias])
        torch._foreach_div_(noises, widths)
        factors = list(first_bias)  # the width has one c in it already
    torch._foreach_mul_(noises, roots)
    torch._foreach_mul_(noises, factors)
    torch._foreach_add_(noises, firsts)
    return noises
