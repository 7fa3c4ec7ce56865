"""FEATURES: what a policy can see of a layer.

Every feature but log_lr is scale-free (a ratio, a cosine, a change), squashed into [-1, 1] and
finite whatever the training does, so that a policy can be moved to layers, losses and learning
rates that it never saw. This table is the only place where features are named: sizes, bounds,
masks, groups and the documentation are derived from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.control.feature import (
    BOTH,
    OF_ENDLESS,
    OF_TASK,
    OPTIONAL,
    Feature,
    Observed,
    column,
    loss_known,
)
from lr_gym.control.memory import log
from lr_gym.control.monitor_features import MONITOR_FEATURES

__all__ = [
    "FEATURES",
    "PEAK_CENTRE",
    "PEAK_WIDTH",
    "check_features",
    "features_of_group",
]

LN_10 = math.log(10.0)
# The features peak_lr and scaled_lr, in decades of the learning rate.
PEAK_CENTRE = -3.0  # log10 of the learning rate at which they are 0
PEAK_WIDTH = 3.5  # from there to where they are 1


def _log10(x: Tensor) -> Tensor:
    return log(x) / LN_10


def _log_update_ratio(o: Observed) -> Tensor:
    """(B, L) log10 of update size over weight size: what the learning rate means to a layer."""
    return (log(o.hyper.lr * o.stats.update_rms) - log(o.stats.param_rms)) / LN_10


def _ratio_among_layers(o: Observed) -> Tensor:
    """(B, L) `_log_update_ratio` minus its mean over the layers that are trained.

    Layers without a gradient have no update to compare with: they are left out and show 0.
    """
    ratio = _log_update_ratio(o)
    trained = (o.stats.grad_rms > 0) & (o.stats.param_rms > 0) & (o.hyper.lr > 0)
    count = trained.sum(1, keepdim=True).clamp_min(1)
    mean = torch.where(trained, ratio, 0.0).sum(1, keepdim=True) / count
    return torch.where(trained, ratio - mean, 0.0)


def _log_snr(o: Observed) -> Tensor:
    return 2.0 * (log(o.stats.momentum_rms) - log(o.stats.second_moment_rms)) / LN_10


def _depth(o: Observed) -> Tensor:
    lr = o.hyper.lr
    return torch.linspace(-1.0, 1.0, lr.shape[1], dtype=lr.dtype, device=lr.device).unsqueeze(0)


def _unscheduled_lr(o: Observed) -> Tensor:
    """(B, L) learning rate without its base schedule, which may be 0 at the end."""
    return o.hyper.lr / column(o.clock.schedule.clamp_min(1e-6))


def _place(lr: Tensor) -> Tensor:
    """Place of a learning rate on the scale of PEAK_CENTRE and PEAK_WIDTH."""
    return (_log10(lr) - PEAK_CENTRE) / PEAK_WIDTH


def _learning_rate(y: float) -> float:
    """The learning rate at a place: the inverse of `_place`."""
    return float(10.0 ** (PEAK_WIDTH * y + PEAK_CENTRE))


def _passes_made(o: Observed) -> Tensor:
    return o.clock.step * o.context.passes / o.clock.horizon


def _inverse_tanh_log10(y: float) -> float:
    """The x of y = tanh(log10 x), as far as a y near -1 or 1 still tells it."""
    return float(10.0 ** math.atanh(max(-0.9999, min(y, 0.9999))))


FEATURES: dict[str, Feature] = {
    "update_ratio": Feature(
        lambda o: torch.tanh((_log_update_ratio(o) + 2.5) / 1.5),
        "log10 of rms(next update) / rms(weights), centred on 10^-2.5",
        needs_stats=True,
    ),
    "update_ratio_among_layers": Feature(
        lambda o: torch.tanh(_ratio_among_layers(o)),
        "update_ratio minus its mean over the layers that are trained",
        needs_stats=True,
    ),
    "grad_trend": Feature(
        lambda o: torch.tanh(log(o.stats.grad_rms) - o.memory.log_grad),
        "log of rms(gradient) over its running geometric mean",
        needs_stats=True,
    ),
    "cosine": Feature(
        lambda o: o.stats.cosine,
        "cosine of pending gradient and momentum",
        needs_stats=True,
    ),
    "snr": Feature(
        lambda o: torch.tanh((_log_snr(o) + 0.8) / 0.5),
        "log10 of |m|^2 / v: signal over noise of the gradient across steps",
        needs_stats=True,
    ),
    "weight_growth": Feature(
        lambda o: torch.tanh(2.0 * (log(o.stats.param_rms) - log(o.memory.initial_param_rms))),
        "log of rms(weights) over its value at the start",
        needs_stats=True,
    ),
    "loss_ratio": Feature(
        lambda o: column(torch.tanh((o.memory.short_loss - log(o.memory.initial_loss)) / 2.0)),
        "log of the recent loss over the first one",
        "loss",
    ),
    "loss_trend": Feature(
        lambda o: column(torch.tanh(4.0 * (o.memory.short_loss - o.memory.long_loss))),
        "short minus long running mean of the log loss",
        "loss",
    ),
    "loss_change": Feature(
        lambda o: column(torch.tanh(4.0 * o.memory.loss_change)),
        "log of the last interval's mean loss over the one before",
        "loss",
    ),
    "loss_excess": Feature(
        lambda o: column(torch.tanh(4.0 * (o.memory.short_loss - o.memory.slow_loss))),
        "short minus slow running mean of the log loss: high for a while after the data changed",
        "loss",
        groups=OPTIONAL,
    ),
    "loss_surprise": Feature(
        lambda o: column(torch.tanh(o.memory.surprise / 3.0)),
        "loss_change over the usual size of such changes: tells a change from noise",
        "loss",
        groups=OPTIONAL,
    ),
    "loss_noise": Feature(
        lambda o: column(torch.tanh(torch.log(o.memory.change_size + 1e-6) / 4.0 + 1.0)),
        "log of the usual size of loss_change",
        "loss",
        groups=OPTIONAL,
    ),
    "depth": Feature(_depth, "position of the layer, -1 for the first and 1 for the last"),
    "progress": Feature(
        lambda o: column(2.0 * o.clock.progress - 1.0),
        "step over horizon, from -1 to 1",
        "progress",
    ),
    "remaining": Feature(
        lambda o: column(1.0 + torch.log(1.02 - o.clock.progress) / 2.0),
        "log of what is left of the training: resolves its end",
        "progress",
    ),
    "loss_known": Feature(
        lambda o: column(loss_known(o)),
        "1 where the loss features are shown, 0 where masked or where the first loss was not above "
        "0",
        groups=BOTH,
    ),
    "progress_known": Feature(
        lambda o: column(o.context.progress_known),
        "1 where the progress features are shown, 0 where masked",
        groups=BOTH,
        says_end_known=True,
    ),
    "last_action_lr": Feature(lambda o: o.action[..., 0], "the last action on the lr"),
    "momentum": Feature(
        lambda o: torch.tanh(torch.log10((1.0 - o.hyper.momentum).clamp_min(1e-4)) + 1.0),
        "log10 of 1 - momentum, centred on momentum 0.9",
        groups=OPTIONAL,
    ),
    "noise": Feature(
        lambda o: o.hyper.noise.clamp(0.0, 1.0),
        "gradient noise over gradient, rms",
        groups=OPTIONAL,
    ),
    "log_lr": Feature(
        lambda o: torch.tanh((_log10(o.hyper.lr) + 3.0) / 2.0),
        "log10 of the learning rate: not scale-free, does not transfer to other parameterisations",
        groups=OPTIONAL,
    ),
    "peak_lr": Feature(
        lambda o: _place(_unscheduled_lr(o)),
        "log10 of the learning rate without the base schedule, linear within 10^-6.5..10^0.5",
        quantity=("learning rate of layer {layer}", _learning_rate),
        groups=OPTIONAL,
    ),
    "scaled_lr": Feature(
        lambda o: _place(_unscheduled_lr(o) / o.context.units),
        "log10 of the learning rate over its unit, without the base schedule, linear within "
        "10^-6.5..10^0.5",
        quantity=("learning rate of layer {layer} over its unit", _learning_rate),
        groups=OF_TASK,
    ),
    "loss_level": Feature(
        lambda o: column(torch.tanh(o.memory.short_loss / LN_10)),
        "log10 of the recent loss, in whatever units it has",
        "loss",
        quantity=("recent loss", _inverse_tanh_log10),
        groups=OPTIONAL,
    ),
    "first_loss": Feature(
        lambda o: column(torch.tanh(_log10(o.memory.initial_loss))),
        "log10 of the first loss, in whatever units it has; unlike loss_level, later actions "
        "cannot move it",
        "loss",
        quantity=("first loss", _inverse_tanh_log10),
        groups=OF_TASK,
    ),
    "model_size": Feature(
        lambda o: column(_log10(o.context.sizes.sum(1)) / 4.0 - 1.0),
        "log10 of the number of parameters, centred on 10^4",
        quantity=("parameters", lambda y: 10.0 ** (4.0 * (y + 1.0))),
        given=True,
        # a policy that sees learning rates in units knows what the size of the model does to them
        judged=False,
        groups=OF_TASK,
    ),
    "horizon": Feature(
        lambda o: column(_log10(o.clock.horizon) / 3.0 - 1.0),
        "log10 of the steps of the training, centred on 10^3",
        "progress",
        quantity=("total_steps", lambda y: 10.0 ** (3.0 * (y + 1.0))),
        given=True,
        groups=OF_TASK,
    ),
    "passes": Feature(
        lambda o: column(_log10(o.context.passes) / 3.0),
        "log10 of the passes over the data, all in all: where there are many, networks memorise",
        "passes",
        quantity=("passes over the data", lambda y: 10.0 ** (3.0 * y)),
        given=True,
        groups=OF_TASK,
    ),
    "passes_known": Feature(
        lambda o: column(o.context.passes_known * o.context.progress_known),
        "1 where passes are shown, 0 where masked",
        groups=OF_TASK,
        says_end_known=True,
    ),
    "steps": Feature(
        lambda o: column(torch.log10(1.0 + o.clock.step) / 2.0 - 1.0),
        "log10 of the steps made, centred on 10^2: all that is known of the time where the end is "
        "not",
        quantity=("steps made", lambda y: 10.0 ** (2.0 * (y + 1.0)) - 1.0),
        groups=OF_ENDLESS,
    ),
    "passes_made": Feature(
        lambda o: column(torch.log10(0.01 + _passes_made(o)) / 3.0),
        "log10 of the passes over the data so far",
        "epoch",
        quantity=("passes over the data so far", lambda y: 10.0 ** (3.0 * y) - 0.01),
        groups=OF_ENDLESS,
    ),
    "epoch_known": Feature(
        lambda o: column(o.context.passes_known),
        "1 where passes so far are shown, 0 where masked",
        groups=OF_ENDLESS,
    ),
    **MONITOR_FEATURES,
}


def features_of_group(group: str) -> tuple[str, ...]:
    """Names of the features of a group, in the order of FEATURES.

    >>> features_of_group("endless")
    ('steps', 'passes_made', 'epoch_known')
    """
    return tuple(name for name, feature in FEATURES.items() if group in feature.groups)


def check_features(features: Sequence[str]) -> tuple[str, ...]:
    """Return `features` as a tuple of names of FEATURES.

    Raises:
        ValueError: for no name or an unknown one, with the list of valid ones.
    """
    if not features:
        raise ValueError(f"features is empty; choose from {', '.join(FEATURES)}")
    for name in features:
        if name not in FEATURES:
            raise ValueError(f"unknown feature {name!r}; choose from {', '.join(FEATURES)}")
    return tuple(features)
