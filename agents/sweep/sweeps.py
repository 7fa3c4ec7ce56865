"""Sweeps of the learning rate: how they are played, and what is remembered of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.features import features_of_group
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.types import check_count

__all__ = [
    "KNOWN",
    "PEAK",
    "WORST",
    "MakeEnv",
    "SweepConfig",
    "Sweeps",
    "known_columns",
    "play_slot",
    "play_sweep",
    "regret_curve",
]

# Largest regret in nats that counts. Without it, the few tasks whose loss can fall to 0 would make
# up most of the mean.
WORST = 0.5
PEAK = "scaled_lr"
KNOWN = tuple(
    name for group in ("task", "endless") for name in features_of_group(group) if name != PEAK
)

# Makes the environment of an update (0, 1, ...) and a slot (0, 1, ...).
MakeEnv = Callable[[int, int], LRControlVectorEnv]


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Hyperparameters of learning from sweeps.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    rates: int = 12
    """Number of learning rates of a sweep."""
    lowest: float = 3e-5
    """Lowest learning rate of a sweep, over the unit of each layer."""
    highest: float = 0.5
    """Highest learning rate of a sweep, over the unit of each layer."""
    shift: float = 0.0
    """Nats by which the policy goes above the learning rate that the network names."""
    samples: int = 8
    """Number of decisions of each training that are remembered."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the network, which are followed by tanh."""
    learning_rate: float = 3e-3
    """Learning rate of the network's AdamW. It falls linearly to 0."""
    weight_decay: float = 0.3
    """Weight decay of the network's AdamW. It is large, since there are far fewer curves than
    rows."""
    steps: int = 20
    """Steps of the network's AdamW in an update."""
    members: int = 1
    """Networks that learn from the same sweeps. The policy is one network that names their mean."""

    def __post_init__(self) -> None:
        for name in ("rates", "samples", "steps", "members"):
            check_count(f"sweep.{name}", getattr(self, name))
        if self.rates < 3 or not 0.0 < self.lowest < self.highest or not self.hidden:
            raise ValueError(
                f"sweep needs 3 rates, 0 < lowest < highest and a hidden layer; got {self}"
            )

    @property
    def log_rates(self) -> Tensor:
        """Natural logarithms of the learning rates of a sweep over their units, (rates,)."""
        return torch.linspace(math.log(self.lowest), math.log(self.highest), self.rates)


class Sweeps(NamedTuple):
    """What was known in sweeps: n rows, each of one training at one moment, and a curve per sweep.

    Attributes:
        observation: (n, F - 1) float16 what every layer sees, without the learning rate.
        sweep: (n,) int32 index of the row's curve.
        curves: (sweeps, rates) regret in nats of each learning rate, smoothed, at most WORST.
    """

    observation: Tensor
    sweep: Tensor
    curves: Tensor

    def joined(self, other: Sweeps) -> Sweeps:
        """The rows and curves of both; the curves of `other` come last."""
        moved = other._replace(sweep=other.sweep + len(self.curves))
        return Sweeps(*(torch.cat(pair) for pair in zip(self, moved, strict=True)))


def known_columns(features: Sequence[str]) -> list[int]:
    """Indices of the features that the network sees: all but the present learning rate."""
    return [index for index, name in enumerate(features) if name != PEAK]


def regret_curve(log_loss: Tensor, worst: Tensor) -> Tensor:
    """Regret of each learning rate of a sweep, smoothed.

    Args:
        log_loss: (rates,) final log loss; infinite or NaN where the training diverged.
        worst: (1,) log loss that a diverged training counts as.

    Returns:
        (rates,) regret in nats, at most WORST.
    """
    log_loss = torch.minimum(log_loss.nan_to_num(nan=math.inf, posinf=math.inf), worst)
    smooth = log_loss.clone()
    smooth[1:-1] = 0.25 * log_loss[:-2] + 0.5 * log_loss[1:-1] + 0.25 * log_loss[2:]
    return (smooth - smooth.min()).clamp_max(WORST)


def play_slot(
    make: MakeEnv, update: int, config: SweepConfig, first_seed: int, slot: int
) -> tuple[Sweeps, dict[str, float]]:
    """Make the environment of a slot and play its sweep: a job of an engine.

    Args:
        make: Makes the environment of an update and a slot, see `SweepLearner`.
        update: First argument of `make`.
        config: Hyperparameters.
        first_seed: Seed of slot 0; the seeds of the others are counted up from it.
        slot: Second argument of `make`.

    Returns:
        See `play_sweep`.
    """
    return play_sweep(make(update, slot), config, first_seed + slot)


@torch.no_grad()
def play_sweep(
    env: LRControlVectorEnv, config: SweepConfig, seed: int
) -> tuple[Sweeps, dict[str, float]]:
    """Train one sweep to its end.

    Args:
        env: Environment of `config.rates` runs, autoreset DISABLED.
        config: Hyperparameters.
        seed: Seed of the trainings, and of which of their decisions are remembered.

    Returns:
        What was known, with its curve; and figures.
    """
    # every layer of a run starts at the same multiple of its own unit
    lr = config.log_rates.double().exp().numpy()[:, None] * env.lr_units
    generator = torch.Generator().manual_seed(seed)
    observation, _ = env.reset(seed=[seed] * config.rates, options={"initial_lr": lr})
    # a diverged training counts as one that ended at twice the loss it began with
    worst = math.log(2.0) + _log(env.evaluate("reward")[:1], env)
    decisions = -(-env.horizon // env.inner_steps_per_decision)
    kept = {0, *torch.randperm(decisions, generator=generator)[: config.samples].tolist()}
    columns = known_columns(env.control_spec.features)
    no_action = np.zeros((config.rates, env.num_layers, 1), dtype=np.float32)
    alive = np.ones(config.rates, dtype=bool)
    seen = []
    for decision in range(decisions):
        if decision in kept:
            seen.append(torch.from_numpy(observation[alive, 0][:, columns]).half())
        observation, _, terminated, _, infos = env.step(no_action)
        alive &= ~infos["diverged"]
        # every row must be stepped: diverged trainings start over, and are not looked at again
        if decision < decisions - 1 and terminated.any():
            observation, _ = env.reset(options={"reset_mask": terminated, "initial_lr": lr})
    losses = np.where(alive, env.evaluate("reward"), np.inf)
    curve = regret_curve(_log(losses, env), worst)
    rows = torch.cat(seen)
    figures = {"diverged": float(1.0 - alive.mean())}
    if alive.any():
        figures["reward_loss"] = float(losses.min())
    return Sweeps(rows, torch.zeros(len(rows), dtype=torch.int32), curve.unsqueeze(0)), figures


def _log(loss: NDArray[np.float64], env: LRControlVectorEnv) -> Tensor:
    """Logarithms of losses above the task's optimum, float32."""
    return torch.from_numpy(np.log(np.maximum(loss - env.task.optimum, 1e-12))).float()
