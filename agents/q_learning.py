"""The agent `q_learning`: tabular Q-learning in the environment, with the table of EnhancedSGD.

With the preset enhanced_sgd the table has the states and actions of EnhancedSGD, which can continue
to learn from it (`controller_of` is in lr_gym.optim.contrib.environment_table):

    EnhancedSGD(params, q_controller=controller_of(load_policy("runs/q")))
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from agents.early_ends import EndingTransitions, fewer_endings, finishing_rows
from agents.learner import PolicyLearner
from agents.sb3.rows import LayerRowsVecEnv
from lr_gym.control.action import action_rows
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optim.contrib.environment_table import observed_edges
from lr_gym.policies.q_policy import QTablePolicy
from lr_gym.policies.q_table import QLearningController

__all__ = ["QConfig", "QLearner"]

# Edges of the bins of each feature; all features lie in [-1, 1]. The edges of update_ratio are the
# ratios 10^-4, 10^-3.5, ... 10^-1.
EDGES = {
    "update_ratio": tuple(
        float(np.tanh((x + 2.5) / 1.5)) for x in (-4, -3.5, -3, -2.5, -2, -1.5, -1)
    ),
    "update_ratio_among_layers": (-0.5, 0.5),
    "snr": (-0.5, 0.0, 0.5),
    "cosine": (-0.2, 0.2),
    "loss_trend": (-0.3, -0.05, 0.05),
    "loss_excess": (-0.5, 0.0, 0.5),  # the loss is 13 % below or 15 % above its slow mean
    "loss_surprise": (-0.3, 0.3, 0.6),  # 1 and 2 times the usual change
    "depth": (-1 / 3, 1 / 3),
    "progress": (-0.9, -0.6, 0.0, 0.6),
    "scaled_lr": (0.0, 0.37),  # 10^-3 and 0.02, over the layer's unit
    "monitor_stall": (0.1, 0.27, 0.45),  # 1, 3 and 7 decisions since the best
    "monitor_best": (0.04, 0.2),  # 0.02 and 0.1 nats above the best
    "monitor_trend": (-0.3, -0.05, 0.05),
    "monitor_gap_trend": (0.05, 0.3),
}


@dataclasses.dataclass(frozen=True)
class QConfig:
    """Hyperparameters of Watkins' Q-learning (1992)."""

    learning_rate: float = 0.1
    """Step of a cell towards its target. It falls linearly to a tenth."""
    discount: float = 0.9
    """Discount per decision."""
    levels: tuple[float, ...] = (-1.0, -0.5, -0.15, 0.0, 0.15, 0.5, 1.0)
    """Actions on the learning rate, as fractions of `action_step`. Momentum, where it is
    controlled, has the actions -1, 0 and 1."""
    exploration: tuple[float, float] = (1.0, 0.05)
    """Probability of a random action at first and at last. It falls linearly."""
    exploration_fraction: float = 0.5
    """Fraction of the updates over which the probability of a random action falls."""


