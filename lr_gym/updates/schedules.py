"""Base schedules: the factor of the learning rate as a function of the progress of the training.

Progress is step / horizon, in [0, 1]. Every schedule starts at 1 and never rises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCHEDULES", "base_schedule"]

Schedule = Callable[[Any], NDArray[np.float64]]
# Fraction of the training in which WSD (warm-up, stable, decay) decays; Hu et al. (2024) take 0.1
# to 0.2. Ours has no warm-up.
WSD_DECAY = 0.2


def _constant(progress: Any) -> NDArray[np.float64]:
    return np.ones_like(np.asarray(progress, dtype=np.float64))


def _cosine(progress: Any) -> NDArray[np.float64]:
    return 0.5 * (1.0 + np.cos(np.pi * np.asarray(progress)))


def _linear(progress: Any) -> NDArray[np.float64]:
    return 1.0 - np.asarray(progress)


def _wsd(progress: Any) -> NDArray[np.float64]:
    return np.minimum(1.0, (1.0 - np.asarray(progress)) / WSD_DECAY)


SCHEDULES: dict[str, Schedule] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
}


def _clamped(schedule: Schedule, progress: Any) -> NDArray[np.float64]:
    if isinstance(progress, float):  # numpy would take several microseconds, at every step
        return schedule(min(max(progress, 0.0), 1.0))
    return schedule(np.clip(progress, 0.0, 1.0))


def base_schedule(name: str) -> Schedule:
    """Look up a schedule of SCHEDULES, which then clamps progress to [0, 1].

    Raises:
        ValueError: for an unknown name; the message lists the valid ones.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    return functools.partial(_clamped, SCHEDULES[name])
