"""The warnings that a PolicyOptimizer gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lr_gym.optim.controlled_model import ControlledModel
from lr_gym.optim.finishing import finish_of
from lr_gym.optim.group_rates import PEAK_LR, START_LR
from lr_gym.optim.notices import Notices, warn_user
from lr_gym.optim.pretrained import MESSAGE, is_pretrained
from lr_gym.optim.settings import Settings
from lr_gym.optim.state import CONTROLLER

__all__ = ["check_layers", "check_over", "check_rates", "warn_of_guard"]

RISE = 3.0  # factor by which a group's learning rate may rise above its start without a warning
FALL = 0.99  # a group's learning rate below this part of its highest value counts as decayed
# Steps after the end, over those before it, for which nobody is warned: a loop may be left only
# where an epoch is over.
SPARE = 0.1


def check_layers(model: ControlledModel, states: Mapping[Tensor, dict[str, Any]]) -> None:
    """Warn of trained layers about which a loaded state says nothing.

    Args:
        model: the model, just laid out.
        states: state of each parameter.
    """
    first = [states.get(slot.param, {}) for slot in model.first_slot_of_layer]
    known = any(CONTROLLER in state for state in first)
    if known and any(state and CONTROLLER not in state for state in first):
        warn_user(
            "the state that was loaded has other layers (perhaps it was saved without names): the "
            "layers about which it says nothing start anew"
        )


def check_rates(notices: Notices, groups: Sequence[dict[str, Any]], schedule: str) -> None:
    """Warn of a group whose lr has risen far above its start, or decays beside the policy's own.

    Args:
        notices: which warnings were given.
        groups: parameter groups of the optimizer.
        schedule: name of the policy's base schedule.
    """
    for group in groups:
        if float(group["lr"]) < FALL * float(group[PEAK_LR]) and schedule != "constant":
            notices.once(
                "decay",
                f"the learning rate falls from {float(group[PEAK_LR]):g} to "
                f"{float(group['lr']):g}, by a scheduler it seems, beside the policy's own "
                f"schedule {schedule!r}: the lower of both counts. Leave the scheduler out, or "
                "keep its warmup only (Trainer: lr_scheduler_type='constant_with_warmup')",
            )
        if float(group["lr"]) > RISE * group[START_LR] > 0.0:
            notices.once(
                "rate",
                f"the learning rate has risen to {float(group['lr']):g}, and the policy started "
                f"from {group[START_LR]:g}: the rise multiplies the policy's own rate, and the "
                "policy does not see it; give your peak rate as lr=...",
            )


def check_over(notices: Notices, model: ControlledModel, settings: Settings, step: int) -> None:
    """Warn of steps that train nothing because the training is over.

    Args:
        notices: which warnings were given.
        model: the model with its controller.
        settings: what the optimizer was made with.
        step: optimizer steps made.
    """
    finish = finish_of(model.groups)
    if finish.end is not None:
        if step < (1.0 + SPARE) * finish.end:
            return
        notices.once(
            "finished",
            f"the training has ended: the held-out loss had stopped falling at step "
            f"{finish.decided}, and the learning rate has been 0 since step {finish.end}. Further "
            "steps train nothing: leave the loop where optimizer.finished is true",
        )
        return
    total = settings.total_steps
    if total is None or step < total or model.controller.schedule(step) != 0.0:
        return
    notices.once(
        "end",
        f"total_steps={total} are over at step {step} and the learning rate is 0: give the number "
        "of optimizer steps of the whole training, those before a checkpoint included",
    )


def warn_of_guard(notices: Notices, model: ControlledModel, *, wait: bool) -> None:
    """Warn that the guard acts, as soon as the host knows.

    Args:
        notices: which warnings were given.
        model: the model with its guard.
        wait: whether to wait for the device to know.
    """
    if model.guard is None or notices.given("guard"):
        return
    message = MESSAGE if is_pretrained(model.groups) else model.guard.alarm(wait=wait)
    if message is not None:
        notices.once("guard", message)
