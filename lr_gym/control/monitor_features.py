"""MONITOR_FEATURES: what a policy can see of the held-out loss, a part of FEATURES."""

from __future__ import annotations

import torch
from torch import Tensor

from lr_gym.control.feature import OF_MONITOR, Feature, Observed, column, monitor_known

__all__ = ["MONITOR_FEATURES"]


def _monitor_trend(o: Observed) -> Tensor:
    """(B,) short minus long running mean of the log of the held-out loss."""
    return o.held_out.short - o.held_out.long


def _monitor_noise(o: Observed) -> Tensor:
    """(B,) log10 of the deviation of the log of the held-out loss, from -1 (1e-3) to 1 (1)."""
    return (torch.log10(1e-3 + o.held_out.variance.sqrt()) + 1.5) / 1.5


MONITOR_FEATURES: dict[str, Feature] = {
    "monitor_known": Feature(
        lambda o: column(monitor_known(o)),
        "1 where the held-out loss is shown, 0 where masked, before the first, or where the first "
        "was not above 0",
        groups=OF_MONITOR,
    ),
    "monitor_best": Feature(
        lambda o: column(torch.tanh(2.0 * (o.held_out.short - o.held_out.best))),
        "log of the recent held-out loss over the best so far: 0 while it improves",
        "monitor",
        groups=OF_MONITOR,
    ),
    "monitor_stall": Feature(
        lambda o: column(torch.log10(1.0 + o.held_out.stall) / 2.0),
        "log10 of the decisions since the held-out loss was best, 1 at 99 decisions",
        "monitor",
        groups=OF_MONITOR,
    ),
    "monitor_trend": Feature(
        lambda o: column(torch.tanh(4.0 * _monitor_trend(o))),
        "short minus long running mean of the log of the held-out loss",
        "monitor",
        groups=OF_MONITOR,
    ),
    "monitor_noise": Feature(
        lambda o: column(_monitor_noise(o)),
        "log10 of the deviation of the log of the held-out loss from its running mean",
        "monitor",
        groups=OF_MONITOR,
    ),
    "monitor_gap": Feature(
        lambda o: column(torch.tanh((o.held_out.short - o.memory.short_loss) / 2.0)),
        "log of the recent held-out loss over the recent training loss: grows as networks memorise",
        "gap",
        groups=OF_MONITOR,
    ),
    "monitor_gap_trend": Feature(
        lambda o: column(
            torch.tanh(4.0 * (_monitor_trend(o) - o.memory.short_loss + o.memory.long_loss))
        ),
        "monitor_trend minus the same of the training loss: how monitor_gap is changing",
        "gap",
        groups=OF_MONITOR,
    ),
}
