"""The agent `es`: evolution of a small tanh policy in the environment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.evolution import EvolutionConfig, Strategy
from agents.learner import PolicyLearner
from agents.sb3.rows import LayerRowsVecEnv
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = ["EvolutionLearner", "PolicyPopulation"]


def initial_theta(widths: Sequence[int], seed: int) -> Tensor:
    """Initial weights of a network, flat (D,).

    Weights are normal with standard deviation 1 / sqrt(inputs); biases and the last layer are 0, so
    that the policy does nothing at first.

    Args:
        widths: Widths of the input, the hidden layers and the output.
        seed: Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for inputs, outputs in itertools.pairwise(widths):
        parts += [
            torch.randn(outputs * inputs, generator=generator) / math.sqrt(inputs),
            torch.zeros(outputs),
        ]
    parts[-2].zero_()  # the weights of the last layer
    return torch.cat(parts)


def unflatten(
    theta: Tensor, widths: Sequence[int]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Weights (..., out, in) and biases (..., out) of each layer, from flat ones (..., D)."""
    weights = []
    biases = []
    begin = 0
    for inputs, outputs in itertools.pairwise(widths):
        middle = begin + inputs * outputs
        weights.append(theta[..., begin:middle].view(*theta.shape[:-1], outputs, inputs))
        biases.append(theta[..., middle : middle + outputs])
        begin = middle + outputs
    return tuple(weights), tuple(biases)


class PolicyPopulation:
    """A `Population` of runs of the environment, each driven by a policy of its own.

    A run that has diverged, or that its policy has ended, gains nothing more until all runs start
    anew.
    """

    def __init__(self, env: LayerRowsVecEnv, widths: Sequence[int]) -> None:
        """Drive the runs of an environment.

        Args:
            env: Environment with an even number of runs of each task.
            widths: Widths of the policy's network: input, hidden layers and output.

        Raises:
            ValueError: A task has an odd number of runs.
        """
        for part in env.envs:
            if part.num_envs % 2:
                raise ValueError(
                    "evolution plays runs in pairs: each environment needs an even number of runs; "
                    f"got {part.num_envs} of {part.task.name}"
                )
        self._env = env
        self._widths = tuple(widths)
        self._observation: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self._over = torch.zeros(env.num_runs, dtype=torch.bool)
        # all rows of a run have its reward, so its first row tells it
        self._first_row = torch.from_numpy(np.searchsorted(env.run_of_row, np.arange(env.num_runs)))
        self._run_of_row = torch.from_numpy(env.run_of_row)

    @property
    def decisions(self) -> int:
        """Decisions of the longest training."""
        return self._env.decisions

    @property
    def groups(self) -> NDArray[np.int64]:
        """Task of each pair, (N/2,)."""
        names = [env.task.name for env in self._env.envs for _ in range(env.num_envs // 2)]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def start(self, row_seeds: Sequence[int]) -> None:
        """Start a training in every run, on new tasks where the suite is random."""
        self._env.renew()
        self._observation = self._env.reset_to(row_seeds)
        self._over = torch.zeros_like(self._over)

    def play(self, weights: Tensor, decisions: int) -> Tensor:
        """Drive the runs by weights (N, D); return the sum of the rewards of each, (N,)."""
        layers = list(zip(*unflatten(weights[self._run_of_row], self._widths), strict=True))
        gains = torch.zeros(len(weights))
        for _ in range(decisions):
            x = torch.from_numpy(self._observation).unsqueeze(-1)
            for i, (weight, bias) in enumerate(layers):
                x = weight @ (x.tanh() if i else x) + bias.unsqueeze(-1)
            actions = x.squeeze(-1).clamp(-1.0, 1.0).numpy()
            self._observation, rewards, dones = self._env.decide(actions)
            gains += torch.where(self._over, 0.0, torch.from_numpy(rewards)[self._first_row])
            self._over |= torch.from_numpy(dones)[self._first_row]
        return gains

    def figures(self) -> dict[str, float]:
        """Means over the trainings that have ended since the last call."""
        return self._env.figures()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on."""
        observation = torch.from_numpy(self._observation.copy())
        return {
            "rows": self._env.state_dict(),
            "observation": observation,
            "over": self._over.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._env.load_state_dict(state["rows"])
        self._observation = state["observation"].numpy().copy()
        self._over = state["over"].clone()


class EvolutionLearner(PolicyLearner):
    """Evolution of a small policy that all layers share."""

    def __init__(
        self,
        env: LayerRowsVecEnv,
        selection: Sequence[LRControlVectorEnv],
        config: EvolutionConfig,
        *,
        seed: int,
        updates: int,
    ) -> None:
        """Start from a policy that does nothing.

        Args:
            env: What the agent learns in; the caller sets its row seeds.
            selection: Environments of the trainings that select the policy, one for each task.
            config: Hyperparameters.
            seed: Seed of the weights, the perturbations and the trainings.
            updates: Number of updates.

        Raises:
            ValueError: Actions are discrete, a number of runs is odd, or the window is too long.
        """
        super().__init__(selection)
        self._env = env
        spec = env.envs[0].control_spec
        if spec.mode.discrete:
            raise ValueError(
                f"evolution needs action='recursive' or 'residual'; got {spec.action!r}"
            )
        self._widths = (len(spec.features), *config.hidden, len(spec.controls))
        theta = initial_theta(self._widths, seed)
        self._strategy = Strategy(
            PolicyPopulation(env, self._widths), theta, config, seed=seed, updates=updates
        )

    def update(self) -> dict[str, float]:
        """One step of the strategy."""
        return self._strategy.update()

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The policy of the weights without perturbation."""
        weights, biases = unflatten(self._strategy.theta.clone(), self._widths)
        return MLPPolicy(
            spec=self._env.envs[0].control_spec,
            interval=self._env.interval,
            weights=tuple(weight.clone() for weight in weights),
            biases=tuple(bias.clone() for bias in biases),
            mean=torch.zeros(self._widths[0]),
            std=torch.ones(self._widths[0]),
            about=about,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return self._strategy.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._strategy.load_state_dict(state)
