"""The reward of a controlled training, and what counts as divergence.

On fixed data, the potential of a run is the log of its loss on the reward split, in nats. The
reward of a decision is the decrease of the potential since the decision before, so that with
gamma = 1 the return is the total decrease: all that counts is the final loss.

On a stream every minibatch counts: the reward of a decision is minus the mean loss of the
minibatches that follow it, each taken before it is learned from. What no network could have
predicted is subtracted where it is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "MARGIN",
    "diverged_return",
    "diverged_stream_reward",
    "loss_limit",
    "potential",
    "stream_reward",
]

OFFSET = 1e-8  # added to the loss before its log: bounds the potential of a run at the optimum
# Loss of a diverged stream until its end, in units of its initial loss or of 1, whatever is more.
DIVERGED_LOSS = 2.0
MARGIN = 1.0  # nats by which the return of a diverged run is below that of any surviving one


def potential(loss: Tensor, optimum: float) -> Tensor:
    """Log of the distance of a loss to the optimum, in nats."""
    return torch.log((loss - optimum).clamp_min(0.0) + OFFSET)


def loss_limit(initial: Tensor) -> Tensor:
    """The loss above which a run counts as diverged: initial + 1e3 * max(1, |initial|).

    A limit is needed because Adam at a learning rate of 1e3 stays finite.
    """
    return initial + 1e3 * initial.abs().clamp_min(1.0)


def diverged_return(initial: Tensor, optimum: float) -> Tensor:
    """The finite return (B,) that a diverged run ends with: MARGIN below that of any survivor.

    The loss of a survivor is at most `loss_limit(initial)`.

    Args:
        initial: (B,) initial loss on the reward split.
        optimum: the optimum of the task.
    """
    worst = potential(initial, optimum) - potential(loss_limit(initial), optimum)
    return worst - MARGIN


def stream_reward(loss: Tensor, floor: Tensor) -> Tensor:
    """Reward (B,) of an interval on a stream: minus its mean loss (B,) above its floor (B,)."""
    return floor - loss


def diverged_stream_reward(initial: Tensor) -> Tensor:
    """Reward (B,) of each interval that is left to a diverged run of initial loss (B,).

    The first minibatch may be a single example that was guessed by luck. So its loss counts as 1 at
    least, or else a run that diverges would collect more than one that learns.
    """
    return -DIVERGED_LOSS * initial.abs().clamp_min(1.0)
