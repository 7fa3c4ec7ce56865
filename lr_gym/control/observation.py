"""FEATURES: what a policy sees of one layer, and the running memory that some of it needs.

Every feature but log_lr is scale-free (a ratio, a cosine, a change), squashed into [-1, 1] and
finite whatever the training does, so that a policy can be moved to layers, losses and learning
rates that it never saw. The table is the only place where a feature is named: sizes, bounds, masks
and the documentation are read off it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.types import Hyperparams, LayerStats

__all__ = [
    "DEFAULT_FEATURES",
    "ENDLESS_FEATURES",
    "FEATURES",
    "PEAK_CENTRE",
    "PEAK_WIDTH",
    "TASK_FEATURES",
    "Feature",
    "Memory",
    "Observed",
    "TrainingContext",
    "check_features",
    "empty_memory",
    "observe",
    "remember",
]

TINY = 1e-20  # keeps logarithms finite; far below any rms of a training that is alive
LN_10 = math.log(10.0)
PEAK_CENTRE, PEAK_WIDTH = -3.0, 3.5  # decades of the feature peak_lr
SHORT, LONG = 0.5, 0.1  # weight of the newest decision in the short and the long running mean


class Memory(NamedTuple):
    """What is remembered from decision to decision; float, updated by `remember` only.

    Attributes:
        loss_seen: (B,) 1 once a loss was given, else 0.
        initial_loss: (B,) the first loss given.
        last_loss: (B,) mean loss of the interval before this decision.
        loss_change: (B,) log of that over the interval before it.
        short_loss: (B,) running mean of the log loss, newest weighs SHORT.
        long_loss: (B,) the same, newest weighs LONG.
        initial_param_rms: (B, L) when first seen to be positive.
        log_grad: (B, L) running mean of log grad_rms, newest weighs LONG.
        initial_grad_rms: (B, L) at the first decision at which a run had a gradient.
    """

    loss_seen: Tensor
    initial_loss: Tensor
    last_loss: Tensor
    loss_change: Tensor
    short_loss: Tensor
    long_loss: Tensor
    initial_param_rms: Tensor
    log_grad: Tensor
    initial_grad_rms: Tensor


class TrainingContext(NamedTuple):
    """What is known of a training as a whole; every tensor has a row per run.

    Attributes:
        progress: (B,) step over horizon, in [0, 1].
        schedule: (B,) factor of the base schedule now.
        step: (B,) inner steps made.
        horizon: (B,) inner steps in all.
        passes: (B,) passes over the training data in all.
        sizes: (B, L) parameters of each layer that learn, how many.
        elements: (B, L) parameters of each layer, frozen ones too: those that its statistics are
            over.
        loss_known: (B,) 1 where the features of the loss are shown, 0 where they are masked.
        progress_known: (B,) the same for the features of progress and horizon.
        passes_known: (B,) the same for the passes over the data; those in all need progress as
            well.
    """

    progress: Tensor
    schedule: Tensor
    step: Tensor
    horizon: Tensor
    passes: Tensor
    sizes: Tensor
    elements: Tensor
    loss_known: Tensor
    progress_known: Tensor
    passes_known: Tensor


class Observed(NamedTuple):
    """Everything that a feature may look at when a decision is due.

    Attributes:
        stats: per-layer statistics of the pending gradient.
        memory: already updated with them.
        hyper: in force until this decision, the base schedule included.
        offset: (B, L, A) position of each control, see `action`.
        action: (B, L, A) the last action.
        outlook: of the trainings.
    """

    stats: LayerStats
    memory: Memory
    hyper: Hyperparams
    offset: Tensor
    action: Tensor
    outlook: TrainingContext


class Feature(NamedTuple):
    """A row of FEATURES.

    Attributes:
        compute: Observed -> (B, L) or (B, 1) in [-1, 1].
        about: one line for the documentation.
        needs: "loss", "progress", "epoch" or "passes" where the feature is 0 unless that is known,
            else "".
        of_stats: whether it tells of more than the size of the pending gradient, so that weights
            and moments must be measured too.
        quantity: a word for what is observed, perhaps of a {layer}, and the way back to it from the
            feature, where users know it by a number.
        given: whether it is known before the training starts, and no learning rate changes it.
    """

    compute: Callable[[Observed], Tensor]
    about: str
    needs: str = ""
    of_stats: bool = False
    quantity: tuple[str, Callable[[float], float]] | None = None
    given: bool = False


def _log(x: Tensor) -> Tensor:
    return torch.log(x + TINY)


def _log10(x: Tensor) -> Tensor:
    return _log(x) / LN_10


def _log_update_ratio(o: Observed) -> Tensor:
    """log10 of update size over weight size: what the learning rate means to this layer."""
    return (_log(o.hyper.lr * o.stats.update_rms) - _log(o.stats.param_rms)) / LN_10


def _among_layers(o: Observed) -> Tensor:
    """The same minus its mean over the layers that learn.

    Frozen ones have no update to compare with.
    """
    ratio = _log_update_ratio(o)
    learns = (o.stats.grad_rms > 0) & (o.stats.param_rms > 0) & (o.hyper.lr > 0)
    mean = torch.where(learns, ratio, 0.0).sum(1, keepdim=True) / learns.sum(
        1, keepdim=True
    ).clamp_min(1)
    return torch.where(learns, ratio - mean, 0.0)


def _log_snr(o: Observed) -> Tensor:
    return 2.0 * (_log(o.stats.momentum_rms) - _log(o.stats.second_moment_rms)) / LN_10


def _polyak(o: Observed) -> Tensor:
    """log10 of the first step size that Polyak (1987, section 5.3) would take towards a loss of 0.

    Loss over |g|^2.
    """
    square = (o.outlook.elements * o.memory.initial_grad_rms.square()).sum(1)
    return (_log(o.memory.initial_loss) - _log(square)) / LN_10


def _loss_known(o: Observed) -> Tensor:
    """1 where a loss was seen whose logarithm says something.

    One that is not above 0 at first is as good as none.
    """
    return o.outlook.loss_known * o.memory.loss_seen * (o.memory.initial_loss > 0)


def _depth(o: Observed) -> Tensor:
    lr = o.hyper.lr
    return torch.linspace(-1.0, 1.0, lr.shape[1], dtype=lr.dtype, device=lr.device).unsqueeze(0)


def _column(per_run: Tensor) -> Tensor:
    return per_run.unsqueeze(1)


def _untanh(y: float) -> float:
    """The x of y = tanh(log10 x), as far as y tells."""
    return float(10.0 ** math.atanh(max(-0.9999, min(y, 0.9999))))


FEATURES: dict[str, Feature] = {
    "update_ratio": Feature(
        lambda o: torch.tanh((_log_update_ratio(o) + 2.5) / 1.5),
        "log10 of rms(next update) / rms(weights), centred on 10^-2.5",
        of_stats=True,
    ),
    "update_ratio_among_layers": Feature(
        lambda o: torch.tanh(_among_layers(o)),
        "the same minus its mean over the layers that learn",
        of_stats=True,
    ),
    "grad_trend": Feature(
        lambda o: torch.tanh(_log(o.stats.grad_rms) - o.memory.log_grad),
        "log of rms(gradient) over its running geometric mean",
        of_stats=True,
    ),
    "cosine": Feature(
        lambda o: o.stats.cosine,
        "cosine of pending gradient and momentum",
        of_stats=True,
    ),
    "snr": Feature(
        lambda o: torch.tanh((_log_snr(o) + 0.8) / 0.5),
        "log10 of |m|^2 / v: signal over noise of the gradient across steps",
        of_stats=True,
    ),
    "weight_growth": Feature(
        lambda o: torch.tanh(2.0 * (_log(o.stats.param_rms) - _log(o.memory.initial_param_rms))),
        "log of rms(weights) over its value at the start",
        of_stats=True,
    ),
    "loss_ratio": Feature(
        lambda o: _column(torch.tanh((o.memory.short_loss - _log(o.memory.initial_loss)) / 2.0)),
        "log of the recent loss over the first one",
        "loss",
    ),
    "loss_trend": Feature(
        lambda o: _column(torch.tanh(4.0 * (o.memory.short_loss - o.memory.long_loss))),
        "short minus long running mean of the log loss",
        "loss",
    ),
    "loss_change": Feature(
        lambda o: _column(torch.tanh(4.0 * o.memory.loss_change)),
        "log of the last interval's mean loss over the one before",
        "loss",
    ),
    "depth": Feature(_depth, "position of the layer, -1 for the first and 1 for the last"),
    "progress": Feature(
        lambda o: _column(2.0 * o.outlook.progress - 1.0),
        "step over horizon, from -1 to 1",
        "progress",
    ),
    "remaining": Feature(
        lambda o: _column(1.0 + torch.log(1.02 - o.outlook.progress) / 2.0),
        "log of what is left of the training: resolves its end",
        "progress",
    ),
    "loss_known": Feature(
        lambda o: _column(_loss_known(o)),
        "1 where the loss features are shown, 0 where masked or where the first loss was not above "
        "0",
    ),
    "progress_known": Feature(
        lambda o: _column(o.outlook.progress_known),
        "1 where the progress features are shown, 0 where masked",
    ),
    "last_action_lr": Feature(lambda o: o.action[..., 0], "the last action on the lr"),
    "momentum": Feature(
        lambda o: torch.tanh(torch.log10((1.0 - o.hyper.momentum).clamp_min(1e-4)) + 1.0),
        "log10 of 1 - momentum, centred on momentum 0.9",
    ),
    "noise": Feature(lambda o: o.hyper.noise.clamp(0.0, 1.0), "gradient noise over gradient, rms"),
    "log_lr": Feature(
        lambda o: torch.tanh((_log10(o.hyper.lr) + 3.0) / 2.0),
        "log10 of the learning rate: not scale-free, does not transfer to other parameterisations",
    ),
    "peak_lr": Feature(
        lambda o: (
            (_log10(o.hyper.lr / _column(o.outlook.schedule.clamp_min(1e-6))) - PEAK_CENTRE)
            / PEAK_WIDTH
        ),
        "log10 of the learning rate without the base schedule, linear within 10^-6.5..10^0.5",
        quantity=("learning rate of {layer}", lambda y: 10.0 ** (PEAK_WIDTH * y + PEAK_CENTRE)),
    ),
    "loss_level": Feature(
        lambda o: _column(torch.tanh(o.memory.short_loss / LN_10)),
        "log10 of the recent loss, in whatever units it has",
        "loss",
        quantity=("recent loss", _untanh),
    ),
    "first_loss": Feature(
        lambda o: _column(torch.tanh(_log10(o.memory.initial_loss))),
        "log10 of the first loss, in whatever units it has; unlike loss_level, later actions "
        "cannot move it",
        "loss",
        quantity=("first loss", _untanh),
    ),
    "polyak": Feature(
        lambda o: _column(_polyak(o) / 4.0),
        "log10 of the first loss over the squared norm of the first gradient: the units of SGD's "
        "learning rate",
        "loss",
    ),
    "model_size": Feature(
        lambda o: _column(_log10(o.outlook.sizes.sum(1)) / 4.0 - 1.0),
        "log10 of the number of parameters, centred on 10^4",
        quantity=("parameters", lambda y: 10.0 ** (4.0 * (y + 1.0))),
        given=True,
    ),
    "horizon": Feature(
        lambda o: _column(_log10(o.outlook.horizon) / 3.0 - 1.0),
        "log10 of the steps of the training, centred on 10^3",
        "progress",
        quantity=("total_steps", lambda y: 10.0 ** (3.0 * (y + 1.0))),
        given=True,
    ),
    "passes": Feature(
        lambda o: _column(_log10(o.outlook.passes) / 3.0),
        "log10 of the passes over the data, all in all: where there are many, networks memorise",
        "passes",
        quantity=("passes over the data", lambda y: 10.0 ** (3.0 * y)),
        given=True,
    ),
    "passes_known": Feature(
        lambda o: _column(o.outlook.passes_known * o.outlook.progress_known),
        "1 where passes are shown, 0 where masked",
    ),
    "steps": Feature(
        lambda o: _column(torch.log10(1.0 + o.outlook.step) / 2.0 - 1.0),
        "log10 of the steps made, centred on 10^2: all that is known of the time where the end is "
        "not",
        quantity=("steps made", lambda y: 10.0 ** (2.0 * (y + 1.0)) - 1.0),
    ),
    "passes_made": Feature(
        lambda o: _column(
            torch.log10(0.01 + o.outlook.step * o.outlook.passes / o.outlook.horizon) / 3.0
        ),
        "log10 of the passes over the data so far",
        "epoch",
        quantity=("passes over the data so far", lambda y: 10.0 ** (3.0 * y) - 0.01),
    ),
    "epoch_known": Feature(
        lambda o: _column(o.outlook.passes_known), "1 where passes so far are shown, 0 where masked"
    ),
}

# What describes a training as a whole rather than how it goes: only many tasks teach what it means.
TASK_FEATURES = (
    "peak_lr",
    "first_loss",
    "loss_known",
    "model_size",
    "horizon",
    "progress_known",
    "passes",
    "passes_known",
    "polyak",
)
ENDLESS_FEATURES = ("steps", "passes_made", "epoch_known")  # of trainings whose end is not known
_COMMON = {"loss_known", "progress_known"}  # of those: they belong to any observation
_CHOSEN = {"momentum", "noise", "log_lr", "loss_level", *TASK_FEATURES, *ENDLESS_FEATURES} - _COMMON
DEFAULT_FEATURES = tuple(name for name in FEATURES if name not in _CHOSEN)


def check_features(features: Sequence[str]) -> tuple[str, ...]:
    """Return `features` as a tuple or raise a ValueError that names the unknown one and lists the valid ones."""
    if not features:
        raise ValueError(f"features is empty; choose from {', '.join(FEATURES)}")
    for name in features:
        if name not in FEATURES:
            raise ValueError(f"unknown feature {name!r}; choose from {', '.join(FEATURES)}")
    return tuple(features)


def empty_memory(runs: int, layers: int, like: Tensor) -> Memory:
    """The memory before the first decision, on the device and of the dtype of `like`."""
    zeros, zeros_l = like.new_zeros(runs), like.new_zeros(runs, layers)
    return Memory(*(zeros.clone() for _ in range(6)), *(zeros_l.clone() for _ in range(3)))


def remember(memory: Memory, stats: LayerStats, mean_loss: Tensor) -> Memory:
    """Update the memory at a decision.

    Args:
        memory: before.
        stats: at this decision.
        mean_loss: (B,) mean loss since the last decision, NaN where none was given.
    """
    log_grad = _log(stats.grad_rms)
    new_layer = memory.initial_param_rms == 0
    known = torch.isfinite(mean_loss)
    first_loss = known & (memory.loss_seen == 0)
    first_grad = (memory.initial_grad_rms == 0).all(1, keepdim=True)
    loss = torch.where(known, mean_loss, memory.last_loss)
    log_loss, last = _log(loss.clamp_min(0.0)), _log(memory.last_loss.clamp_min(0.0))

    def running(mean: Tensor, weight: float) -> Tensor:
        return torch.where(
            known, torch.where(first_loss, log_loss, torch.lerp(mean, log_loss, weight)), mean
        )

    return Memory(
        loss_seen=torch.where(known, torch.ones_like(loss), memory.loss_seen),
        initial_loss=torch.where(first_loss, loss, memory.initial_loss),
        last_loss=loss,
        loss_change=torch.where(known & ~first_loss, log_loss - last, torch.zeros_like(loss)),
        short_loss=running(memory.short_loss, SHORT),
        long_loss=running(memory.long_loss, LONG),
        initial_param_rms=torch.where(new_layer, stats.param_rms, memory.initial_param_rms),
        log_grad=torch.where(new_layer, log_grad, torch.lerp(memory.log_grad, log_grad, LONG)),
        initial_grad_rms=torch.where(first_grad, stats.grad_rms, memory.initial_grad_rms),
    )


def observe(features: Sequence[str], observed: Observed) -> Tensor:
    """The observation (B, L, F), F = len(features): finite and in [-1, 1], float32."""
    shape, outlook = observed.hyper.lr.shape, observed.outlook
    known = {
        "loss": _loss_known(observed),
        "progress": outlook.progress_known,
        "epoch": outlook.passes_known,
        "passes": outlook.passes_known * outlook.progress_known,
    }
    shown = {need: _column(value) > 0 for need, value in known.items()}
    columns = []
    for name in features:
        feature = FEATURES[name]
        value = feature.compute(observed)
        if feature.needs:
            value = torch.where(shown[feature.needs], value, 0.0)
        columns.append(value.expand(shape))
    return torch.nan_to_num(torch.stack(columns, dim=-1).float(), nan=0.0).clamp(-1.0, 1.0)
