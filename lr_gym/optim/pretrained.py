"""Whether a training starts from pretrained weights, of which policies know nothing.

Policies learn in trainings of fresh networks. There every weight vector of a norm layer is constant
(1, or 0 in branches that start switched off), and in a trained network it is not. A pretrained
model is trained further at rates far below those that policies name. So the guard
(`lr_gym.optim.guard`) then sets the trust in the policy to 0 for every layer: the policy changes
nothing, and the base optimizer runs at the user's own rates, under the base schedule.

The rule is ours, and it does not look at the types of layers. Every one-dimensional parameter of at
least MIN_SIZE elements and with a mean above 1/2 votes: +1 if it varies, -1 if it is constant. The
weights count as pretrained if the sum of the votes, a mean over all ranks, is above 1. So one odd
vector, such as a bias that was drawn large, decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.guard import GuardState
from lr_gym.optim.slots import Slot

__all__ = [
    "MESSAGE",
    "PRETRAINED",
    "base_offsets",
    "is_pretrained",
    "no_trust",
    "norm_votes",
    "note_start_weights",
    "undecided",
]

PRETRAINED = "pretrained"  # key of a group: the outcome, None before it is known
MIN_SIZE = 8  # elements; shorter vectors, such as a scale of a whole layer, do not vote
MESSAGE = (
    "the weights of norm layers differ from element to element, so this training seems to start "
    "from pretrained weights, and the policy has learned from fresh ones only. It does not act: "
    "your own learning rates are used, under the base schedule. Pass guard=False to let the policy "
    "act"
)


def undecided(groups: Sequence[dict[str, Any]], step: int) -> bool:
    """Whether the weights still have to be looked at: before the first step, and only once.

    Args:
        groups: parameter groups of the optimizer.
        step: optimizer steps made. Where there are some, as after a checkpoint was loaded, the
            stored outcome is kept.
    """
    return step == 0 and all(group.get(PRETRAINED) is None for group in groups)


def norm_votes(slots: Iterable[Slot], like: Tensor) -> Tensor:
    """Votes for "pretrained" minus votes against, of what this rank holds; 0 where nobody votes.

    A shard of fewer than two elements is constant in any case, so it does not vote.

    Args:
        slots: one for each parameter; `slot.data` is the part that this rank holds.
        like: a tensor of shape (1,), whose dtype and device the result gets.

    Returns:
        (1,) sum of the votes.
    """
    votes = torch.zeros_like(like)
    for slot in slots:
        if slot.param.ndim != 1 or slot.param.numel() < MIN_SIZE or slot.data.numel() < 2:
            continue
        low, high = slot.data.detach().to(like.dtype).aminmax()
        vote = torch.where(low < high, 1.0, -1.0)
        votes = votes + torch.where(slot.data.mean(dtype=like.dtype) > 0.5, vote, 0.0)
    return votes


def note_start_weights(groups: Iterable[dict[str, Any]], votes: Tensor) -> None:
    """Write the outcome of a vote into all groups, where checkpoints keep it.

    Args:
        groups: parameter groups of the optimizer.
        votes: (1,) as from `norm_votes`, the mean over all ranks. It is read from the device.
    """
    outcome = float(votes) > 1.0
    for group in groups:
        group[PRETRAINED] = outcome


def is_pretrained(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether this training started from pretrained weights; False before anybody has looked."""
    return any(group.get(PRETRAINED) is True for group in groups)


def no_trust(state: GuardState) -> GuardState:
    """The state of a guard that trusts no layer."""
    return GuardState(torch.zeros_like(state.trust), torch.ones_like(state.drift))


def base_offsets(before: Tensor, wanted: Tensor) -> Tensor:
    """The offsets (B, L, A) of the base optimizer, whatever the policy wants."""
    return torch.zeros_like(wanted)
