"""Infos of a vector environment: arrays with a row per run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.finish import Endings
from lr_gym.envs.env_state import EnvState

__all__ = ["final_infos", "infos_of"]


def infos_of(
    runs: EnvState,
    step: NDArray[np.int64],
    lr: Tensor,
    divergence: NDArray[np.str_] | str,
    endings: Endings,
) -> dict[str, Any]:
    """Infos of B trainings, copies on the host.

    Args:
        runs: the trainings.
        step: (B,) inner steps made.
        lr: (B, L) effective learning rates.
        divergence: (B,) why each run diverged, "" where it did not; "" where none did.
        endings: what is decided about the ends of the trainings.
    """
    reasons = np.full(len(step), divergence, dtype="<U16")  # one width, whatever the reasons are
    return {
        "run_seed": runs.inner.run_seed.cpu().numpy().copy(),
        "step": step.copy(),
        "train_loss": runs.inner.loss.double().cpu().numpy().copy(),
        "reward_loss": runs.loss.double().cpu().numpy().copy(),
        "lr": lr.double().cpu().numpy(),
        "diverged": reasons != "",
        "divergence": reasons,
        "finishing": ~endings.undecided,
    }


def final_infos(
    observation: NDArray[np.float32], infos: Mapping[str, Any], ended: NDArray[np.bool_]
) -> dict[str, Any]:
    """What Gymnasium wants to know of runs that ended and started again in the same step.

    Args:
        observation: (B, L, F) last observations.
        infos: last infos, arrays with a row per run.
        ended: (B,) the runs that ended.
    """
    final_obs = np.full(len(ended), None, dtype=object)
    for row in np.flatnonzero(ended):
        final_obs[row] = observation[row].copy()
    return {
        "final_info": {key: value.copy() for key, value in infos.items()},
        "final_obs": final_obs,
        "_final_obs": ended.copy(),
        "_final_info": ended.copy(),
    }
