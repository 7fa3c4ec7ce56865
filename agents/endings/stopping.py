"""The expected regret of a network that may end a training at each of its decisions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["expected_regret", "regret_when_ended", "stopping_time"]


def expected_regret(logit: Tensor, known: Tensor, regret: Tensor) -> Tensor:
    """Expected regret (n,) where a training is ended at random, with the given probabilities.

    The training is ended at decision d with probability q_d = sigmoid(logit_d) if it is still going
    on, so its expected regret is the sum over d of regret_d q_d prod_{k < d} (1 - q_k).

    Args:
        logit: (n, D) log odds of ending at each decision.
        known: (n, D) bool, whether the training can be ended there.
        regret: (n, D + 1) regret of ending at each decision, and of never ending.
    """
    goes_on = torch.where(known, torch.sigmoid(-logit), 1.0)
    reached = torch.cat([torch.ones_like(goes_on[:, :1]), goes_on.cumprod(1)], dim=1)  # (n, D + 1)
    ends = torch.cat([1.0 - goes_on, torch.ones_like(goes_on[:, :1])], dim=1)
    return (reached * ends * regret).sum(1)


def stopping_time(logit: Tensor, known: Tensor) -> Tensor:
    """Decision (n,) at which a deterministic policy ends a training; D where at none.

    Args:
        logit: (n, D) as for `expected_regret`; a training is ended where it is above 0.
        known: (n, D) as for `expected_regret`.
    """
    ends = torch.cat([known & (logit > 0.0), torch.ones_like(known[:, :1])], dim=1)
    return ends.int().argmax(1)


def regret_when_ended(logit: Tensor, known: Tensor, regret: Tensor) -> Tensor:
    """Regret (n,) of the deterministic policy; arguments as for `expected_regret`."""
    time = stopping_time(logit, known)
    return regret.gather(1, time.unsqueeze(1)).squeeze(1)
