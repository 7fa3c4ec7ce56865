"""Learner: what `train_agent.py` asks of every agent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lr_gym.envs.rollout import final_losses
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import SavedPolicy, save_policy

__all__ = ["Learner", "PolicyLearner", "episode_means"]


def episode_means(episodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each figure over trainings; {} where there are none.

    The mean of `reward_loss` leaves out diverged trainings, whose loss can be anything.
    """
    if not episodes:
        return {}
    survivors = [episode for episode in episodes if not episode["diverged"]]
    counted = {key: survivors if key == "reward_loss" else episodes for key in episodes[0]}
    return {
        key: float(np.mean([episode[key] for episode in rows]))
        for key, rows in counted.items()
        if rows
    }


class Learner(Protocol):
    """An agent in training.

    `state_dict` holds everything that the next update depends on. An agent that is stopped between
    two updates and restored in another process continues with the same figures, bit for bit.
    """

    def update(self) -> dict[str, float]:
        """Collect experience, learn from it, and return figures.

        Returns:
            reward_loss, diverged and the agent's own figures.
        """
        ...

    def selection_losses(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        """Train with what has been learned so far, once from each row seed.

        Returns:
            Final losses (tasks, seeds) on the selection split, inf where the training diverged.
        """
        ...

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write what has been learned so far, without exploration, as it will be deployed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        ...


class PolicyLearner(ABC):
    """A learner whose product is a policy of LRControlVectorEnv.

    Attributes:
        selection: Environments of the trainings that select the policy, one for each task, with
            autoreset DISABLED.
    """

    def __init__(self, selection: Sequence[LRControlVectorEnv]) -> None:
        self.selection = selection

    @abstractmethod
    def update(self) -> dict[str, float]:
        """See `Learner`."""

    @abstractmethod
    def policy(self, about: dict[str, Any]) -> SavedPolicy:
        """What has been learned so far, without exploration."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Learner`."""

    def selection_losses(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        """Final losses (tasks, seeds) on the selection split, inf where a training diverged."""
        policy = self.policy({})
        return np.stack([final_losses(env, policy, seeds, "selection") for env in self.selection])

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write the policy file."""
        save_policy(self.policy(about), path)
