"""LRControlEnv: one inner training as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import Task

__all__ = ["LRControlEnv"]


class LRControlEnv(gym.Env[NDArray[np.float32], Any]):
    """Control the learning rates of one training.

    It wraps a LRControlVectorEnv with one row, whose docstring explains options and infos.

    Observations are flat (L * F,), layer by layer; actions are flat (L * A,), or L indices in the
    discrete modes (a single index where there is one layer, so that DQN can learn on it).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, task: str | Task, render_mode: str | None = None, **options: Any) -> None:
        """Build the environment.

        Args:
            task: a Task, or what `lr_gym.tasks.find_task` takes.
            render_mode: "rgb_array", "ansi" or None.
            options: further options of LRControlVectorEnv, fields of ControlSpec included.
        """
        self.render_mode = render_mode
        self.vector_env = LRControlVectorEnv(
            task,
            num_envs=1,
            render_mode=render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
            **options,
        )
        self.observation_space = _flat(self.vector_env.single_observation_space)
        actions = self.vector_env.single_action_space
        if not isinstance(actions, gym.spaces.MultiDiscrete):
            self.action_space = _flat(actions)
        elif len(actions.nvec) > 1:
            self.action_space = actions
        else:
            self.action_space = gym.spaces.Discrete(int(actions.nvec[0]))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start a new training; `seed` determines it, None continues to the next one."""
        super().reset(seed=seed)
        observation, infos = self.vector_env.reset(seed=seed, options=options)
        return observation.reshape(-1), self._info(infos)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision; raises ResetNeeded after the end of the training."""
        shape = self.vector_env.action_space.shape
        observation, reward, terminated, truncated, infos = self.vector_env.step(
            np.reshape(action, shape or ())
        )
        return (
            observation.reshape(-1),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            self._info(infos),
        )

    def render(self) -> Any:
        """The current frame: a picture (H, W, 3) or a text."""
        return self.vector_env.render()[0]

    def close(self) -> None:
        """Nothing to close."""

    @staticmethod
    def _info(infos: dict[str, Any]) -> dict[str, Any]:
        """The only row of each array, as plain Python values; lr stays (L,)."""
        return {
            key: value[0].copy() if value.ndim > 1 else value[0].item()
            for key, value in infos.items()
        }


def _flat(space: gym.Space[Any]) -> gym.spaces.Box[np.float32]:
    """The Box (n,) within [-1, 1] with as many numbers as a Box of another shape."""
    return gym.spaces.Box(-1.0, 1.0, (int(np.prod(space.shape or ())),), np.float32)
