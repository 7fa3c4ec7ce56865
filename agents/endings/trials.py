"""Trainings that were ended at many moments, and what ending at each of them came to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.envs.reward import potential
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy
from lr_gym.types import check_count, check_number

__all__ = ["EndingConfig", "MakeEnv", "Trials", "play_endings", "play_slot"]

# Makes the environment of an update (0, 1, ...) and a slot (0, 1, ...).
MakeEnv = Callable[[int, int], LRControlVectorEnv]

KNOWN = "monitor_known"  # feature that says whether a held-out loss is known


@dataclasses.dataclass(frozen=True)
class EndingConfig:
    """Hyperparameters of learning when to end a training.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    runs: int = 8
    """Trainings of a task, each with weights and data order of its own."""
    rates: tuple[float, float] = (1e-3, 2e-2)
    """Range of the learning rates at which these trainings start, in units of each layer
    (`LRControlVectorEnv.lr_units`)."""
    follow: float = 0.5
    """Share of the trainings whose rates `init` then sets, where it is given. The others keep their
    rate, so that the network learns what to do at rates that are wrong."""
    moments: int = 25
    """Moments from which a training is ended, at most: every n-th decision, with the least n."""
    price: float = 0.05
    """Nats that the steps of a whole training cost. Above 0, trainings are ended where what is left
    to gain is not worth its steps."""
    aversion: float = 3.0
    """How a large regret counts: r nats count as r + aversion * r^2 where networks learn. To end a
    training in the middle of its progress is worse than to end several a little late."""
    margin: float = 5.0
    """Log odds above which the policy ends a training. With more of them fewer trainings end too
    early, and more too late, which does no harm where the best weights are kept."""
    worst: float = 1.0
    """Largest regret in nats that counts. Without it, the few tasks whose loss can fall to 0 would
    make up most of the mean."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers of a network, which are followed by tanh."""
    members: int = 5
    """Networks that learn from the same trainings. The policy goes by the mean of their log
    odds."""
    learning_rate: float = 3e-3
    """Learning rate of the network's AdamW. It falls linearly to 0."""
    weight_decay: float = 0.1
    """Weight decay of the network's AdamW."""
    steps: int = 50
    """Steps of the network's AdamW in an update."""

    def __post_init__(self) -> None:
        for name in ("runs", "moments", "members", "steps"):
            check_count(f"endings.{name}", getattr(self, name))
        for width in self.hidden:
            check_count("endings.hidden", width)
        if self.moments < 2 or not self.hidden:
            raise ValueError(
                f"endings needs at least 2 moments and a hidden layer; got moments={self.moments}, "
                f"hidden={self.hidden}"
            )
        low, high = (check_number("endings.rates", rate, 0.0) for rate in self.rates)
        if not 0.0 < low <= high:
            raise ValueError(f"endings.rates must be 0 < low <= high; got {self.rates}")
        check_number("endings.price", self.price, 0.0)
        check_number("endings.margin", self.margin, 0.0)
        check_number("endings.aversion", self.aversion, 0.0)
        check_number("endings.follow", self.follow, 0.0, 1.0)


class Trials(NamedTuple):
    """n trainings of D decisions each.

    Attributes:
        task: (n,) int32 number of the task that is trained on; all trainings of a task are
            neighbours.
        observation: (n, D, F) float16 what the policy sees at each decision.
        known: (n, D) bool, whether a held-out loss is known, without which nothing can be ended.
        loss: (n, D + 1) log of the final loss of a training that was ended at each decision, in
            nats; in the last column that of one that nobody ended.
        steps: (n, D + 1) share of the steps of a whole training that it then has made.
    """

    task: Tensor
    observation: Tensor
    known: Tensor
    loss: Tensor
    steps: Tensor

    def joined(self, other: Trials) -> Trials:
        """The trials of both; the tasks of `other` get the next numbers."""
        count = int(self.task[-1]) + 1 if len(self.task) else 0
        moved = other._replace(task=other.task + count)
        return Trials(*(torch.cat(pair) for pair in zip(self, moved, strict=True)))

    def rows(self, chosen: Tensor) -> Trials:
        """The trainings of a mask (n,) or of indices."""
        return Trials(*(part[chosen] for part in self))

    def range(self) -> Tensor:
        """(2, F) lowest and highest value of each feature, float32."""
        seen = self.observation.float().flatten(0, 1)
        return torch.stack([seen.amin(0), seen.amax(0)])

    def regret(self, price: float, worst: float) -> Tensor:
        """(n, D + 1) regret in nats of ending at each decision, at most `worst`.

        Args:
            price: nats that the steps of a whole training cost.
            worst: largest regret that counts.
        """
        cost = self.loss + price * self.steps
        return (cost - cost.min(1, keepdim=True).values).clamp_max(worst)


def play_slot(
    make: MakeEnv,
    update: int,
    config: EndingConfig,
    features: Sequence[str],
    rates: MLPPolicy | None,
    first_seed: int,
    slot: int,
) -> tuple[Trials, dict[str, float]]:
    """Make the environment of a slot and play its trainings: a job of an engine.

    Args:
        make: Makes the environment of an update and a slot, see `EndingLearner`.
        update: First argument of `make`.
        config: Hyperparameters.
        features: See `play_endings`.
        rates: See `play_endings`.
        first_seed: Seed of slot 0; the seeds of the others follow.
        slot: Second argument of `make`.

    Returns:
        See `play_endings`.
    """
    first = first_seed + slot * config.runs
    return play_endings(make(update, slot), config, features, rates, first)


