"""Checks of what users give to the environments. Every error names the value and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from lr_gym.control.spec import ControlSpec
from lr_gym.tasks import Task

__all__ = [
    "RENDER_MODES",
    "check_env_options",
    "check_optimum",
    "control_spec_of",
    "reset_options",
]

RENDER_MODES = ("rgb_array", "ansi")


def check_env_options(
    max_episode_steps: int | None, render_mode: str | None, autoreset_mode: AutoresetMode | str
) -> AutoresetMode:
    """Check the options of LRControlVectorEnv with these names; return the autoreset mode.

    Raises:
        ValueError: for an option out of range, naming it.
    """
    if max_episode_steps is not None:
        raise ValueError(
            f"max_episode_steps={max_episode_steps!r}: set horizon or decisions instead"
        )
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be None or one of {RENDER_MODES}; got {render_mode!r}")
    try:
        return AutoresetMode(autoreset_mode)
    except ValueError:
        names = ", ".join(f"AutoresetMode.{mode.name}" for mode in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {names}; got {autoreset_mode!r}") from None


def control_spec_of(spec: ControlSpec | None, fields: Mapping[str, Any]) -> ControlSpec:
    """The spec that was given, or one made of its fields.

    Raises:
        TypeError: where both are given, for something that is no spec, and for a name that is
            neither a field of ControlSpec nor an option of the environment.
    """
    if spec is None:
        return ControlSpec(**fields)
    if not isinstance(spec, ControlSpec):
        raise TypeError(f"spec must be a ControlSpec; got {spec!r}: give other options by keyword")
    if fields:
        raise TypeError(f"give spec or its fields, not both; got spec and {', '.join(fields)}")
    return spec


def reset_options(
    options: Mapping[str, Any] | None, runs: int, layers: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Options of `reset`: which runs start anew, and their initial learning rates.

    Args:
        options: what the user gave, see LRControlVectorEnv.reset.
        runs: B.
        layers: L.

    Returns:
        (B,) mask, and (B, L) learning rates, NaN where runs draw their own.

    Raises:
        ValueError: for an unknown option or a value of another shape or range, naming it.
    """
    given = dict(options or {})
    mask = np.asarray(given.pop("reset_mask", np.ones(runs)), dtype=bool)
    lr = given.pop("initial_lr", None)
    if given or mask.shape != (runs,):
        raise ValueError(
            f"reset() takes the options reset_mask, ({runs},) bool, and initial_lr; "
            f"got {given or mask}"
        )
    if lr is None:
        return mask, np.full((runs, layers), np.nan)
    lrs = np.asarray(lr, dtype=np.float64)
    shapes = ((runs,), (runs, layers))
    if lrs.shape not in shapes or not (np.isfinite(lrs) & (lrs > 0.0)).all():
        raise ValueError(
            f"initial_lr must be positive numbers, one per run {shapes[0]} or one per run and "
            f"layer {shapes[1]}; got {lr}"
        )
    return mask, np.broadcast_to(lrs.reshape(runs, -1), (runs, layers)).copy()


def check_optimum(task: Task, losses: NDArray[np.float64]) -> None:
    """Raise a ValueError where a training starts below the task's optimum.

    Args:
        task: what is trained.
        losses: initial losses on the reward split.
    """
    lowest = losses.min(initial=np.inf)
    if lowest < task.optimum:
        raise ValueError(
            f"task {task.name!r} starts with a loss of {lowest:.4g}, below its optimum "
            f"{task.optimum:g}, where no decrease is rewarded: set Task.optimum to a lower bound "
            "of the loss"
        )
