"""Where the state of a controller (B = 1) is kept: in the optimizer's state, as rows of numbers.

The row of a layer is in the state of the layer's first parameter, so that every tool which saves
`state_dict()["state"]` saves the controller too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.control.controller import ControlState
from lr_gym.control.held_out import HeldOut
from lr_gym.control.memory import Memory
from lr_gym.optim.guard import Guard

__all__ = ["CONTROLLER", "KEYS", "load_rows", "save_rows"]

CONTROLLER = "controller"
GUARD = "guard"
HELD_OUT = "held_out"
KEYS = (CONTROLLER, GUARD, HELD_OUT)  # keys of a parameter's state
PER_RUN = Memory._fields.index("initial_param_rms")  # number of fields of Memory without layers


def save_rows(
    states: Mapping[Tensor, dict[str, Any]],
    first_params: Sequence[Tensor | None],
    control: ControlState,
    guard: Guard | None,
    *,
    watched: bool,
) -> None:
    """Write the row of each layer into the state of its first parameter.

    Args:
        states: state of each parameter.
        first_params: (L) first parameter of each layer, None where it was removed.
        control: the controller's state.
        guard: the guard of the policy, None where it has none.
        watched: whether anything looks at held-out losses. If not, no row is written about them.
    """
    rows = {CONTROLLER: _rows(control, len(first_params))}
    if guard is not None:
        rows[GUARD] = torch.stack(guard.state, dim=-1)[0]
    if watched:
        rows[HELD_OUT] = torch.stack(control.held_out, dim=-1).expand(len(first_params), -1)
    for key, values in rows.items():
        for param, row in zip(first_params, values, strict=True):
            if param is not None:
                states[param][key] = row.clone()


def load_rows(
    states: Mapping[Tensor, dict[str, Any]],
    first_params: Sequence[Tensor],
    control: ControlState,
    guard: Guard | None,
) -> None:
    """Inverse of `save_rows`: fill initial states in place; layers without a row keep theirs.

    Args:
        states: state of each parameter.
        first_params: (L) first parameter of each layer.
        control: initial state of the controller, changed in place.
        guard: the guard of the policy, whose state is changed in place.

    Raises:
        ValueError: for rows of a policy with other controls.
    """
    for layer, param in enumerate(first_params):
        state = states.get(param, {})
        if CONTROLLER in state:
            _fill(control, layer, state[CONTROLLER])
        if HELD_OUT in state:  # a number of the run, the same in every layer
            _fill_held_out(control.held_out, state[HELD_OUT])
        if GUARD in state and guard is not None:
            for target, value in zip(guard.state, state[GUARD], strict=True):
                target[0, layer] = value


def _parts(control: ControlState) -> tuple[list[Tensor], list[Tensor]]:
    """Values of the run, (1,) each, and of its layers, (1, L) each."""
    per_run = [*control.memory[:PER_RUN], control.loss_sum, control.loss_count]
    per_layer = [*control.memory[PER_RUN:], *control.offset.unbind(-1), *control.action.unbind(-1)]
    return per_run, per_layer


def _rows(control: ControlState, layers: int) -> Tensor:
    """(L, n) numbers of each layer, those of the run repeated for each."""
    per_run, per_layer = _parts(control)
    columns = [*(value.expand(layers) for value in per_run), *(value[0] for value in per_layer)]
    return torch.stack(columns, dim=1)


def _fill(control: ControlState, layer: int, row: Tensor) -> None:
    """Write the row (n,) of a layer into a state, in place."""
    per_run, per_layer = _parts(control)
    expected = len(per_run) + len(per_layer)
    if len(row) != expected:
        raise ValueError(
            "the state that was loaded belongs to a policy with other controls, or to another "
            f"version of lr_gym: it has {len(row)} numbers per layer, expected {expected}; load it "
            "into an optimizer with the policy and the version that it was saved with"
        )
    values = row.to(control.offset)
    for target, value in zip(per_run, values, strict=False):
        target[0] = value
    for target, value in zip(per_layer, values[len(per_run) :], strict=True):
        target[0, layer] = value


def _fill_held_out(held_out: HeldOut, row: Tensor) -> None:
    """Write a row (n,) of the held-out losses into their state, in place."""
    if len(row) != len(held_out):
        raise ValueError(
            "the state that was loaded belongs to another version of lr_gym: it has "
            f"{len(row)} numbers about the held-out loss, expected {len(held_out)}"
        )
    for target, value in zip(held_out, row.to(held_out.loss_sum), strict=True):
        target[0] = value
