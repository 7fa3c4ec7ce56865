"""What `train_agent.py` asks of an agent, whichever it is.

Learn a little, be judged, save, and restore.
"""

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
    """Mean figures of trainings.

    Reward_loss, which is anything where one diverged, over those that did not.
    """
    survivors = [episode for episode in episodes if not episode["diverged"]]
    of = {
        key: survivors if key == "reward_loss" else episodes
        for key in (episodes[0] if episodes else ())
    }
    return {
        key: float(np.mean([episode[key] for episode in rows])) for key, rows in of.items() if rows
    }


class Learner(Protocol):
    """An agent in training.

    Everything that the next update depends on is in `state_dict`: an agent that is stopped between
    two updates and restored elsewhere goes on with the same figures, bit for bit.
    """

    def update(self) -> dict[str, float]:
        """Collect experience, learn from it, and return figures.

        Reward_loss, diverged and the agent's own.
        """
        ...

    def selection_losses(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        """Final losses (tasks, seeds) of trainings under what has been learned so far, inf where they diverged."""
        ...

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write what has been learned so far, without exploration, to be deployed as an optimizer."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        ...


class PolicyLearner(ABC):
    """A learner whose product is a policy of LRControlVectorEnv.

    Attributes:
        selection: environments of continuous actions or discrete ones, autoreset DISABLED, one for
            each task.
    """

    def __init__(self, selection: Sequence[LRControlVectorEnv]) -> None:
        self.selection = selection

    @abstractmethod
    def policy(self, about: dict[str, Any]) -> SavedPolicy:
        """What has been learned so far, without exploration."""

    def selection_losses(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        """Final losses (tasks, seeds) on the selection split, inf where a training diverged."""
        policy = self.policy({})
        return np.stack([final_losses(env, policy, seeds, "selection") for env in self.selection])

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write the policy file."""
        save_policy(self.policy(about), path)
