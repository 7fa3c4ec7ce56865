"""Meta-training of GARO's recurrent cell by evolution.

It decides at every inner step, as its optimizer does.

The cell sets lr, momentum and weight decay of plain SGD, so it is trained on `InnerLoop` itself and
not through the actions of the environment. What comes out is deployed by
`lr_gym.optim.GlobalAdaptiveSGD(params, weights=FILE)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.evolution import EvolutionConfig, Strategy
from agents.learner import episode_means
from lr_gym.envs.reward import REWARDS, diverged_return, loss_limit, potential
from lr_gym.optim.contrib.garo_cell import (
    GaroWeights,
    GradientStatistics,
    garo_step,
    initial_state,
    initial_weights,
    save_weights,
)
from lr_gym.rng import run_seeds
from lr_gym.tasks import Task
from lr_gym.training.inner_loop import InnerLoop, InnerState
from lr_gym.tree import flatten, unflatten

__all__ = ["GaroLearner", "GaroTrainings"]

HIDDEN = 16


def statistics(loop: InnerLoop, state: InnerState) -> GradientStatistics:
    """What the cell is fed, (B, L) each, of the pending gradient."""

    def pooled(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        return loop.layout.pool(
            torch.stack([(x * y).flatten(1).sum(1) for x, y in zip(xs, ys, strict=True)], dim=1)
        )

    count = state.loss.new_tensor(loop.layout.layer_sizes())
    grad, buffer = pooled(state.grads, state.grads), pooled(state.firsts, state.firsts)
    length = (grad * buffer).sqrt()
    cosine = torch.where(length > 0, pooled(state.grads, state.firsts) / length, 0.0).clamp(
        -1.0, 1.0
    )
    return GradientStatistics(
        (pooled(state.params, state.params) / count).sqrt(), (grad / count).sqrt(), cosine
    )


class GaroTrainings:
    """B trainings of one task under GARO, each with a cell of its own, or all with the same.

    A diverged training stays where it is until the next start.

    Attributes:
        loss: (B,) on the reward split after the last `play` that the training survived.
        over: (B,) whether it has diverged or reached the horizon.
        diverged: (B,)
        step: inner steps made.
    """

    def __init__(
        self, task: Task, runs: int, *, layerwise: bool, horizon: int | None, compile: bool = False
    ) -> None:
        self.task, self.runs, self.horizon = task, runs, horizon or task.horizon
        self._loop = InnerLoop(
            task,
            base="sgd",
            granularity="per_layer" if layerwise else "global",
            weight_decay=True,
            compile=compile,
        )
        self.start(torch.arange(runs))

    def start(self, seeds: Tensor) -> None:
        """Start a training for each run seed (B,)."""
        self._inner = self._loop.init(seeds)
        self._cell = initial_state((self.runs, self._loop.layout.num_layers), HIDDEN)
        self._first, self._initial = (
            self._inner.loss.clone(),
            self._loop.evaluate(self._inner, "reward"),
        )
        self.loss, self._gain = self._initial.clone(), torch.zeros(self.runs)
        self.over, self.diverged = (torch.zeros(self.runs, dtype=torch.bool) for _ in range(2))
        self.step = 0

    def play(self, weights: GaroWeights, steps: int) -> Tensor:
        """Decrease (B,) of the log loss on the reward split over some inner steps, at most to the horizon.

        Args:
            weights: of one cell, or (B, ...).
            steps: inner steps.
        """
        steps = min(steps, self.horizon - self.step)
        worst = torch.full((self.runs,), -torch.inf)
        ones = torch.ones(1, self.runs)
        for _ in range(steps):
            hyper, self._cell = garo_step(weights, self._cell, statistics(self._loop, self._inner))
            self._inner, losses = self._loop.advance(self._inner, hyper, ones)
            worst = torch.maximum(worst, losses[0])  # NaN wins
        self.step += steps
        loss = self._loop.evaluate(self._inner, "reward")
        alive = (worst <= loss_limit(self._first)) & (
            loss <= loss_limit(self._initial)
        )  # False for NaN
        gain = potential(self.loss, self.task.optimum) - potential(loss, self.task.optimum)
        floor = diverged_return(self._initial, self.task.optimum, REWARDS["log_loss"]) - self._gain
        gain = torch.where(self.over, 0.0, torch.where(alive, gain, floor))
        self.diverged |= ~self.over & ~alive
        self.over |= ~alive | (self.step >= self.horizon)
        self._gain = self._gain + gain
        self.loss = torch.where(alive, loss, self.loss)
        return gain

    def losses(self, split: str) -> Tensor:
        """Loss (B,) on a split now, inf where the training diverged."""
        return torch.where(self.diverged, torch.inf, self._loop.evaluate(self._inner, split))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        own = (self._first, self._initial, self.loss, self._gain, self.over, self.diverged)
        return {
            "inner": {k: v.clone() for k, v in flatten(self._inner, "inner").items()},
            "cell": {k: v.clone() for k, v in flatten(self._cell, "cell").items()},
            "own": [value.clone() for value in own],
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._inner = unflatten(
            self._inner, {k: v.clone() for k, v in state["inner"].items()}, "inner"
        )
        self._cell = unflatten(self._cell, {k: v.clone() for k, v in state["cell"].items()}, "cell")
        own = [value.clone() for value in state["own"]]
        self._first, self._initial, self.loss, self._gain, self.over, self.diverged = own
        self.step = state["step"]


def flatten_weights(weights: GaroWeights) -> Tensor:
    """(D,) of one cell."""
    return torch.cat([value.flatten() for value in weights])


def unflatten_weights(theta: Tensor, like: GaroWeights) -> GaroWeights:
    """(..., D) -> weights with leading dimensions (...)."""
    parts = torch.split(theta, [value.numel() for value in like], dim=-1)
    return GaroWeights(
        *(
            part.view(*theta.shape[:-1], *value.shape)
            for part, value in zip(parts, like, strict=True)
        )
    )


class GaroPopulation:
    """Trainings of several tasks as one population; shares of them step in threads of their own."""

    def __init__(
        self, shares: Sequence[GaroTrainings], like: GaroWeights, decisions: int, threads: int
    ) -> None:
        for share in shares:
            if share.runs % 2:
                raise ValueError(
                    "evolution plays runs in pairs: each share needs an even number; got "
                    f"{share.runs}"
                )
        self.shares = shares
        self._intervals = [max(1, share.horizon // decisions) for share in shares]
        self.decisions = max(
            -(-s.horizon // steps) for s, steps in zip(shares, self._intervals, strict=True)
        )
        self._like, self._pool = like, ThreadPoolExecutor(threads)
        self._ended: list[dict[str, float]] = []
        self._bounds = np.cumsum([0] + [share.runs for share in shares])

    @property
    def groups(self) -> NDArray[np.int64]:
        """Task of each pair."""
        names = [share.task.name for share in self.shares for _ in range(share.runs // 2)]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def start(self, row_seeds: Sequence[int]) -> None:
        """Start a training in every run, the first of its row seed."""
        rows = torch.tensor(list(row_seeds), dtype=torch.int64)
        seeds = run_seeds(rows, torch.zeros_like(rows))
        list(
            self._pool.map(
                lambda pair: pair[0].start(pair[1]),
                zip(self.shares, self._split(seeds), strict=True),
            )
        )

    def play(self, weights: Tensor, decisions: int) -> Tensor:
        """Gains (N,).

        A decision is the same fraction of every task's horizon, the last one shorter.
        """

        def one(job: tuple[GaroTrainings, int, Tensor]) -> Tensor:
            share, interval, part = job
            with torch.no_grad():  # a thread's own
                return share.play(unflatten_weights(part, self._like), interval * decisions)

        before = [share.over.clone() for share in self.shares]
        gains = list(
            self._pool.map(
                one, zip(self.shares, self._intervals, self._split(weights), strict=True)
            )
        )
        for share, over in zip(self.shares, before, strict=True):
            new = share.over & ~over
            for loss, diverged in zip(
                share.loss[new].tolist(), share.diverged[new].tolist(), strict=True
            ):
                self._ended.append({"reward_loss": loss, "diverged": float(diverged)})
        return torch.cat(gains)

    def _split(self, rows: Tensor) -> list[Tensor]:
        return [rows[a:b] for a, b in zip(self._bounds[:-1], self._bounds[1:], strict=True)]

    def figures(self) -> dict[str, float]:
        """Means over the trainings that ended since the last call."""
        ended, self._ended = self._ended, []
        return episode_means(ended)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on."""
        return {"shares": [share.state_dict() for share in self.shares]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for share, saved in zip(self.shares, state["shares"], strict=True):
            share.load_state_dict(saved)


class GaroLearner:
    """ES or PES on GARO's cell."""

    def __init__(
        self,
        shares: Sequence[GaroTrainings],
        selection: Sequence[GaroTrainings],
        config: EvolutionConfig,
        *,
        decisions: int,
        threads: int,
        seed: int,
        updates: int,
    ) -> None:
        """Start from random weights whose first step is SGD at lr 0.01.

        Args:
            shares: the trainings it learns from.
            selection: one for each task, by which it is judged.
            config: hyperparameters; `hidden` is not used.
            decisions: into which a horizon is cut for `config.window`; a remainder makes one more.
            threads: that step the shares.
            seed: of weights, perturbations and trainings.
            updates: how many there will be.
        """
        self._like = initial_weights(HIDDEN, torch.Generator().manual_seed(seed))
        self._selection = selection
        population = GaroPopulation(shares, self._like, decisions, threads)
        self._strategy = Strategy(
            population, flatten_weights(self._like), config, seed=seed, updates=updates
        )

    def update(self) -> dict[str, float]:
        """One step of the strategy."""
        return self._strategy.update()

    @property
    def weights(self) -> GaroWeights:
        """The unperturbed cell."""
        return GaroWeights(
            *(value.clone() for value in unflatten_weights(self._strategy.theta, self._like))
        )

    @torch.no_grad()
    def selection_losses(self, seeds: Sequence[int]) -> NDArray[np.float64]:
        """Final losses (tasks, seeds) on the selection split, inf where a training diverged."""
        return np.stack(
            [garo_losses(share, self.weights, seeds, "selection") for share in self._selection]
        )

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write the cell's weights."""
        save_weights(self.weights, path, about)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return self._strategy.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._strategy.load_state_dict(state)


def garo_losses(
    trainings: GaroTrainings, weights: GaroWeights, seeds: Sequence[int], split: str
) -> NDArray[np.float64]:
    """Final losses (B,) of whole trainings from row seeds under one cell, inf where they diverged."""
    rows = torch.tensor(list(seeds), dtype=torch.int64)
    trainings.start(run_seeds(rows, torch.zeros_like(rows)))
    trainings.play(weights, trainings.horizon)
    return trainings.losses(split).double().numpy()
