"""BranchLearner: it plays branches, remembers the last ones, and fits its network to them."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.branches.trials import BranchConfig, Trials, play_branches, regret_of
from agents.learner import PolicyLearner
from agents.regression import falling_rates, regress
from agents.tanh_network import policy_of_network, tanh_network
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = ["BranchLearner"]


class BranchLearner(PolicyLearner):
    """Learns which action would have paid. An update is one training of every group of copies."""

    def __init__(
        self,
        envs: Sequence[LRControlVectorEnv],
        selection: Sequence[LRControlVectorEnv],
        config: BranchConfig,
        *,
        threads: int,
        seed: int,
        updates: int,
    ) -> None:
        """Start with a network whose action is 0.

        Args:
            envs: What the agent learns in, which restart diverged runs by themselves.
            selection: Environments of the trainings that select the policy, one for each task.
            config: Hyperparameters.
            threads: Threads that step the environments.
            seed: Seed of the network, of the trainings and of the choices.
            updates: Number of updates; the network's learning rate reaches 0 after them.

        Raises:
            ValueError: The agent cannot learn in such environments.
        """
        super().__init__(selection)
        check_envs(envs, config)
        self._envs = list(envs)
        self._config = config
        self._threads = threads
        self._seed = seed
        self._updates = updates
        self._done = 0
        self._spec = envs[0].control_spec
        self._network = tanh_network([len(self._spec.features), *config.hidden, 1], seed)
        self._policy = tanh_network([len(self._spec.features), *config.hidden, 1], seed)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._remembered: deque[Trials] = deque(maxlen=config.remembered)

    def update(self) -> dict[str, float]:
        """Branch off in every environment, then learn from what is remembered."""
        with ThreadPoolExecutor(self._threads) as pool:
            played = list(pool.map(self._play, range(len(self._envs))))
        new = functools.reduce(Trials.joined, (trials for trials, _ in played))
        with torch.no_grad():
            acted = self._act(new.observation.float()).squeeze(-1)
            regret = float(regret_of(acted, new.curves).mean())
            idle = float(new.curves[:, self._config.actions // 2].mean())
        self._remembered.append(new)
        self._learn()
        self._done += 1
        self._follow()
        means = {
            key: float(np.mean([figures[key] for _, figures in played])) for key in played[0][1]
        }
        return {"regret": regret, "regret_of_no_action": idle, **means}

    def _play(self, index: int) -> tuple[Trials, dict[str, float]]:
        """Branch off in one environment."""
        first = (self._seed << 20) + (self._done * len(self._envs) + index) * 64
        generator = np.random.default_rng([self._seed, self._done, index])
        return play_branches(self._envs[index], self._act, self._config, first, generator)

    def _act(self, observation: Tensor) -> Tensor:
        """Actions (B, 1, 1) for observations (B, 1, F)."""
        with torch.no_grad():
            named: Tensor = self._policy(observation)
        return named.clamp(-1.0, 1.0)

    def _actions(self, observation: Tensor) -> Tensor:
        """Actions (n,) that the network names, not clipped."""
        named: Tensor = self._network(observation.float())
        return named.squeeze(-1)

    def _learn(self) -> None:
        """Lower the regret of the actions that the network names."""
        seen = functools.reduce(Trials.joined, self._remembered)
        config = self._config

        def regret(rows: Tensor) -> Tensor:
            return regret_of(self._actions(seen.observation[rows]), seen.curves[rows]).mean()

        rates = falling_rates(config.learning_rate, config.steps, self._done, self._updates)
        regress(self._optimizer, regret, len(seen.curves), rates, self._generator)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the policy towards the network, all the way after the first update."""
        weight = max(1.0 - self._config.average, 1.0 / self._done)
        for mean, param in zip(self._policy.parameters(), self._network.parameters(), strict=True):
            mean.lerp_(param, weight)

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The running mean of the network's weights."""
        return policy_of_network(self._policy, self._envs, about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "network": {k: v.clone() for k, v in self._network.state_dict().items()},
            "policy": {k: v.clone() for k, v in self._policy.state_dict().items()},
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "remembered": [list(trials) for trials in self._remembered],
            "counts": [self._seed, self._done],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._network.load_state_dict(state["network"])
        self._policy.load_state_dict(state["policy"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._remembered.clear()
        self._remembered.extend(Trials(*trials) for trials in state["remembered"])
        self._seed, self._done = state["counts"]


def check_envs(envs: Sequence[LRControlVectorEnv], config: BranchConfig) -> None:
    """Raise a ValueError where this agent cannot learn in environments."""
    for env in envs:
        spec = env.control_spec
        if spec.mode.discrete or spec.controls != ("lr",) or env.num_layers != 1:
            raise ValueError(
                "branches learns policies of granularity='global', controls=('lr',) and an action "
                f"that is no index; got granularity={spec.granularity!r}, controls="
                f"{spec.controls}, action={spec.action!r}"
            )
        decisions = -(-env.horizon // env.inner_steps_per_decision)
        if config.follow > decisions:
            raise ValueError(
                f"branches.follow={config.follow} is more than the {decisions} decisions of a "
                f"training of {env.task.name}"
            )
        if env.num_envs % config.actions or not env.num_envs:
            raise ValueError(
                f"{env.num_envs} runs of {env.task.name} are no multiple of branches.actions="
                f"{config.actions}"
            )