class QLearner(PolicyLearner):
    """All layers of all runs read and write one table.

    An update is as many decisions as the longest training has. Where the policy can end trainings,
    what follows until the end counts as a part of that decision.
    """

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
            env: What the agent learns in: actions are continuous, and EDGES has every feature.
            selection: Environments of the trainings that select the policy, one for each task.
            config: Hyperparameters.
            seed: Seed of the exploration.
            updates: Number of updates.

        Raises:
            ValueError: Actions are discrete, or a feature has no bins.
        """
        super().__init__(selection)
        self._env = env
        self._config = config
        self._updates = updates
        self._done = 0
        self._spec = env.envs[0].control_spec
        if self._spec.mode.discrete:
            raise ValueError(
                "tabular Q-learning has actions of its own: it needs a continuous action; got "
                f"{self._spec.action!r}"
            )
        self._controller = QLearningController(
            edges(self._spec),
            action_rows(self._spec.controls, config.levels),
            learning_rate=config.learning_rate,
            discount=config.discount,
            epsilon_decay=1.0,
            min_epsilon=0.0,
            seed=seed,
        )
        self._observation = env.reset()
        states = self._states(self._observation).numpy()
        self._endings = EndingTransitions(states, np.zeros_like(states), config.discount)
        self._generator = torch.Generator().manual_seed(seed)

    def update(self) -> dict[str, float]:
        """Act and learn for as many decisions as the longest training has."""
        first, last = self._config.exploration
        falling = max(1.0, self._config.exploration_fraction * self._updates)  # updates
        share = min(1.0, self._done / falling)
        if self._env.renew():
            self._observation = self._env.reset()
            self._endings.clear()
        table = self._controller
        table.epsilon = first + (last - first) * share
        table.learning_rate = self._config.learning_rate * (1.0 - 0.9 * self._done / self._updates)
        states = self._states(self._observation)
        errors = []
        for _ in range(self._env.decisions):
            chosen = self._choose(states)
            self._env.step_async(table.actions[chosen].numpy())
            observation, rewards, dones, infos = self._env.step_wait()
            # where a training has ended, this is the first state of the next one: its value is not
            # used, since `dones` says so
            following = self._states(observation)
            started, taken, collected = map(
                torch.from_numpy,
                self._endings.join(states.numpy(), chosen.numpy(), rewards, finishing_rows(infos)),
            )
            # rows without a whole transition have the reward NaN, which the table leaves out
            error = table.update(started, taken, collected, following, torch.from_numpy(dones))
            errors.append(float(error.abs().nanmean()))
            states, self._observation = following, observation
        self._done += 1
        visited = float((table.visits.sum(1) > 0).sum())
        return self._env.figures() | {
            "exploration": table.epsilon,
            "td_error": float(np.nanmean(errors)),
            "visited_states": visited,
        }

    def _choose(self, states: torch.Tensor) -> torch.Tensor:
        """Epsilon-greedy actions (rows,); only those the table prefers end trainings often."""
        table = self._controller
        chosen = table.act(states)
        if not self._spec.finishes:
            return chosen
        draws = torch.rand(len(chosen), generator=self._generator).numpy()
        fewer = fewer_endings(chosen.numpy(), table.actions.numpy(), draws, self._env.decisions)
        preferred = (chosen == table.greedy(states)) & (table.visits[states, chosen] > 0)
        return torch.where(preferred, chosen, torch.from_numpy(fewer))

    def _states(self, observation: np.ndarray) -> torch.Tensor:
        return self._controller.state_index(torch.from_numpy(observation))

    def policy(self, about: dict[str, Any]) -> QTablePolicy:
        """The greedy policy of a copy of the table."""
        return QTablePolicy(self._spec, self._env.interval, copy.deepcopy(self._controller), about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "table": self._controller.state_dict(),
            "rows": self._env.state_dict(),
            "observation": torch.from_numpy(self._observation.copy()),
            "endings": self._endings.state_dict(),
            "generator": self._generator.get_state(),
            "done": self._done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._controller.load_state_dict(state["table"])
        self._env.load_state_dict(state["rows"])
        self._observation = state["observation"].numpy().copy()
        self._endings.load_state_dict(state["endings"])
        self._generator.set_state(state["generator"])
        self._done = state["done"]


def edges(spec: ControlSpec) -> list[tuple[float, ...]]:
    """Edges of the bins of each feature; those of EnhancedSGD where the spec has its features.

    Raises:
        ValueError: A feature has no bins; the message names it.
    """
    enhanced = observed_edges(spec.decisions)
    known = enhanced if spec.features == tuple(enhanced) else EDGES
    for name in spec.features:
        if name not in known:
            raise ValueError(
                f"tabular Q-learning has no bins for the feature {name!r}; choose from "
                f"{', '.join(known)}"
            )
    return [known[name] for name in spec.features]
