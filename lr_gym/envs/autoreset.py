"""When the rows of a vector environment start anew: the autoreset modes of Gymnasium.

SAME_STEP  The step that ends an episode starts the next one at once. The last observation and
           info of the ended episode are in the infos.
NEXT_STEP  The step after that one starts the next episode. Until then the row waits; its action
           in the step that starts it is ignored, and its reward is 0. Gymnasium's wrappers of
           observations want this mode.
DISABLED   The caller starts the next episode, by `reset` with the option "reset_mask".
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

__all__ = ["check_waiting", "rows_to_restart"]


def check_waiting(mode: AutoresetMode, waiting: NDArray[np.bool_]) -> None:
    """Raise ResetNeeded where the caller has to restart rows before the next step.

    Args:
        mode: the autoreset mode.
        waiting: (B,) whether the episode of a row has ended before this step.
    """
    if mode == AutoresetMode.DISABLED and waiting.any():
        rows = np.flatnonzero(waiting).tolist()
        raise gym.error.ResetNeeded(
            f"the trainings of rows {rows} have ended: call reset() before the next step()"
        )


def rows_to_restart(
    mode: AutoresetMode, waiting: NDArray[np.bool_], ended: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """The rows that start a new episode at the end of a step.

    Args:
        mode: the autoreset mode.
        waiting: (B,) rows whose episode has ended before this step.
        ended: (B,) rows whose episode has ended in this step.

    Returns:
        (B,) mask.
    """
    if mode == AutoresetMode.SAME_STEP:
        return ended
    return waiting if mode == AutoresetMode.NEXT_STEP else np.zeros_like(ended)
