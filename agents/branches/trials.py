"""Moments of trainings at which every action was tried, and the regret of each action."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.types import check_count, check_number

__all__ = ["BranchConfig", "Trials", "copy_runs", "play_branches", "regret_curves", "regret_of"]

Act = Callable[[Tensor], Tensor]  # observations (B, L, F) -> actions (B, L, A)

# Largest regret that counts: bounds the cost of a divergence. Regret is measured in the size of the
# reward that the training earned in as many decisions, on average.
WORST = 1.0
BEYOND = 0.02  # regret that is added for each step of the grid outside of [-1, 1]


@dataclasses.dataclass(frozen=True)
class BranchConfig:
    """Hyperparameters of learning from branches.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    actions: int = 7
    """Actions that are tried at a moment, evenly spaced from -1 to 1."""
    follow: int = 20
    """Decisions for which the copies are compared: the action and what the policy does after it."""
    explore: float = 0.5
    """Probability that a training goes on from a random copy, so that the network learns what to do
    after mistakes. Otherwise it goes on from the copy whose action is nearest to the policy's."""
    remembered: int = 20
    """Number of latest updates that are learned from. Older ones tell about policies that are
    gone."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers of the network, which are followed by tanh."""
    learning_rate: float = 3e-3
    """Learning rate of the network's AdamW. It falls linearly to 0."""
    weight_decay: float = 0.03
    """Weight decay of the network's AdamW."""
    steps: int = 100
    """Steps of the network's AdamW in an update."""
    average: float = 0.7
    """The policy is a running mean of the network's weights. An update makes it `average` times
    the old mean plus the rest of the new weights. It drives the trainings, and it is saved."""

    def __post_init__(self) -> None:
        for name in ("actions", "follow", "remembered", "steps"):
            check_count(f"branches.{name}", getattr(self, name))
        for width in self.hidden:
            check_count("branches.hidden", width)
        if self.actions < 3:
            raise ValueError(f"branches.actions must be at least 3; got {self.actions}")
        for name in ("explore", "average"):
            check_number(f"branches.{name}", getattr(self, name), 0.0, 1.0)

    @property
    def grid(self) -> Tensor:
        """The actions that are tried, (actions,)."""
        return torch.linspace(-1.0, 1.0, self.actions)


