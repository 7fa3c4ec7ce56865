"""The agent `imitation`: it learns to do without being told what an oracle is told.

On streams of made data it is known when the data change, and a rate that is high after a change and
falls from then on is better than any constant one. The oracle plays this rate. A network that sees
only what a deployed policy sees learns to name the oracle's action, in the trainings that it drives
itself, so that it also learns what to do after its own mistakes.

Learning from a teacher that knows more: Chen et al. 2019 (Learning by cheating, arXiv 1912.12294).
Learning where the learner itself goes: DAgger (Ross, Gordon & Bagnell 2011).
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.learner import PolicyLearner
from agents.regression import falling_rates, regress
from agents.tanh_network import policy_of_network, tanh_network
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy
from lr_gym.tasks.stream import StreamPosition
from lr_gym.types import check_count, check_number

__all__ = ["ImitationConfig", "ImitationLearner", "oracle_action", "oracle_factor", "oracle_rate"]

Steps = TypeVar("Steps", NDArray[np.float64], Tensor)  # numbers of steps, of any shape

WANDER_EVERY = 25  # decisions between two random actions of a run that wanders
BETA = 0.3  # error of an action beyond which the loss grows linearly


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    """Hyperparameters of learning from an oracle.

    The oracle's rate is low * (1 + (boost - 1) / (1 + s / decay)), in units of the layer, s steps
    after the data changed. `experiments/stream_rates.py` measures such rates.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    low: float = 1.7e-3
    """The oracle's learning rate a long time after a change, over its unit."""
    boost: float = 5.0
    """How many times higher it is right after a change."""
    decay: float = 250.0
    """Steps after a change when half of that is gone."""
    wander: float = 0.25
    """Share of the runs in which every 25th action is random."""
    remembered: int = 8
    """Updates whose decisions are learned from."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers of the network, which are followed by tanh."""
    learning_rate: float = 3e-3
    """Learning rate of the network's AdamW. It falls linearly to 0."""
    weight_decay: float = 0.01
    """Weight decay of the network's AdamW."""
    steps: int = 800
    """Steps of the network's AdamW in an update."""

    def __post_init__(self) -> None:
        for name in ("remembered", "steps"):
            check_count(f"imitation.{name}", getattr(self, name))
        for width in self.hidden:
            check_count("imitation.hidden", width)
        for name in ("low", "boost", "decay"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"imitation.{name} must be above 0; got {getattr(self, name)!r}")
        check_number("imitation.wander", self.wander, 0.0, 1.0)


def oracle_factor(boost: float, decay: float, since: Steps) -> Steps:
    """The oracle's learning rate over its lowest one, `since` steps after a change."""
    return 1.0 + (boost - 1.0) / (1.0 + since / decay)


def oracle_rate(config: ImitationConfig, since: NDArray[np.float64]) -> NDArray[np.float64]:
    """The oracle's learning rate over its unit, `since` steps after a change."""
    return config.low * oracle_factor(config.boost, config.decay, since)


def oracle_action(env: LRControlVectorEnv, config: ImitationConfig) -> NDArray[np.float64]:
    """What the oracle does now: the action (B,) that brings each run nearest to its rate."""
    position = env.runs.inner.stream
    assert isinstance(position, StreamPosition)
    # the middle of the coming interval stands for all of it
    since = position.since.double().cpu().numpy() + env.inner_steps_per_decision / 2.0
    wanted = np.log(oracle_rate(config, since) * env.lr_units[0])
    present = env.runs.hyper.lr[:, 0].double().log().cpu().numpy()
    action: NDArray[np.float64] = (wanted - present) / env.control_spec.mode.step
    return action.clip(-1.0, 1.0)


