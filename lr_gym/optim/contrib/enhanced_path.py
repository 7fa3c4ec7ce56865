"""The path of EnhancedSGD's gradients up to the update, as functions of the pending gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lr_gym.optim.contrib.enhanced_options import EnhancedOptions
from lr_gym.optim.contrib.enhanced_signals import Signals
from lr_gym.optim.contrib.gradient_entropy import Distribution, distribution
from lr_gym.optim.contrib.gradient_shaping import (
    blended_with_kept,
    centred,
    check_whole_rows,
    entropy_factor,
    kept_average,
    noisy,
    total_norm,
    variance_factor,
)
from lr_gym.optim.contrib.noise import NoiseSource
from lr_gym.optim.contrib.pooling import averaged

__all__ = ["Factors", "Pending", "shaped", "watched"]


class Factors(NamedTuple):
    """What the step multiplies for each of T tensors.

    Attributes:
        gradient: (T,) factor on the gradient.
        lr: (T,) factor on the learning rate.
    """

    gradient: Tensor
    lr: Tensor


class Pending(NamedTuple):
    """The gradients of T tensors at one step.

    Attributes:
        params: the T parameters, which may be sharded.
        grads: their gradients, what this rank holds of them.
        places: index of each among all parameters of the model.
        ranks: the group of ranks that make the step together, None for this process alone.
    """

    params: Sequence[Tensor]
    grads: list[Tensor]
    places: Sequence[int]
    ranks: Any | None


def shaped(
    pending: Pending,
    states: Mapping[Tensor, dict[str, Any]],
    signals: Signals,
    noise: NoiseSource,
    options: EnhancedOptions,
    step: int,
) -> tuple[list[Tensor], Factors, Distribution]:
    """Process the gradients of T tensors one by one.

    Args:
        pending: the gradients.
        states: state of each parameter, with the averages of the kept gradients.
        signals: what the gradients are compared with, which they join.
        noise: the generators.
        options: features and their constants.
        step: number of this step, from 1.

    Returns:
        New gradients, factors (T,) on the device of the first parameter, and the distribution of
        the gradients, which is meaningless at steps that do not watch it.
    """
    params = pending.params
    ones = torch.ones(len(params), device=params[0].device)
    factors = Factors(ones, ones)
    found = Distribution(ones, ones)
    if options.gradient_centering:
        check_whole_rows(params)
        pending = pending._replace(grads=[centred(grad) for grad in pending.grads])
    grads = pending.grads
    if options.watches_distribution_at(step):
        found = distribution(grads, params, pending.ranks)
        grads, factors = _adjusted(pending, states, signals, found, factors, options)
    if options.noise_scale:
        grads = noisy(grads, params, noise, options.noise_scale, pending.ranks)
    return grads, factors, found


def _adjusted(
    pending: Pending,
    states: Mapping[Tensor, dict[str, Any]],
    signals: Signals,
    found: Distribution,
    factors: Factors,
    options: EnhancedOptions,
) -> tuple[list[Tensor], Factors]:
    """Compare the distribution of the gradients with what it was, and act on the difference."""
    grads = pending.grads
    mean_entropy = signals.compare("entropy", found.entropy, pending.places)
    mean_variance = signals.compare("variance", found.variance, pending.places)
    if options.gradient_buffer_size:
        keep = (found.entropy > mean_entropy).unbind()
        grads = [
            blended_with_kept(grad, *kept_average(states[p], p), k, options.gradient_buffer_size)
            for grad, p, k in zip(grads, pending.params, keep, strict=True)
        ]
    if options.entropy_adjustment:
        factors = Factors(
            entropy_factor(found.entropy, mean_entropy),
            variance_factor(found.variance, mean_variance),
        )
    return grads, factors


def watched(
    pending: Pending, signals: Signals, options: EnhancedOptions, factors: Factors, loss: Any
) -> tuple[Factors, Tensor]:
    """Clip by the norm of all gradients, and look for a spike of the loss.

    Args:
        pending: the gradients, shaped.
        signals: the moments of norm and loss, which join them.
        options: features and their constants.
        factors: factors (T,) so far.
        loss: the loss of this rank, which is to fall; None where there is none.

    Returns:
        The factors, and what is to fall (): the loss, or the norm where there is no loss.
    """
    device = factors.gradient.device
    signal = torch.zeros((), device=device)
    if options.gradient_clipping or (options.q_learning and loss is None):
        signal = total_norm(pending.grads, pending.params, device, pending.ranks)
    if options.gradient_clipping:
        factors = factors._replace(gradient=factors.gradient * signals.clipped(signal))
    if loss is not None:
        signal = torch.as_tensor(loss).detach().to(device, torch.float32).reshape(())
        if options.loss_correction_factor < 1:
            signal = averaged(signal, pending.ranks)
            signals.watch_loss(signal)
    return factors, signal
