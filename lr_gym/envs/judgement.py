"""What an interval of a training is worth, and whether the training has diverged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.envs.env_state import EnvState
from lr_gym.envs.reward import (
    diverged_return,
    diverged_stream_reward,
    loss_limit,
    potential,
    stream_reward,
)
from lr_gym.tasks.stream import StreamPosition

__all__ = ["Judgement", "judged_by_split", "judged_on_stream"]


class Judgement(NamedTuple):
    """What became of B trainings in an interval.

    Attributes:
        loss: (B,) as in EnvState.
        reward: (B,) as in Interval.
        divergence: (B,) as in Interval.
    """

    loss: Tensor
    reward: Tensor
    divergence: Tensor


def judged_by_split(
    state: EnvState, loss: Tensor, worst: Tensor, optimum: float, cost: Tensor
) -> Judgement:
    """Judge trainings by their loss on the reward split.

    Args:
        state: the trainings, whose `loss` is still that of the decision before.
        loss: (B,) loss on the reward split after it.
        worst: (B,) largest training loss of the interval, NaN if any was NaN.
        optimum: the optimum of the task.
        cost: (B,) price of the steps that were made, in nats.
    """
    non_finite = ~(torch.isfinite(worst) & torch.isfinite(loss))
    above = worst > loss_limit(state.initial_train_loss)
    above |= loss > loss_limit(state.initial_loss)
    divergence = _divergence(non_finite, above)
    gain = potential(state.loss, optimum) - potential(loss, optimum) - cost
    # Whatever a run has collected before, it ends with the same return when it diverges.
    missing = diverged_return(state.initial_loss, optimum) - state.collected
    return Judgement(loss, torch.where(divergence > 0, missing, gain), divergence)


def judged_on_stream(
    state: EnvState, worst: Tensor, total: Tensor, taken: Tensor, left: Tensor, interval: int
) -> Judgement:
    """Judge trainings by their losses of an interval of a stream.

    Args:
        state: the trainings, at the stream's position after the interval.
        worst: (B,) largest loss of the interval, NaN if any was NaN.
        total: (B,) sum of the losses of the interval.
        taken: (B,) inner steps that were made.
        left: (B,) decisions from the start of the interval to the horizon, in whole ones and parts.
        interval: inner steps between two decisions.
    """
    stream = state.inner.stream
    assert isinstance(stream, StreamPosition)
    loss = total / taken.clamp_min(1.0)
    above = worst > loss_limit(state.initial_train_loss)
    divergence = _divergence(~torch.isfinite(worst), above)
    reward = stream_reward(loss, stream.floor) * (taken / interval)
    lost = diverged_stream_reward(state.initial_loss) * left
    return Judgement(loss, torch.where(divergence > 0, lost, reward), divergence)


def _divergence(non_finite: Tensor, above: Tensor) -> Tensor:
    """Index into DIVERGENCE of each run (B,)."""
    return torch.where(non_finite, 1, torch.where(above, 2, 0))
