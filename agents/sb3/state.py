"""The state of an SB3 algorithm between two updates, as tensors and plain values.

SB3's own files are pickles without the state of the environment and the random generators, so a
training could not continue from them bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.sb3.rows import LayerRowsVecEnv

__all__ = ["algorithm_state", "load_algorithm_state", "renew", "rows_of"]


def rows_of(model: BaseAlgorithm) -> LayerRowsVecEnv:
    """The environment that a model learns in."""
    assert isinstance(model.env, LayerRowsVecEnv)
    return model.env


def renew(model: BaseAlgorithm) -> bool:
    """Between two updates: go on to new tasks, where the suite is random.

    Returns:
        Whether new trainings have begun in all rows.
    """
    env = rows_of(model)
    if not env.renew():
        return False
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    return True


def algorithm_state(model: BaseAlgorithm) -> dict[str, Any]:
    """Everything that the next update depends on.

    These are networks, optimizer, counters, the rows of the environments, and the global random
    generators, from which SB3 draws.
    """
    env = rows_of(model)
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - SB3 shuffles and samples with it
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "last_obs": torch.from_numpy(np.array(model._last_obs)),
        "last_episode_starts": torch.from_numpy(np.array(model._last_episode_starts)),
        "rows": env.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
        },
    }


def load_algorithm_state(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Continue exactly where `algorithm_state` was taken."""
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps = state["num_timesteps"]
    model._n_updates = state["n_updates"]
    rows_of(model).load_state_dict(state["rows"])
    model._last_obs = state["last_obs"].numpy().copy()
    model._last_episode_starts = state["last_episode_starts"].numpy().copy()
    torch.set_rng_state(state["torch_rng"])
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    numpy_state["state"]["key"] = state["numpy_rng"]["key"].numpy().astype(np.uint32)
    numpy_state["state"]["pos"] = state["numpy_rng"]["pos"]
    np.random.set_state(numpy_state)  # noqa: NPY002
