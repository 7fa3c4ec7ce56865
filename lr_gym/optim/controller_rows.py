"""A controller's state as a row of numbers for each layer: how it is kept in the state of an optimizer (B = 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from lr_gym.control import ControlState

__all__ = ["fill_held_out", "fill_row", "held_out_rows_of", "rows_of"]

RUN = ("loss_seen", "initial_loss", "last_loss", "loss_change", "short_loss", "long_loss")  # of Memory, as in a row
LAYER = ("initial_param_rms", "log_grad", "initial_grad_rms")  # likewise
HELD_OUT = ("held_out", "lowest_held_out", "stalled", "plateaus")  # in rows of their own, of 2026-11-28 and later
OLDER = 2  # numbers that states of before 2026-11-22 have at the end of a row: the guard's
NEWER = 1  # numbers at the end of a row that states of before 2026-11-23 lack: initial_grad_rms


def _parts(control: ControlState) -> tuple[list[Tensor], list[Tensor]]:
    """Values of the run, (1,) each, and of the layers, (1, L) each."""
    memory = control.memory._asdict()
    *older, newer = (memory[name] for name in LAYER)
    per_run = [*(memory[name] for name in RUN), control.loss_sum, control.loss_count]
    return per_run, [*older, *control.offset.unbind(-1), *control.action.unbind(-1), newer]


def _held_out_parts(control: ControlState) -> list[Tensor]:
    memory = control.memory._asdict()
    return [*(memory[name] for name in HELD_OUT), control.held_out_sum, control.held_out_count]


def rows_of(control: ControlState) -> Tensor:
    """Rows (L, n): what belongs to the run stands in each."""
    per_run, per_layer = _parts(control)
    layers = control.offset.shape[1]
    return torch.stack([*(value.expand(layers) for value in per_run), *(value[0] for value in per_layer)], dim=1)


def held_out_rows_of(control: ControlState) -> Tensor:
    """Rows (L, 6) of what is known of a held-out loss, the same for each layer."""
    return torch.cat(_held_out_parts(control)).expand(control.offset.shape[1], -1)


def fill_held_out(control: ControlState, row: Tensor) -> None:
    """Write a row of `held_out_rows_of` into a state, in place."""
    for target, value in zip(_held_out_parts(control), row.to(control.offset), strict=True):
        target[0] = value


def fill_row(control: ControlState, layer: int, row: Tensor) -> Tensor:
    """Write a layer's row (n,) into a state, in place; returns what the row holds beyond, (0,) or (OLDER,).

    Raises:
        ValueError: for a row of another length, that of a policy with other controls.
    """
    per_run, per_layer = _parts(control)
    known = len(per_run) + len(per_layer)
    if len(row) in (known - NEWER, known - NEWER + OLDER):
        per_layer = per_layer[:-NEWER]
    elif len(row) != known:
        raise ValueError(
            f"the state that was loaded is that of a policy with other controls: {len(row)} numbers a layer, {known} "
            "are expected; load it into an optimizer with the policy that it was saved with"
        )
    parts = [len(per_run), len(per_layer), len(row) - len(per_run) - len(per_layer)]
    run_row, layer_row, beyond = torch.split(row.to(control.offset), parts)
    for target, value in zip(per_run, run_row, strict=True):
        target[0] = value
    for target, value in zip(per_layer, layer_row, strict=True):
        target[0, layer] = value
    return beyond