class Trials(NamedTuple):
    """n moments of trainings at which every action was tried.

    Attributes:
        observation: (n, F) float16 what the policy saw.
        curves: (n, actions) regret of each action, at most WORST.
    """

    observation: Tensor
    curves: Tensor

    def joined(self, other: Trials) -> Trials:
        """The trials of both."""
        return Trials(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


def regret_curves(rewards: Tensor, scale: Tensor) -> Tensor:
    """Regret of each action, smoothed along the grid.

    Args:
        rewards: (n, actions) sum of the rewards of each copy.
        scale: (n,) size of the reward that counts as a regret of 1.

    Returns:
        (n, actions) regret, 0 for the best action and at most WORST.
    """
    regret = (rewards.max(1, keepdim=True).values - rewards) / scale.unsqueeze(1)
    regret = regret.clamp_max(WORST)
    smooth = regret.clone()
    smooth[:, 1:-1] = 0.25 * regret[:, :-2] + 0.5 * regret[:, 1:-1] + 0.25 * regret[:, 2:]
    return smooth - smooth.min(1, keepdim=True).values


def regret_of(action: Tensor, curves: Tensor) -> Tensor:
    """Regret (n,) of actions (n,), by linear interpolation in curves (n, actions)."""
    last = curves.shape[1] - 1
    place = (action + 1.0) * (last / 2.0)
    inside = place.clamp(0.0, last - 1e-4)  # so that there is always a neighbour to the right
    left = inside.detach().floor().long().unsqueeze(1)
    values = curves.gather(1, torch.cat([left, left + 1], dim=1))
    between = values[:, 0].lerp(values[:, 1], inside - left.squeeze(1))
    return between + BEYOND * (place - inside).abs()


def copy_runs(env: LRControlVectorEnv, source: NDArray[np.int64]) -> NDArray[np.float32]:
    """Make each row of an environment a copy of another one, which then goes on by itself.

    Args:
        env: The environment.
        source: (B,) for each row the index of the row that it becomes a copy of.

    Returns:
        The observation (B, L, F).
    """
    rows = torch.from_numpy(source)
    copied = {name: values[rows] for name, values in env.state_dict().items()}
    env.load_state_dict(copied)
    observation: NDArray[np.float32] = copied["host.observation"].numpy()
    return observation


class _Copies(NamedTuple):
    """What became of the copies of each training.

    Attributes:
        observation: (groups, F) what the policy saw when the copies parted.
        nearest: (groups,) copy whose action was nearest to the policy's.
        rewards: (groups, actions) sum of the rewards of each copy.
        dead: (groups, actions) whether the copy has diverged.
    """

    observation: NDArray[np.float32]
    nearest: NDArray[np.int64]
    rewards: NDArray[np.float64]
    dead: NDArray[np.bool_]


@torch.no_grad()
def play_branches(
    env: LRControlVectorEnv,
    act: Act,
    config: BranchConfig,
    seed: int,
    generator: np.random.Generator,
) -> tuple[Trials, dict[str, float]]:
    """Train once in every group of rows, and try all actions every `config.follow` decisions.

    The rows of a group are copies of one training. Each copy takes another action, then all do what
    the policy does. After `config.follow` decisions all go on from one of them.

    Args:
        env: Environment with one layer, one control and a multiple of `config.actions` runs, which
            restarts diverged runs by itself. A training has at least `config.follow` decisions.
        act: The present policy.
        config: Hyperparameters.
        seed: Row seed of the first group; that of the others is counted up from it.
        generator: Decides where branches begin and which copy a training goes on from.

    Returns:
        The trials, and figures for the log.
    """
    width = config.actions
    groups = np.arange(env.num_envs // width)
    observation, _ = env.reset(seed=[seed + row // width for row in range(env.num_envs)])
    remaining = -(-env.horizon // env.inner_steps_per_decision)
    before = int(generator.integers(min(config.follow, remaining - config.follow + 1)))
    for _ in range(before):
        observation = env.step(act(torch.from_numpy(observation)).numpy())[0]
    remaining -= before
    found: list[_Copies] = []
    on_way = np.zeros(len(groups))  # sum of the rewards on the way that each training went
    while remaining >= config.follow:
        copies, observation = _try_actions(env, act, config, observation)
        remaining -= config.follow
        chosen = _chosen(copies, config.explore, generator)
        on_way += copies.rewards[groups, chosen]
        found.append(copies)
        if remaining:  # after the last decision all rows have started anew
            observation = copy_runs(env, np.repeat(groups * width + chosen, width))
    scale = torch.from_numpy(np.maximum(np.abs(on_way) / len(found), 1e-3))
    curves = [regret_curves(torch.from_numpy(copies.rewards), scale) for copies in found]
    seen = [torch.from_numpy(copies.observation) for copies in found]
    trials = Trials(torch.cat(seen).half(), torch.cat(curves).float())
    return trials, {
        "reward_loss": float(scale.mean()) / config.follow,
        "diverged": float(np.mean([copies.dead.mean() for copies in found])),
    }


def _try_actions(
    env: LRControlVectorEnv, act: Act, config: BranchConfig, observation: NDArray[np.float32]
) -> tuple[_Copies, NDArray[np.float32]]:
    """Let the copies of each training part: another action each, then what the policy does.

    Args:
        env: The environment, in which all copies of a training are equal.
        act: The present policy.
        config: Hyperparameters.
        observation: (B, 1, F) observations.

    Returns:
        What became of them, and the observations afterwards.
    """
    shape = (env.num_envs // config.actions, config.actions)
    wanted = act(torch.from_numpy(observation)).numpy().reshape(shape)[:, 0].clip(-1.0, 1.0)
    copies = _Copies(
        observation=observation.reshape(*shape, -1)[:, 0].copy(),
        nearest=np.rint((wanted + 1.0) * (config.actions - 1) / 2.0).astype(np.int64),
        rewards=np.zeros(shape),
        dead=np.zeros(shape, dtype=bool),
    )
    action = np.tile(config.grid.numpy(), shape[0])[:, None, None]  # (B, 1, 1)
    for _ in range(config.follow):
        observation, rewards, terminated, _, _ = env.step(action)
        copies.rewards[:] += np.where(copies.dead, 0.0, rewards.reshape(shape))
        copies.dead[:] |= (terminated).reshape(shape)
        action = act(torch.from_numpy(observation)).numpy()
    return copies, observation


def _chosen(copies: _Copies, explore: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """The copy (groups,) from which each training goes on: a diverged one only if all diverged.

    In place of a diverged copy the one with the highest reward is taken, since the rewards of
    diverged copies are far lower.
    """
    chance = generator.random(len(copies.nearest))
    some = generator.integers(copies.dead.shape[1], size=len(copies.nearest))
    chosen = np.where(chance < explore, some, copies.nearest)
    lost = copies.dead[np.arange(len(chosen)), chosen]
    return np.where(lost, copies.rewards.argmax(1), chosen)
