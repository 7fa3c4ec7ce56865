"""ACTIONS: what a policy's action does to the hyperparameters.

Each control has an offset in natural-log units, which is 0 at the start of a training. An action in
[-1, 1] either sets the offset ("residual": the policy bends the base schedule and cannot leave it
by more than a bound) or moves it ("recursive": the policy can walk away from a badly chosen initial
learning rate). At offset 0 the base optimizer is left exactly as it is.

    lr        base lr * exp(offset)
    momentum  1 - (1 - base momentum) * exp(-offset), within [0, 0.999]
    noise     NOISE_PER_OFFSET * max(0, offset), within [0, 1]: off unless the policy turns it up
    finish    no hyperparameter: where its offset is above FINISH_ABOVE, the training is to end

The control "finish" has no past: in every mode its offset is its last action.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.types import Hyperparams

__all__ = [
    "ACTIONS",
    "CONTROLLED",
    "FINISH",
    "FINISH_ABOVE",
    "ActionMode",
    "action_mode",
    "action_rows",
    "action_table",
    "check_controls",
    "decode",
    "move",
]

FINISH = "finish"
CONTROLLED = ("lr", "momentum", "noise", FINISH)
FINISH_ABOVE = 0.5
NOISE_PER_OFFSET = 0.2
MAX_MOMENTUM = 0.999

# Actions of the discrete modes: for the learning rate the logs of these factors over ln 2, a full
# step of the mode "discrete".
_LR_LEVELS = tuple(math.log(f) / math.log(2.0) for f in (0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0))
_OTHER_LEVELS = (-1.0, 0.0, 1.0)
_FINISH_LEVELS = (0.0, 1.0)


class ActionMode(NamedTuple):
    """A row of ACTIONS.

    Attributes:
        recursive: whether an action moves the offset; else it sets the offset.
        step: what an action of 1 adds to the offset, or sets the offset to.
        bound: largest absolute value of an offset.
        discrete: whether the agent picks a row of `action_table`, as DQN does, instead of a vector.
    """

    recursive: bool
    step: float
    bound: float
    discrete: bool = False


ACTIONS: dict[str, ActionMode] = {
    "recursive": ActionMode(True, step=math.log(4.0), bound=math.log(1e3)),
    "residual": ActionMode(False, step=math.log(4.0), bound=math.log(4.0)),
    "discrete": ActionMode(True, step=math.log(2.0), bound=math.log(1e3), discrete=True),
}


def action_mode(name: str) -> ActionMode:
    """Look up a row of ACTIONS; a ValueError lists the valid names."""
    if name not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(ACTIONS)}; got {name!r}")
    return ACTIONS[name]


def check_controls(controls: Sequence[str]) -> tuple[str, ...]:
    """Return `controls` as a tuple.

    Raises:
        ValueError: unless they are names of CONTROLLED in this order, each once, lr included.
    """
    controls = tuple(controls)
    unknown = [name for name in controls if name not in CONTROLLED]
    if unknown:
        raise ValueError(f"unknown control {unknown[0]!r}; choose from {', '.join(CONTROLLED)}")
    if controls != tuple(name for name in CONTROLLED if name in controls) or "lr" not in controls:
        raise ValueError(
            f"controls must hold 'lr' and keep the order {', '.join(CONTROLLED)}, each once; got "
            f"{controls!r}"
        )
    return controls


def action_rows(
    controls: Sequence[str], lr_levels: Sequence[float] = _LR_LEVELS
) -> list[tuple[float, ...]]:
    """Every combination of the levels of the controls, n rows of A values.

    Args:
        controls: A names of CONTROLLED.
        lr_levels: levels of the learning rate.
    """
    levels = {"lr": lr_levels, FINISH: _FINISH_LEVELS}
    return list(itertools.product(*(levels.get(name, _OTHER_LEVELS) for name in controls)))


def action_table(controls: Sequence[str]) -> Tensor:
    """All n discrete actions of the mode "discrete" as values (n, A)."""
    return torch.tensor(action_rows(controls))


def move(mode: ActionMode, controls: Sequence[str], offset: Tensor, action: Tensor) -> Tensor:
    """The offset after an action.

    Args:
        mode: how actions act.
        controls: A names of CONTROLLED.
        offset: (B, L, A) offsets before.
        action: (B, L, A) actions, clipped to [-1, 1]; an action that is not finite counts as 0.

    Returns:
        (B, L, A) offsets.
    """
    finite = torch.nan_to_num(action, nan=0.0, posinf=0.0, neginf=0.0)
    action = finite.clamp(-1.0, 1.0).to(offset.dtype)
    target = offset + action * mode.step if mode.recursive else action * mode.step
    moved = target.clamp(-mode.bound, mode.bound)
    if FINISH not in controls:
        return moved
    return torch.cat([moved[..., :-1], action[..., -1:]], dim=-1)


def decode(controls: Sequence[str], offset: Tensor, base: Hyperparams) -> Hyperparams:
    """The hyperparameters (B, L) of offsets.

    Args:
        controls: A names of CONTROLLED.
        offset: (B, L, A) offsets.
        base: (B, L) hyperparameters of the base optimizer.
    """
    column = {name: offset[..., i] for i, name in enumerate(controls)}
    hyper = base._replace(lr=base.lr * column["lr"].exp())
    if "momentum" in column:
        # = 1 - (1 - base) exp(-offset), written so that offset 0 gives the base to the last bit
        momentum = base.momentum - (1.0 - base.momentum) * torch.expm1(-column["momentum"])
        hyper = hyper._replace(momentum=momentum.clamp(0.0, MAX_MOMENTUM))
    if "noise" in column:
        hyper = hyper._replace(noise=(NOISE_PER_OFFSET * column["noise"]).clamp(0.0, 1.0))
    return hyper
