"""Tabular Q-learning in the environment, with EnhancedSGD's own table: what is trained here loads there.

EnhancedSGD(params, q_controller=load_policy("runs/q").controller)
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from agents.learner import PolicyLearner
from agents.sb3.rows import LayerRowsVecEnv
from lr_gym.optim.lr_q_control import default_controller
from lr_gym.q_policy import OBSERVED, QTablePolicy, share_over_entropy, table_features
from lr_gym.vector_env import LRControlVectorEnv

__all__ = ["QConfig", "QLearner"]


@dataclasses.dataclass(frozen=True)
class QConfig:
    """Hyperparameters of Watkins' Q-learning (1992)."""

    learning_rate: float = 0.1
    """Step of a cell towards its target."""
    discount: float = 0.9
    """Per decision."""
    exploration: tuple[float, float] = (1.0, 0.05)
    """Probability of a random action, at first and at last; falls linearly over `exploration_fraction`."""
    exploration_fraction: float = 0.5
    """Share of the updates over which it falls."""


class QLearner(PolicyLearner):
    """One table that all layers of all runs read and write; an update is one training of every run."""

    def __init__(
        self,
        env: LayerRowsVecEnv,
        selection: Sequence[LRControlVectorEnv],
        config: QConfig,
        *,
        seed: int,
        updates: int,
    ) -> None:
        """Start with an empty table.

        Args:
            env: with the features `OBSERVED`, continuous actions, and controls lr, or lr and momentum.
            selection: what it is judged in.
            config: hyperparameters.
            seed: of the exploration.
            updates: how many there will be.
        """
        super().__init__(selection)
        self._env, self._config, self._updates, self._done = env, config, updates, 0
        self._spec = env.envs[0].control_spec
        if self._spec.features != OBSERVED:
            raise ValueError(f"tabular Q-learning needs features={OBSERVED!r}; got {self._spec.features!r}")
        self._controller = default_controller(
            "momentum" in self._spec.controls,
            seed,
            learning_rate=config.learning_rate,
            discount=config.discount,
            epsilon_decay=1.0,
            min_epsilon=0.0,
        )
        self._observation = env.reset()

    def update(self) -> dict[str, float]:
        """Act, watch and learn for as many decisions as the longest training has."""
        first, last = self._config.exploration
        share = min(1.0, self._done / max(1.0, self._config.exploration_fraction * self._updates))
        table, width = self._controller, len(self._spec.controls)
        table.epsilon = first + (last - first) * share
        states = self._states(self._observation)
        errors = []
        for _ in range(self._env.decisions):
            chosen = table.act(states)
            observation, rewards, dones = self._env.decide(table.actions[chosen][:, :width].numpy())
            following = self._states(observation)  # of a new training where one has ended: its value is not used
            error = table.update(states, chosen, torch.from_numpy(rewards), following, torch.from_numpy(dones))
            errors.append(float(error.abs().mean()))
            states, self._observation = following, observation
        self._done += 1
        visited = float((table.visits.sum(1) > 0).sum())
        return self._env.figures() | {
            "exploration": table.epsilon,
            "td_error": float(np.mean(errors)),
            "visited_states": visited,
        }

    def _states(self, observation: np.ndarray) -> torch.Tensor:
        return self._controller.state_index(table_features(self._spec, torch.from_numpy(observation)))

    def policy(self, about: dict[str, Any]) -> QTablePolicy:
        """The greedy policy of a copy of the table."""
        controller = copy.deepcopy(self._controller)
        share_over_entropy(controller)
        interval = int(np.median([env.inner_steps_per_decision for env in self._env.envs]))
        return QTablePolicy(self._spec, interval, controller, about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "table": self._controller.state_dict(),
            "rows": self._env.state_dict(),
            "observation": torch.from_numpy(self._observation.copy()),
            "done": self._done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._controller.load_state_dict(state["table"])
        self._env.load_state_dict(state["rows"])
        self._observation, self._done = state["observation"].numpy().copy(), state["done"]
