"""Meta-training of GARO's recurrent cell by evolution.

The cell decides at every inner step, as it does in its optimizer, and sets lr, momentum and weight
decay of plain SGD. So it is trained on `Executor` itself and not through the actions of the
environment. `lr_gym.optim.GlobalAdaptiveSGD(params, weights=FILE)` deploys the result.
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
from lr_gym.envs.reward import diverged_return, loss_limit, potential
from lr_gym.optim.contrib.garo_cell import (
    GradientStatistics,
    garo_step,
    initial_state,
    statistics_of_sums,
)
from lr_gym.optim.contrib.garo_weights import (
    GaroWeights,
    flatten_weights,
    initial_weights,
    save_weights,
    unflatten_weights,
)
from lr_gym.rng import run_seeds
from lr_gym.tasks import Task
from lr_gym.training.executor import Executor
from lr_gym.training.inner_loop import InnerState
from lr_gym.tree import flatten, unflatten

__all__ = ["GaroLearner", "GaroTrainings"]

HIDDEN = 16


def statistics(loop: Executor, state: InnerState) -> GradientStatistics:
    """What the cell is told about the pending gradient, (B, L) each.

    The optimizer sums with `torch.dot` and norms over one training, which round differently from
    sums over a batch of runs; what is made of the sums is the same code.
    """

    def dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
        products = [(x * y).flatten(1).sum(1) for x, y in zip(xs, ys, strict=True)]
        return loop.layout.pool(torch.stack(products, dim=1))

    return statistics_of_sums(
        param=dot(state.params, state.params),
        grad=dot(state.grads, state.grads),
        buffer=dot(state.firsts, state.firsts),
        dot=dot(state.grads, state.firsts),
        count=state.loss.new_tensor(loop.layout.layer_sizes()),
    )


class GaroTrainings:
    """B trainings of one task under GARO, each with a cell of its own, or all with the same.

    A diverged training counts for nothing until the next start.

    Attributes:
        loss: (B,) loss on the reward split after the last `play` that the training survived.
        over: (B,) whether it has diverged or reached the horizon.
        diverged: (B,) whether it has diverged.
        step: inner steps made.
    """

    _OWN = ("_first_batch_loss", "_initial_loss", "loss", "_gain", "over", "diverged")

    def __init__(
        self, task: Task, runs: int, *, layerwise: bool, horizon: int | None, compile: bool = False
    ) -> None:
        self.task = task
        self.runs = runs
        self.horizon = horizon or task.horizon
        self._loop = Executor(
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
        self._first_batch_loss = self._inner.loss.clone()
        self._initial_loss = self._loop.evaluate(self._inner, "reward")
        self.loss = self._initial_loss.clone()
        self._gain = torch.zeros(self.runs)  # sum of all gains since the start
        self.over = torch.zeros(self.runs, dtype=torch.bool)
        self.diverged = torch.zeros(self.runs, dtype=torch.bool)
        self.step = 0

    def play(self, weights: GaroWeights, steps: int) -> Tensor:
        """Make inner steps, at most to the horizon.

        Args:
            weights: weights of one cell, or (B, ...).
            steps: number of inner steps.

        Returns:
            Gains (B,): the decrease of the log loss on the reward split.
        """
        steps = min(steps, self.horizon - self.step)
        worst = self._advance(weights, steps)
        self.step += steps
        loss = self._loop.evaluate(self._inner, "reward")
        # Both comparisons are False for NaN.
        survived = (worst <= loss_limit(self._first_batch_loss)) & (
            loss <= loss_limit(self._initial_loss)
        )
        gain = self._gains(loss, survived)
        self.diverged |= ~self.over & ~survived
        self.over |= ~survived | (self.step >= self.horizon)
        self._gain = self._gain + gain
        self.loss = torch.where(survived, loss, self.loss)
        return gain

    def _advance(self, weights: GaroWeights, steps: int) -> Tensor:
        """Make inner steps; returns the largest minibatch loss (B,), NaN where there was a NaN."""
        worst = torch.full((self.runs,), -torch.inf)
        factor = torch.ones(1, self.runs)  # (1, B), no base schedule
        for _ in range(steps):
            hyper, self._cell = garo_step(weights, self._cell, statistics(self._loop, self._inner))
            self._inner, losses = self._loop.advance(self._inner, hyper, factor)
            worst = torch.maximum(worst, losses[0])  # propagates NaN
        return worst

    def _gains(self, loss: Tensor, survived: Tensor) -> Tensor:
        """Gains (B,); a run that diverges now ends with the return of a diverged training."""
        optimum = self.task.optimum
        gain = potential(self.loss, optimum) - potential(loss, optimum)
        total = diverged_return(self._initial_loss, optimum)
        return torch.where(self.over, 0.0, torch.where(survived, gain, total - self._gain))

    def losses(self, split: str) -> Tensor:
        """Loss (B,) on a split now, inf where the training diverged."""
        return torch.where(self.diverged, torch.inf, self._loop.evaluate(self._inner, split))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        return {
            "inner": {k: v.clone() for k, v in flatten(self._inner, "inner").items()},
            "cell": {k: v.clone() for k, v in flatten(self._cell, "cell").items()},
            "own": {name: getattr(self, name).clone() for name in self._OWN},
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        inner = {k: v.clone() for k, v in state["inner"].items()}
        cell = {k: v.clone() for k, v in state["cell"].items()}
        self._inner = unflatten(self._inner, inner, "inner")
        self._cell = unflatten(self._cell, cell, "cell")
        for name in self._OWN:
            setattr(self, name, state["own"][name].clone())
        self.step = state["step"]


class GaroPopulation:
    """Trainings of several tasks as one population; its shares step in threads of their own.

    `agents.evolution.Strategy` plays it.
    """

    def __init__(
        self, shares: Sequence[GaroTrainings], like: GaroWeights, decisions: int, threads: int
    ) -> None:
        """Cut each horizon into intervals.

        Args:
            shares: the trainings; each holds an even number of runs.
            like: weights of one cell, which give the shapes.
            decisions: number of intervals of a horizon; a remainder makes one more.
            threads: number of threads.
        """
        for share in shares:
            if share.runs % 2:
                raise ValueError(
                    "evolution plays runs in pairs: each share needs an even number; got "
                    f"{share.runs}"
                )
        self.shares = shares
        self._intervals = [max(1, share.horizon // decisions) for share in shares]
        self.decisions = max(
            -(-share.horizon // interval)
            for share, interval in zip(shares, self._intervals, strict=True)
        )
        self._like = like
        self._pool = ThreadPoolExecutor(threads)
        self._ended: list[dict[str, float]] = []
        self._bounds = np.cumsum([0] + [share.runs for share in shares])

    @property
    def groups(self) -> NDArray[np.int64]:
        """Number of the task of each pair of runs."""
        names = [share.task.name for share in self.shares for _ in range(share.runs // 2)]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)

    def start(self, row_seeds: Sequence[int]) -> None:
        """Start a training in every run, the first one of its row seed."""
        rows = torch.tensor(list(row_seeds), dtype=torch.int64)
        seeds = self._split(run_seeds(rows, torch.zeros_like(rows)))
        list(self._pool.map(GaroTrainings.start, self.shares, seeds))

    def play(self, weights: Tensor, decisions: int) -> Tensor:
        """Let every run train for some intervals under weights of its own.

        An interval is the same fraction of every task's horizon; the last one may be shorter.

        Args:
            weights: (N, D) flat weights of N runs.
            decisions: number of intervals.

        Returns:
            Gains (N,).
        """

        def play_share(share: GaroTrainings, interval: int, own: Tensor) -> Tensor:
            with torch.no_grad():  # gradients are switched off for each thread apart
                return share.play(unflatten_weights(own, self._like), interval * decisions)

        over_before = [share.over.clone() for share in self.shares]
        parts = self._split(weights)
        gains = list(self._pool.map(play_share, self.shares, self._intervals, parts))
        for share, before in zip(self.shares, over_before, strict=True):
            ended = share.over & ~before
            self._ended += [
                {"reward_loss": loss, "diverged": float(diverged)}
                for loss, diverged in zip(
                    share.loss[ended].tolist(), share.diverged[ended].tolist(), strict=True
                )
            ]
        return torch.cat(gains)

    def _split(self, rows: Tensor) -> list[Tensor]:
        """The rows (N, ...) of each share."""
        return [rows[a:b] for a, b in zip(self._bounds[:-1], self._bounds[1:], strict=True)]

    def figures(self) -> dict[str, float]:
        """Means over the trainings that ended since the last call."""
        means = episode_means(self._ended)
        self._ended = []
        return means

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on."""
        return {"shares": [share.state_dict() for share in self.shares]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for share, saved in zip(self.shares, state["shares"], strict=True):
            share.load_state_dict(saved)


class GaroLearner:
    """Learns GARO's cell by evolution strategies (ES) or persistent ones (PES)."""

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
            shares: the trainings that it learns from.
            selection: the trainings that it is judged by, one batch for each task.
            config: hyperparameters; `hidden` is not used.
            decisions: number of intervals that `config.window` counts in; see `GaroPopulation`.
            threads: number of threads that step the shares.
            seed: seed of weights, perturbations and trainings.
            updates: number of updates that will be made.
        """
        self._like = initial_weights(HIDDEN, torch.Generator().manual_seed(seed))
        self._selection = selection
        population = GaroPopulation(shares, self._like, decisions, threads)
        theta = flatten_weights(self._like)
        self._strategy = Strategy(population, theta, config, seed=seed, updates=updates)

    def update(self) -> dict[str, float]:
        """Make one step of the strategy; returns figures of it."""
        return self._strategy.update()

    @property
    def weights(self) -> GaroWeights:
        """The unperturbed cell."""
        weights = unflatten_weights(self._strategy.theta, self._like)
        return GaroWeights(*(value.clone() for value in weights))

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
    """Final losses (B,) of whole trainings under one cell, inf where they diverged.

    Args:
        trainings: B trainings, which are started anew.
        weights: weights of one cell.
        seeds: B row seeds.
        split: the split that the losses are taken on.
    """
    rows = torch.tensor(list(seeds), dtype=torch.int64)
    trainings.start(run_seeds(rows, torch.zeros_like(rows)))
    trainings.play(weights, trainings.horizon)
    return trainings.losses(split).double().numpy()