@torch.no_grad()
def play_endings(
    env: LRControlVectorEnv,
    config: EndingConfig,
    features: Sequence[str],
    rates: MLPPolicy | None,
    seed: int,
) -> tuple[Trials, dict[str, float]]:
    """Train to the end, and from many moments on the way end copies of the trainings.

    Args:
        env: Environment of `config.runs` runs, autoreset DISABLED, whose last control is "finish",
            and whose first features are those of `rates`.
        config: Hyperparameters.
        features: F names of what the trials hold of the environment's observations.
        rates: Sets the learning rates of some of the trainings; None sets none.
        seed: Seed of the first training and of the learning rates; those of the others follow.

    Returns:
        The trials of the runs of which neither the training nor a copy diverged, and figures.
    """
    runs = env.num_envs
    generator = np.random.default_rng(seed)
    low, high = np.log(config.rates)
    lr = np.exp(generator.uniform(low, high, (runs, 1))) * env.lr_units
    reset = {"initial_lr": lr}
    follows = generator.random(runs) < config.follow
    act = functools.partial(_action, env, rates, follows)
    observation, _ = env.reset(seed=[seed + run for run in range(runs)], options=reset)
    decisions = -(-env.horizon // env.inner_steps_per_decision)
    every = -(-decisions // config.moments)
    columns = [env.control_spec.features.index(name) for name in features]
    alive = np.ones(runs, dtype=bool)
    seen = []
    ends: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for decision in range(decisions):
        seen.append(observation[:, 0][:, columns])
        if decision and decision % every == 0:
            state = env.state_dict()
            ends[decision] = _outcome(env, act(observation, 1.0), reset)
            env.load_state_dict(state)
        observation, _, terminated, _, infos = env.step(act(observation, 0.0))
        alive &= ~infos["diverged"]
        if decision < decisions - 1 and terminated.any():
            observation, _ = env.reset(options={"reset_mask": terminated, **reset})
    ends[decisions] = _log_loss(env), np.ones(runs)
    shown = np.stack(seen, axis=1)  # (B, D, F)
    trials = _trials(shown, shown[..., list(features).index(KNOWN)] > 0.0, ends, alive)
    figures = {"diverged": float(1.0 - alive.mean())}
    if alive.any():
        figures["reward_loss"] = float(env.evaluate("reward")[alive].mean())
    return trials, figures


def _action(
    env: LRControlVectorEnv,
    rates: MLPPolicy | None,
    follows: NDArray[np.bool_],
    observation: NDArray[np.float32],
    finish: float,
) -> NDArray[np.float32]:
    """Actions (B, L, A) that end the trainings or not, and set the rates of those that follow."""
    action = np.zeros(env.action_space.shape or (), dtype=np.float32)
    if rates is not None:
        seen = torch.from_numpy(observation[follows][..., : len(rates.mean)].copy())
        action[follows, :, :-1] = rates.predict(seen)[0].numpy()
    action[..., -1] = finish
    return action


def _outcome(
    env: LRControlVectorEnv, action: NDArray[np.float32], reset: dict[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log of the final loss (B,) of trainings after an action that ends them, and their steps.

    NaN where a training diverged.
    """
    loss = np.full(env.num_envs, np.nan)
    share = np.full(env.num_envs, np.nan)
    over = np.zeros(env.num_envs, dtype=bool)
    while True:
        _, _, terminated, _, infos = env.step(action)
        action = np.zeros_like(action)  # where nothing could be ended, the training goes on
        ended = terminated & ~over
        if ended.any():
            survived = ended & ~infos["diverged"]
            loss[survived] = _log_loss(env)[survived]
            share[ended] = infos["step"][ended] / env.horizon
            over |= ended
        if over.all():
            return loss, share
        if terminated.any():  # every row must be stepped: what it does from here on does not count
            env.reset(options={"reset_mask": terminated, **reset})


def _log_loss(env: LRControlVectorEnv) -> NDArray[np.float64]:
    """Log (B,) of the losses on the reward split, above the task's optimum."""
    losses = torch.from_numpy(env.evaluate("reward"))
    return potential(losses, env.task.optimum).numpy()


def _trials(
    seen: NDArray[np.float32],
    known: NDArray[np.bool_],
    ends: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]],
    alive: NDArray[np.bool_],
) -> Trials:
    """Trials of all decisions, from the moments at which trainings were ended.

    Between two moments losses and steps are interpolated. No training is ended before the first
    one.

    Args:
        seen: (B, D, F) what was observed at each decision.
        known: (B, D) whether a held-out loss was known.
        ends: decision -> log of the final loss (B,) and share of the steps (B,).
        alive: (B,) the runs that count.
    """
    decisions = seen.shape[1]
    moments = sorted(ends)
    values = np.stack([np.stack(ends[moment]) for moment in moments])  # (moments, 2, B)
    alive = alive & np.isfinite(values).all((0, 1))
    grid = np.arange(decisions + 1)
    curves = np.array(
        [
            [np.interp(grid, moments, values[:, kind, run]) for kind in range(2)]
            for run in np.flatnonzero(alive)
        ]
    ).reshape(-1, 2, decisions + 1)
    known = known[alive] & (grid[:-1] >= moments[0])
    return Trials(
        torch.zeros(int(alive.sum()), dtype=torch.int32),
        torch.from_numpy(seen[alive]).half(),
        torch.from_numpy(known),
        torch.from_numpy(curves[:, 0]).float(),
        torch.from_numpy(curves[:, 1]).float(),
    )
