"""Moments of trainings, and what each action was worth at them."""

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

__all__ = ["BranchConfig", "Moments", "play_branches", "regret_curves", "regret_of"]

Act = Callable[[Tensor], Tensor]  # observations (B, L, F) -> actions (B, L, A)

# Largest regret that counts, in units of the training's mean loss: bounds the cost of a divergence.
WORST = 1.0
BEYOND = 0.02  # regret of each step of the grid by which an action lies outside of [-1, 1]


@dataclasses.dataclass(frozen=True)
class BranchConfig:
    """Hyperparameters of learning from branches.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    actions: int = 9
    """Actions that are tried at a moment, evenly spaced from -1 to 1."""
    follow: int = 20
    """Decisions for which the copies are compared: the action and what the policy does after it."""
    explore: float = 0.5
    """Share of the moments after which a training goes on from a copy chosen at random, and not
    from the one whose action is nearest to the policy's. So the network learns what to do after
    mistakes."""
    remembered: int = 20
    """Updates whose moments are learned from. Older ones tell about policies that are gone."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers of the network, which are followed by tanh."""
    learning_rate: float = 3e-3
    """Learning rate of the network's AdamW. It falls linearly to 0."""
    weight_decay: float = 0.03
    """Weight decay of the network's AdamW."""
    steps: int = 100
    """Steps of the network's AdamW in an update."""
    average: float = 0.7
    """Weight of what came before in the running mean of the network's weights, one value an update.
    The policy is that mean. It is followed while branches are played, and it is what is saved."""

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


class Moments(NamedTuple):
    """n moments of trainings.

    Attributes:
        observation: (n, F) float16 what the policy saw.
        curves: (n, actions) regret of each action, at most WORST.
    """

    observation: Tensor
    curves: Tensor

    def joined(self, other: Moments) -> Moments:
        """The moments of both."""
        return Moments(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


def regret_curves(rewards: Tensor, scale: Tensor) -> Tensor:
    """Regret of each action, smoothed along the grid.

    Args:
        rewards: (n, actions) sum of the rewards of each copy.
        scale: (n,) what counts as 1.

    Returns:
        (n, actions) regret, 0 for the best action and at most WORST.
    """
    regret = (rewards.max(1, keepdim=True).values - rewards) / scale.unsqueeze(1)
    regret = regret.nan_to_num(nan=WORST, posinf=WORST).clamp_max(WORST)
    smooth = regret.clone()
    smooth[:, 1:-1] = 0.25 * regret[:, :-2] + 0.5 * regret[:, 1:-1] + 0.25 * regret[:, 2:]
    return smooth - smooth.min(1, keepdim=True).values


def regret_of(action: Tensor, curves: Tensor) -> Tensor:
    """Regret (n,) of actions (n,), read off curves (n, actions) that are linear between points."""
    last = curves.shape[1] - 1
    place = (action + 1.0) * (last / 2.0)
    inside = place.clamp(0.0, last - 1e-4)  # so that there is always a neighbour to the right
    left = inside.detach().floor().long().unsqueeze(1)
    values = curves.gather(1, torch.cat([left, left + 1], dim=1))
    between = values[:, 0].lerp(values[:, 1], inside - left.squeeze(1))
    return between + BEYOND * (place - inside).abs()


class _Group(NamedTuple):
    """Copies of the same training, `actions` rows each; (groups,) or (groups, actions).

    Attributes:
        observation: (groups, F) at the moment at which the copies parted.
        nearest: (groups,) copy whose action was nearest to the policy's.
        rewards: (groups, actions) sum of the rewards since then.
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
) -> tuple[Moments, dict[str, float]]:
    """Train once in every group of rows, and branch off every `config.follow` decisions.

    Args:
        env: Environment with one layer, one control and a multiple of `config.actions` runs, which
            restarts diverged runs by itself.
        act: The present policy.
        config: Hyperparameters.
        seed: Row seed of the first group; that of the others is counted up from it.
        generator: Decides where branches begin and which copy a training goes on from.

    Returns:
        The moments, and figures.
    """
    width = config.actions
    groups = env.num_envs // width
    grid = np.tile(config.grid.numpy(), groups)[:, None, None]  # (B, 1, 1)
    observation, _ = env.reset(seed=[seed + row // width for row in range(env.num_envs)])
    decisions = -(-env.horizon // env.inner_steps_per_decision)
    first = int(generator.integers(config.follow))
    found: list[_Group] = []
    on_way = np.zeros(groups)  # sum of the rewards on the way that each training went
    counted = 0
    group: _Group | None = None
    for decision in range(decisions - 1):  # the last one would restart all runs
        wanted = act(torch.from_numpy(observation)).numpy()
        if decision >= first and (decision - first) % config.follow == 0:
            if group is not None:
                chosen = _chosen(group, config.explore, generator)
                on_way += group.rewards[np.arange(groups), chosen]
                counted += config.follow
                found.append(group)
                observation = env.copy_runs(np.repeat(np.arange(groups) * width + chosen, width))
                wanted = act(torch.from_numpy(observation)).numpy()
            leaders = wanted.reshape(groups, width)[:, 0].clip(-1.0, 1.0)
            nearest = np.rint((leaders + 1.0) * (width - 1) / 2.0).astype(np.int64)
            shape = (groups, width)
            group = _Group(
                observation.reshape(groups, width, -1)[:, 0].copy(),
                nearest,
                np.zeros(shape),
                np.zeros(shape, dtype=bool),
            )
            wanted = grid
        observation, rewards, terminated, _, _ = env.step(wanted)
        if group is not None:
            group.rewards[:] += np.where(group.dead, 0.0, rewards.reshape(groups, width))
            group.dead[:] |= terminated.reshape(groups, width)
    scale = np.maximum(-on_way / max(1, counted), 1e-3) * config.follow
    curves = [
        regret_curves(torch.from_numpy(part.rewards), torch.from_numpy(scale)) for part in found
    ]
    seen = [torch.from_numpy(part.observation) for part in found]
    moments = Moments(torch.cat(seen).half(), torch.cat(curves).float())
    diverged = float(np.mean([part.dead.mean() for part in found]))
    return moments, {
        "reward_loss": float((scale / config.follow).mean()),
        "diverged": diverged,
    }


def _chosen(group: _Group, explore: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """The copy (groups,) from which each training goes on; no diverged one where there is another.

    The rewards of a diverged copy are far below those of the others.
    """
    chance = generator.random(len(group.nearest))
    some = generator.integers(group.dead.shape[1], size=len(group.nearest))
    chosen = np.where(chance < explore, some, group.nearest)
    lost = group.dead[np.arange(len(chosen)), chosen]
    return np.where(lost, group.rewards.argmax(1), chosen)
