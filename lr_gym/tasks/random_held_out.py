"""Random tasks of which many memorise, for policies that watch a held-out loss.

The task `random-held-out-<number>` is `random-<number>` with other draws. Most of these tasks have
few examples, which their network memorises after a while. In half of them some targets of the
gradient split are wrong, as labels by hand are; memorising those costs more. The other splits are
what they are without, so a held-out loss tells the truth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from lr_gym.rng import Stream, uniform
from lr_gym.tasks.random_plateau import random_plateau_task
from lr_gym.tasks.random_tasks import (
    LANGUAGE_MODEL,
    RandomTask,
    draw,
    drawn_data,
    drawn_task,
    log_uniform,
    random_task,
)
from lr_gym.tasks.task import Data
from lr_gym.tasks.wrong_targets import with_wrong_targets

__all__ = ["FEW", "HELD_OUT_RANGES", "RANDOM_SUPPLIES", "WRONG", "random_held_out_task"]

FEW = 2.0 / 3.0  # this share of the tasks has few examples
WRONG = 0.5  # this share of the tasks is drawn to have wrong targets
# Log-uniform ranges of what is drawn anew. `examples` is for the tasks that have few, and `wrong`,
# the share of wrong targets, for those that have any.
HELD_OUT_RANGES: dict[str, tuple[Any, Any]] = {
    "examples": (60, 2000),
    "wrong": (0.03, 0.4),
    "horizon": (200, 2000),
}

VALUES = 0  # step of Stream.HELD_OUT_TASK; others are in use in wrong_targets.py


def _draw(number: int) -> dict[str, Any]:
    """What `random_task` draws, with a few other values and the share of wrong targets."""
    drawn = draw(number)
    few, examples, is_wrong, wrong, horizon = uniform(
        torch.tensor(number), Stream.HELD_OUT_TASK, VALUES, 5, dtype=torch.float64
    ).tolist()
    if few < FEW:
        drawn["examples"] = log_uniform(HELD_OUT_RANGES["examples"], examples)
    # What is reconstructed is the input, which is never wrong.
    can_be_wrong = is_wrong < WRONG and drawn["loss"] != "reconstruction"
    drawn["wrong"] = log_uniform(HELD_OUT_RANGES["wrong"], wrong) if can_be_wrong else 0.0
    drawn["horizon"] = log_uniform(HELD_OUT_RANGES["horizon"], horizon)
    return drawn


def _data(number: int, drawn: dict[str, Any]) -> Data:
    """The data that are drawn, with wrong targets in the gradient split alone."""
    data = drawn_data(number, drawn)
    values = data.gradient.targets.is_floating_point() or drawn["network"] == LANGUAGE_MODEL
    classes = None if values else drawn["classes"]
    return with_wrong_targets(data, drawn["wrong"], classes, seed=number)


@functools.lru_cache(maxsize=256)
def random_held_out_task(number: int) -> RandomTask:
    """The task `random-held-out-<number>`, for any integer of at least 0.

    Its `drawn` holds one value more than that of `random_task`: `wrong`, the share of wrong targets
    in the gradient split, which is 0 for half of the tasks and for every reconstruction.

    Raises:
        ValueError: if the number is negative.
    """
    drawn = _draw(number)
    data = functools.partial(_data, number, drawn)
    return drawn_task(f"random-held-out-{number}", drawn, data)


# What the name of a random task says before its number -> the function of the number.
RANDOM_SUPPLIES: dict[str, Callable[[int], RandomTask]] = {
    "random": random_task,
    "random-held-out": random_held_out_task,
    "random-plateau": random_plateau_task,
}
