"""One step of Muon on a matrix of which every rank holds a shard.

Muon needs the whole first moment. It is gathered from all ranks, every rank orthogonalises it, and
each updates its own shard with its part of the result. All other rules are element by element and
need no communication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lr_gym.optim.base_step import advance_masses_, rule_of_group
from lr_gym.optim.distributed import gathered, own_shard
from lr_gym.optim.moments import moments
from lr_gym.optim.slots import Slot, gradient_of

__all__ = ["check_shards", "sharded_matrix_update"]


def sharded_matrix_update(
    state: Mapping[Tensor, dict[str, Any]], slot: Slot, lr: Tensor, momentum: Tensor
) -> None:
    """Make one step on one matrix; all ranks must call this in the same order of matrices.

    Args:
        state: the optimizer's state.
        slot: the matrix, a DTensor with a gradient.
        lr: (1,) effective learning rate.
        momentum: (1,) beta1.
    """
    rule = rule_of_group(slot)
    first, _ = moments(state, slot)  # this rank's shard; made first, for new moments reset masses
    masses = advance_masses_(state, [slot], rule, momentum, lr)
    rule.advance_moments_(gradient_of(slot).unsqueeze(0), first.unsqueeze(0), None, momentum)
    whole = gathered(state[slot.param]["momentum_buffer"])
    direction = rule.direction(whole.unsqueeze(0), None, masses)[0]
    shard = slot.data
    shard.mul_(1.0 - lr * slot.group["weight_decay"])
    shard.sub_(own_shard(direction, slot.param) * (lr * rule.factor(masses)).to(shard.dtype))


def check_shards(slots: Sequence[Slot], controls: Sequence[str]) -> None:
    """Raise a ValueError for sharded parameters under a policy that adds gradient noise.

    The level of the noise is relative to a whole tensor's gradient, which no rank holds.
    """
    if "noise" in controls and any(slot.sharded for slot in slots):
        raise ValueError(
            "a policy that controls noise cannot drive sharded parameters (FSDP2): take one that "
            "controls lr and momentum only"
        )
