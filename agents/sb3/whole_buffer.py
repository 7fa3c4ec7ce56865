"""SB3's replay buffer for trainings that a policy may end."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from agents.early_ends import EndingTransitions, finishing_rows

__all__ = ["WholeTransitionsBuffer"]


class WholeTransitionsBuffer(ReplayBuffer):
    """A replay buffer in which the fall of a learning rate is a part of the decision to end.

    Places of rows whose learning rate falls hold the reward NaN and are never sampled.

    Attributes:
        endings: The transitions that are not over yet.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: str = "auto",
        n_envs: int = 1,
        *,
        discount: float,
        **options: Any,
    ) -> None:
        """Make an empty buffer.

        Args:
            buffer_size: Transitions that are kept, of all rows together.
            observation_space: Space of a row's observation.
            action_space: Space of a row's action.
            device: Device of what is sampled.
            n_envs: Number of rows.
            discount: Discount per decision.
            options: More options of SB3's buffer.
        """
        super().__init__(buffer_size, observation_space, action_space, device, n_envs, **options)
        self.endings = EndingTransitions(
            np.zeros_like(self.observations[0]), np.zeros_like(self.actions[0]), discount
        )

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store the transitions of a decision, as far as they are over.

        Args:
            obs: Observations (rows, F) in which the decision was made.
            next_obs: Observations (rows, F) after it.
            action: Indices (rows,) of the actions.
            reward: Rewards (rows,).
            done: Whether each row's training has ended, (rows,).
            infos: Infos of the rows.
        """
        action = action.reshape(self.actions[0].shape)
        state, action, reward = self.endings.join(obs, action, reward, finishing_rows(infos))
        super().add(state, next_obs, action, reward, done, infos)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw transitions, each with the same probability.

        Args:
            batch_size: Number of transitions.
            env: Must be None: nothing is normalised.
        """
        assert env is None
        filled = self.buffer_size if self.full else self.pos
        whole = np.flatnonzero(np.isfinite(self.rewards[:filled]))
        chosen = whole[np.random.randint(len(whole), size=batch_size)]  # noqa: NPY002 - as SB3 does
        place, row = np.divmod(chosen, self.n_envs)
        ended = self.dones[place, row] * (1.0 - self.timeouts[place, row])
        return ReplayBufferSamples(
            self.to_torch(self.observations[place, row]),
            self.to_torch(self.actions[place, row]),
            self.to_torch(self.next_observations[place, row]),
            self.to_torch(ended.reshape(-1, 1)),
            self.to_torch(self.rewards[place, row].reshape(-1, 1)),
        )
