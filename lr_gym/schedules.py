"""Base schedules: the learning rate's factor as a function of training progress in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCHEDULES", "base_schedule"]

Schedule = Callable[[Any], NDArray[np.float64]]
WSD_DECAY = 0.2  # fraction of the training that WSD spends on decaying (Hu et al. 2024: 0.1 to 0.2)

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda progress: np.ones_like(np.asarray(progress, dtype=np.float64)),
    "cosine": lambda progress: 0.5 * (1.0 + np.cos(np.pi * np.asarray(progress))),
    "linear": lambda progress: 1.0 - np.asarray(progress),
    "wsd": lambda progress: np.minimum(1.0, (1.0 - np.asarray(progress)) / WSD_DECAY),
}


def base_schedule(name: str) -> Schedule:
    """Look up a schedule of SCHEDULES, which clamps progress to [0, 1]; a ValueError lists the valid names."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    schedule = SCHEDULES[name]
    return lambda progress: schedule(np.clip(progress, 0.0, 1.0))
