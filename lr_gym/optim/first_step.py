"""The first step that torch.distributed.checkpoint makes, only to have a state to load into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.distributed import add_up, local

__all__ = ["only_initialises"]

States = Mapping[Tensor, dict[str, Any]]  # state of each parameter


def only_initialises(groups: Sequence[dict[str, Any]], states: States, ranks: Any | None) -> bool:
    """Whether a step is to make the state only, as torch.distributed.checkpoint asks for it.

    To have a state to load into, it sets every lr and every gradient to 0 and makes a first step.

    Args:
        groups: parameter groups of the optimizer.
        states: state of each parameter.
        ranks: ranks that decide together; a gradient of 0 on one of them says nothing of others.
    """
    if states or any(float(group["lr"]) != 0.0 for group in groups):
        return False
    params = (param for group in groups for param in group["params"])
    grads = [local(param.grad) for param in params if param.grad is not None]
    moving = any(bool(grad.any()) for grad in grads)
    if ranks is not None:
        moving = bool(add_up(torch.tensor(float(moving), device=grads[0].device), ranks))
    return not moving
