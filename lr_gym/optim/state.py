"""A controller's state (B = 1) as rows of numbers in an optimizer's state, in that of each layer's first parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.control.observation import Memory
from lr_gym.control.spec import ControlState
from lr_gym.optim.guard import Guard

__all__ = ["CONTROLLER", "KEYS", "load_rows", "save_rows"]

CONTROLLER, GUARD = KEYS = ("controller", "guard")
PER_RUN = Memory._fields.index("initial_param_rms")  # fields of Memory that have no layers
OLDER = 2  # numbers that states of before 2026-11-22 have at the end of a row: the guard's
NEWER = 1  # numbers at the end of a row that states of before 2026-11-23 lack: initial_grad_rms


def save_rows(
    states: Mapping[Tensor, dict[str, Any]],
    leads: Sequence[Tensor | None],
    control: ControlState,
    guard: Guard | None,
) -> None:
    """Write the rows of each layer into the state of its first parameter.

    Args:
        states: of the optimizer.
        leads: the first parameter of each layer, None where it is gone.
        control: the controller's state.
        guard: of the policy, None where it has none.
    """
    per_run, per_layer = _parts(control)
    layers = len(leads)
    row = [*(value.expand(layers) for value in per_run), *(value[0] for value in per_layer)]
    rows = {CONTROLLER: torch.stack(row, dim=1)}
    if guard is not None:
        rows[GUARD] = torch.stack(guard.state, dim=-1)[0]
    for key, values in rows.items():
        for lead, value in zip(leads, values, strict=True):
            if lead is not None:
                states[lead][key] = value.clone()


def load_rows(
    states: Mapping[Tensor, dict[str, Any]],
    leads: Sequence[Tensor],
    control: ControlState,
    guard: Guard | None,
) -> None:
    """Inverse of `save_rows`: fills initial states in, in place; what has no rows keeps them.

    Raises:
        ValueError: for rows of a policy with other controls.
    """
    for layer, lead in enumerate(leads):
        state = states.get(lead, {})
        if CONTROLLER in state:
            older = _fill(control, layer, state[CONTROLLER])
            guard_row = (
                older if len(older) else state.get(GUARD, ())
            )  # which once had no key of its own
            for target, value in zip(() if guard is None else guard.state, guard_row, strict=False):
                target[0, layer] = value


def _parts(control: ControlState) -> tuple[list[Tensor], list[Tensor]]:
    """Values of the run, (1,) each, and of the layers, (1, L) each."""
    per_run = [*control.memory[:PER_RUN], control.loss_sum, control.loss_count]
    older, newer = control.memory[PER_RUN:-NEWER], control.memory[-NEWER:]
    return per_run, [*older, *control.offset.unbind(-1), *control.action.unbind(-1), *newer]


def _fill(control: ControlState, layer: int, row: Tensor) -> Tensor:
    """Write a layer's row (n,) into a state, in place.

    Returns what the row holds beyond, (0,) or (OLDER,).
    """
    per_run, per_layer = _parts(control)
    known = len(per_run) + len(per_layer)
    if len(row) in (known - NEWER, known - NEWER + OLDER):
        per_layer = per_layer[:-NEWER]
    elif len(row) != known:
        raise ValueError(
            f"the state that was loaded is that of a policy with other controls: {len(row)} "
            f"numbers a layer, {known} "
            "are expected; load it into an optimizer with the policy that it was saved with"
        )
    parts = [len(per_run), len(per_layer), len(row) - len(per_run) - len(per_layer)]
    run_row, layer_row, beyond = torch.split(row.to(control.offset), parts)
    for target, value in zip(per_run, run_row, strict=True):
        target[0] = value
    for target, value in zip(per_layer, layer_row, strict=True):
        target[0, layer] = value
    return beyond
