"""TrainingContext and Clock: what stays fixed in a training, and how far it is."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Clock", "TrainingContext"]


class TrainingContext(NamedTuple):
    """What stays fixed during a training; every tensor has a row per run.

    Attributes:
        passes: (B,) how often the whole training passes over its data.
        sizes: (B, L) number of parameters of each layer that are trained.
        units: (B, L) unit of the learning rate of each layer (`lr_gym.control.units`).
        loss_known: (B,) 1 where the features of the loss are shown, 0 where they are masked.
        progress_known: (B,) 1 where the features of progress and horizon are shown, else 0.
        passes_known: (B,) 1 where the passes over the data are shown, else 0. The passes of the
            whole training are shown only where progress is shown too.
        monitor_known: (B,) 1 where held-out losses are shown once they come, 0 where masked.
    """

    passes: Tensor
    sizes: Tensor
    units: Tensor
    loss_known: Tensor
    progress_known: Tensor
    passes_known: Tensor
    monitor_known: Tensor


class Clock(NamedTuple):
    """How far trainings are at a decision; every tensor has a row per run.

    Attributes:
        step: (B,) inner steps made.
        horizon: (B,) inner steps of the whole training; 1 where that is unknown.
        progress: (B,) step over horizon, within [0, 1]; 0 where the horizon is unknown.
        schedule: (B,) factor of the base schedule on the learning rate.
    """

    step: Tensor
    horizon: Tensor
    progress: Tensor
    schedule: Tensor
