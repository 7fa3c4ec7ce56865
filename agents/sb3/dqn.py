"""DQN.

Values of discrete learning-rate factors (and momentum steps), the same network for every layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from torch import nn

from agents.learner import PolicyLearner
from agents.sb3.ppo import mlp_policy
from agents.sb3.rows import LayerRowsVecEnv
from agents.sb3.state import algorithm_state, load_algorithm_state, renew, rows_of
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = ["DQNConfig", "DQNLearner"]

_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """DQN's hyperparameters (Mnih et al. 2015), named as in SB3."""

    learning_rate: float = 1e-3
    """Of the agent's own Adam; falls linearly to 0."""
    buffer_size: int = 200_000
    """Transitions that are kept, all rows together."""
    batch_size: int = 512
    """Transitions per gradient step."""
    gradient_steps: int = 4
    """Gradient steps after each decision of all rows."""
    gamma: float = 0.98
    """Discount per decision."""
    target_update: int = 10
    """Decisions between two copies to the target network."""
    exploration: tuple[float, float] = (1.0, 0.05)
    """Probability of a random action in each row, at first and at last."""
    exploration_fraction: float = 0.5
    """Share of the updates over which it falls."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the network, tanh."""


class RowwiseDQN(DQN):
    """SB3's DQN, which explores in all rows at once or in none, made to explore in each row by itself."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Epsilon-greedy in each row; greedy where `deterministic`."""
        action, state = self.policy.predict(observation, state, episode_start, True)
        if deterministic:
            return action, state
        explore = np.random.rand(len(action)) < self.exploration_rate  # noqa: NPY002 - SB3's own generator
        chance = np.random.randint(self.action_space.n, size=len(action))  # type: ignore[attr-defined] # noqa: NPY002
        return np.where(explore, chance, action), state


class DQNLearner(PolicyLearner):
    """SB3's DQN on layer rows.

    It learns after each decision, and an update is one training of every run.
    """

    def __init__(
        self,
        env: LayerRowsVecEnv,
        selection: Sequence[LRControlVectorEnv],
        config: DQNConfig,
        *,
        seed: int,
        updates: int,
    ) -> None:
        """See `PPOLearner`; the environment's actions must be discrete."""
        super().__init__(selection)
        if not isinstance(env.action_space, gym.spaces.Discrete):
            raise ValueError(
                "DQN needs action='discrete' or 'discrete_residual'; got "
                f"{env.envs[0].control_spec.action!r}"
            )
        self._decisions, self._gradient_steps, self._batch = (
            env.decisions,
            config.gradient_steps,
            config.batch_size,
        )
        self.model = RowwiseDQN(
            "MlpPolicy",
            env,
            learning_rate=lambda remaining: config.learning_rate * remaining,
            buffer_size=config.buffer_size,
            learning_starts=0,
            batch_size=config.batch_size,
            gamma=config.gamma,
            train_freq=1,
            gradient_steps=config.gradient_steps,
            target_update_interval=config.target_update * env.num_envs,
            exploration_initial_eps=config.exploration[0],
            exploration_final_eps=config.exploration[1],
            exploration_fraction=config.exploration_fraction,
            seed=seed,
            device="cpu",
            policy_kwargs={"net_arch": list(config.hidden), "activation_fn": nn.Tanh},
        )
        _, self._callback = self.model._setup_learn(updates * env.decisions * env.num_envs)

    def update(self) -> dict[str, float]:
        """One decision and its gradient steps after the other."""
        model, env = self.model, rows_of(self.model)
        once = TrainFreq(1, TrainFrequencyUnit.STEP)
        assert model.replay_buffer is not None
        renew(model)
        for _ in range(self._decisions):
            model.collect_rollouts(env, self._callback, once, model.replay_buffer)
            model.train(self._gradient_steps, self._batch)
        return env.figures() | {"exploration": float(model.exploration_rate)}

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The greedy policy: one output per action, the largest is taken."""
        return mlp_policy(list(self.model.q_net.q_net), rows_of(self.model), about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, the replay buffer included."""
        model, buffer = self.model, self.model.replay_buffer
        assert buffer is not None
        filled = buffer.buffer_size if buffer.full else buffer.pos
        arrays = {name: torch.from_numpy(getattr(buffer, name)[:filled].copy()) for name in _BUFFER}
        return algorithm_state(model) | {
            "buffer": arrays | {"pos": buffer.pos, "full": buffer.full},
            "n_calls": model._n_calls,
            "exploration_rate": float(model.exploration_rate),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        model, saved, buffer = self.model, state["buffer"], self.model.replay_buffer
        assert buffer is not None
        load_algorithm_state(model, state)
        for name in _BUFFER:
            getattr(buffer, name)[: len(saved[name])] = saved[name].numpy()
        buffer.pos, buffer.full = saved["pos"], saved["full"]
        model._n_calls, model.exploration_rate = state["n_calls"], state["exploration_rate"]
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
