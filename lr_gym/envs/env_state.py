"""EnvState and Interval: the state of controlled trainings, and the result of a decision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.context import TrainingContext
from lr_gym.control.controller import ControlState
from lr_gym.control.finish import Endings
from lr_gym.training.inner_loop import InnerState
from lr_gym.types import Hyperparams

__all__ = ["DIVERGENCE", "EnvState", "Interval", "Weights", "evaluated_state"]

# What `Interval.divergence` says, by its number.
DIVERGENCE = np.array(["", "non_finite_loss", "loss_above_limit"])

Weights = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # parameters and buffers, (B, *shape) each


class EnvState(NamedTuple):
    """B trainings under control; every tensor has a row per run.

    Attributes:
        inner: the trainings.
        control: what the controller carries along.
        base: (B, L) hyperparameters of the base optimizer, without the base schedule.
        hyper: (B, L) hyperparameters since the last decision, without the base schedule.
        context: what stays fixed during the trainings.
        initial_train_loss: (B,) loss of the first minibatch.
        initial_loss: (B,) initial loss on the reward split; of a stream, that of the first
            minibatch.
        loss: (B,) loss on the reward split at the last decision; of a stream, the mean loss of the
            minibatches since the decision before.
        collected: (B,) return so far.
        average: averaged weights; () where trainings are judged by their last weights.
    """

    inner: InnerState
    control: ControlState
    base: Hyperparams
    hyper: Hyperparams
    context: TrainingContext
    initial_train_loss: Tensor
    initial_loss: Tensor
    loss: Tensor
    collected: Tensor
    average: Weights | tuple[()]


class Interval(NamedTuple):
    """The result of one decision.

    Attributes:
        state: the trainings afterwards.
        observation: (B, L, F) at the next decision.
        reward: (B,) decrease of the potential; for a run that diverged, the difference between
            `diverged_return` and its return so far. On streams, see `stream_reward`.
        divergence: (B,) index into DIVERGENCE, 0 for runs that did not diverge.
        endings: what is decided about the ends of the trainings.
        taken: (B,) inner steps that were made.
    """

    state: EnvState
    observation: Tensor
    reward: Tensor
    divergence: Tensor
    endings: Endings
    taken: NDArray[np.int64]


def evaluated_state(state: EnvState) -> InnerState:
    """The trainings with the weights that they are judged by, averaged or not."""
    if not state.average:
        return state.inner
    params, buffers = state.average
    return state.inner._replace(params=params, buffers=buffers)
