"""REWARDS, and what counts as divergence.

The potential of a run is the log of its loss on the reward split. A reward is the potential's
decrease between two decisions, so that with gamma = 1 the return telescopes to the total decrease:
the final loss is all that counts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["REWARDS", "Reward", "check_reward", "diverged_return", "loss_limit", "potential"]

OFFSET = (
    1e-8  # added to the loss before its log: bounds the potential of a run that reaches the optimum
)
MARGIN = 1.0  # how far below the worst surviving run's return that of a diverged run lies, nats


class Reward(NamedTuple):
    """A row of REWARDS.

    Attributes:
        about: one line for the documentation.
        dense: paid at every decision, else all of it at the end.
        paired: minus the same of an Adam run at lr 1e-3 with the same initial weights and
            minibatches.
    """

    about: str
    dense: bool = True
    paired: bool = False


REWARDS: dict[str, Reward] = {
    "log_loss": Reward("decrease of the log loss on the reward split since the last decision"),
    "final_log_loss": Reward("the same over the whole training, paid at its end", dense=False),
    "paired": Reward(
        "log_loss minus that of the same run under Adam at lr 1e-3 (doubles the cost)", paired=True
    ),
}


def check_reward(name: str) -> Reward:
    """Look up a row of REWARDS; a ValueError lists the valid names."""
    if name not in REWARDS:
        raise ValueError(f"reward must be one of {', '.join(REWARDS)}; got {name!r}")
    return REWARDS[name]


def potential(loss: Tensor, optimum: float) -> Tensor:
    """Log of the distance to the optimum, in nats."""
    return torch.log((loss - optimum).clamp_min(0.0) + OFFSET)


def loss_limit(initial: Tensor) -> Tensor:
    """A loss above this counts as diverged (Adam at lr 1e3 stays finite).

    Initial + 1e3 * max(1, |initial|).
    """
    return initial + 1e3 * initial.abs().clamp_min(1.0)


def diverged_return(initial: Tensor, optimum: float, reward: Reward) -> Tensor:
    """Return that a diverged run ends with: MARGIN below that of any run that survived, finite.

    A survivor's loss is at most `loss_limit(initial)`; a paired one also loses at most what Adam
    could have gained by reaching the optimum.

    Args:
        initial: (B,) initial loss on the reward split.
        optimum: of the task.
        reward: a row of REWARDS.
    """
    worst = potential(initial, optimum) - potential(loss_limit(initial), optimum)
    if reward.paired:
        worst = worst - (potential(initial, optimum) - math.log(OFFSET))
    return worst - MARGIN