class ImitationLearner(PolicyLearner):
    """Learns to act as the oracle does. An update is one training of every run."""

    def __init__(
        self,
        envs: Sequence[LRControlVectorEnv],
        selection: Sequence[LRControlVectorEnv],
        config: ImitationConfig,
        *,
        threads: int,
        seed: int,
        updates: int,
    ) -> None:
        """Start with a network whose action is 0.

        Args:
            envs: Environments of streams, which restart diverged runs by themselves.
            selection: Environments of the trainings that select the policy, one for each task.
            config: Hyperparameters.
            threads: Threads that step the environments.
            seed: Seed of the network, of the trainings and of the random actions.
            updates: Number of updates; the network's learning rate reaches 0 after them.

        Raises:
            ValueError: The agent cannot learn in such environments.
        """
        super().__init__(selection)
        for env in envs:
            check_env(env)
        self._envs = list(envs)
        self._config = config
        self._threads = threads
        self._seed = seed
        self._updates = updates
        self._done = 0
        widths = [len(envs[0].control_spec.features), *config.hidden, 1]
        self._network = tanh_network(widths, seed)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self._generator = torch.Generator().manual_seed(seed)
        # what was seen (n, F) float16, and what the oracle would have done (n,)
        self._remembered: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.remembered)

    def update(self) -> dict[str, float]:
        """Play one training of every run, and learn what the oracle would have done in it."""
        with ThreadPoolExecutor(self._threads) as pool:
            played = list(pool.map(self._play, range(len(self._envs))))
        seen = torch.cat([observation for observation, _, _ in played])
        wanted = torch.cat([action for _, action, _ in played])
        with torch.no_grad():
            error = float((self._named(seen) - wanted).abs().mean())
        self._remembered.append((seen, wanted))
        self._learn()
        self._done += 1
        figures = [row for _, _, row in played]
        means = {key: float(np.mean([row[key] for row in figures])) for key in figures[0]}
        return {"error": error, **means}

    @torch.no_grad()
    def _play(self, index: int) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Play one training of every run of an environment; the oracle drives the first update."""
        env = self._envs[index]
        runs = env.num_envs
        generator = np.random.default_rng([self._seed, self._done, index])
        wanders = generator.random(runs) < self._config.wander
        first = (self._seed << 20) + self._done * 4096 + sum(e.num_envs for e in self._envs[:index])
        observation, _ = env.reset(seed=first)
        seen = []
        wanted = []
        total = np.zeros(runs)
        diverged = np.zeros(runs, dtype=bool)
        decisions = -(-env.horizon // env.inner_steps_per_decision)
        for decision in range(decisions):
            shown = torch.from_numpy(observation[:, 0].copy())
            oracle = oracle_action(env, self._config)
            seen.append(shown.half())
            wanted.append(torch.from_numpy(oracle).float())
            action = self._named(shown).clamp(-1.0, 1.0).double().numpy() if self._done else oracle
            if decision % WANDER_EVERY == 0:
                action = np.where(wanders, generator.uniform(-1.0, 1.0, runs), action)
            observation, rewards, terminated, _, _ = env.step(
                action.astype(np.float32)[:, None, None]
            )
            diverged |= terminated
            total -= rewards
        figures = {
            "reward_loss": float(total[~diverged].mean() / decisions)
            if any(~diverged)
            else math.inf,
            "diverged": float(diverged.mean()),
        }
        return torch.cat(seen), torch.cat(wanted), figures

    def _named(self, observation: Tensor) -> Tensor:
        """Actions (n,) that the network names, not clipped."""
        named: Tensor = self._network(observation.float())
        return named.squeeze(-1)

    def _learn(self) -> None:
        """Lower the distance to the oracle's actions."""
        seen, wanted = (torch.cat(parts) for parts in zip(*self._remembered, strict=True))
        config = self._config

        def error(rows: Tensor) -> Tensor:
            return nn.functional.smooth_l1_loss(self._named(seen[rows]), wanted[rows], beta=BETA)

        rates = falling_rates(config.learning_rate, config.steps, self._done, self._updates)
        regress(self._optimizer, error, len(wanted), rates, self._generator)

    def policy(self, about: dict[str, Any]) -> MLPPolicy:
        """The policy that the network is."""
        return policy_of_network(self._network, self._envs, about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "network": {k: v.clone() for k, v in self._network.state_dict().items()},
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "remembered": [list(pair) for pair in self._remembered],
            "counts": [self._seed, self._done],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._remembered.clear()
        self._remembered.extend((seen, wanted) for seen, wanted in state["remembered"])
        self._seed, self._done = state["counts"]


def check_env(env: LRControlVectorEnv) -> None:
    """Raise a ValueError where this agent cannot learn in an environment."""
    spec = env.control_spec
    if env.inner.stream is None:
        raise ValueError(
            "imitation learns on streams, where an oracle knows when the data change; "
            f"{env.task.name} is none"
        )
    if not spec.mode.recursive or spec.mode.discrete or spec.controls != ("lr",):
        raise ValueError(
            "imitation learns policies of action='recursive' and controls=('lr',); got "
            f"action={spec.action!r}, controls={spec.controls}"
        )
    if env.num_layers != 1:
        raise ValueError(
            f"imitation learns policies of granularity='global'; got {spec.granularity!r}"
        )
