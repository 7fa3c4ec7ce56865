"""Evolution strategies over the batched inner loop.

Each run of the batch is driven by weights of its own.

    theta +- sigma eps_j   drive runs 2 j and 2 j + 1, which share initial weights and data (antithetic pairs)
    gradient = mean_i  u_i xi_i / sigma^2,   u: half the pair's difference in gain, in robust units, cut
    xi: sum of the perturbations since the training began

With whole trainings per update, xi is one perturbation and this is the evolution strategy of
Salimans et al. 2017; with windows it is persistent evolution (Vicol et al. 2021), whose gradient is
unbiased although each update sees only a part of a training. What is driven is a `Population`:
small policies in the environment (here), or GARO's cell (`garo`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["EvolutionConfig", "Population", "Strategy"]


@dataclasses.dataclass(frozen=True)
class EvolutionConfig:
    """Hyperparameters of the evolution strategy."""

    learning_rate: float = 0.15
    """Of Adam on theta; falls linearly to a tenth."""
    sigma: float = 0.1
    """Standard deviation of the perturbations."""
    window: int | None = None
    """Decisions per update; None for whole trainings."""
    hidden: tuple[int, ...] = ()
    """Widths of the policy's tanh network, none for a linear policy; GARO has its own."""


class Population(Protocol):
    """N trainings, each driven by its own weights; runs 2 j and 2 j + 1 are a pair."""

    @property
    def decisions(self) -> int:
        """Decisions of the longest training."""
        ...

    @property
    def groups(self) -> NDArray[np.int64]:
        """Task of each pair, (N/2,): gains are compared within a task only."""
        ...

    def start(self, row_seeds: Sequence[int]) -> None:
        """Start a training in every run from these seeds (N,)."""
        ...

    def play(self, weights: Tensor, decisions: int) -> Tensor:
        """Let weights (N, D) drive their runs for some decisions.

        Gains (N,) of these, 0 for runs that are over.
        """
        ...

    def figures(self) -> dict[str, float]:
        """Means over the trainings that ended since the last call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        ...


def pair_utilities(gains: Tensor, groups: NDArray[np.int64]) -> Tensor:
    """Utilities (N,) of gains (N,).

    +-u/2 in each pair, u its difference over the group's median one, cut at +-3.
    """
    difference = gains[0::2] - gains[1::2]
    scaled = torch.zeros_like(difference)
    for group in np.unique(groups):
        rows = torch.from_numpy(np.flatnonzero(groups == group))
        part = difference[rows]
        scaled[rows] = (part / (1.4826 * part.abs().median() + 1e-12)).clamp(-3.0, 3.0)
    return torch.stack([scaled, -scaled], dim=1).flatten() / 2.0


class Strategy:
    """Adam on the estimated gradient of the expected gain.

    Attributes:
        theta: (D,) float32.
    """

    def __init__(
        self,
        population: Population,
        theta: Tensor,
        config: EvolutionConfig,
        *,
        seed: int,
        updates: int,
    ) -> None:
        """Start from `theta` (D,).

        The perturbations are drawn from `seed`, and row seeds are counted up from it.
        """
        pairs = len(population.groups)
        window = population.decisions if config.window is None else config.window
        if not 1 <= window <= population.decisions:
            raise ValueError(
                f"window must lie in [1, {population.decisions}], a training's decisions; got "
                f"{window}"
            )
        self.theta = theta.clone()
        self._population, self._config, self._updates, self._window = (
            population,
            config,
            updates,
            window,
        )
        self._row_seed, self._pairs, self._done, self._started, self._decision = (
            seed << 20,
            pairs,
            0,
            0,
            0,
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam([self.theta], lr=config.learning_rate)
        self._since_start = torch.zeros(2 * pairs, len(theta))

    @property
    def window(self) -> int:
        """Decisions per update."""
        return self._window

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        """Perturb, play, step; start new trainings where the old ones are over."""
        if self._decision == 0:
            first = self._row_seed + self._started * self._pairs
            self._population.start([first + i // 2 for i in range(2 * self._pairs)])
            self._started += 1
            self._since_start.zero_()
        config = self._config
        half = torch.randn(self._pairs, len(self.theta), generator=self._generator)
        perturbation = config.sigma * torch.stack([half, -half], dim=1).flatten(0, 1)
        decisions = min(self._window, self._population.decisions - self._decision)
        gains = self._population.play(self.theta + perturbation, decisions)
        self._since_start += perturbation
        utilities = pair_utilities(gains, self._population.groups)
        gradient = (utilities[:, None] * self._since_start).mean(0) / config.sigma**2
        self.theta.grad = -gradient
        share = self._done / max(1, self._updates)
        self._optimizer.param_groups[0]["lr"] = config.learning_rate * (1.0 - 0.9 * share)
        self._optimizer.step()
        self._done += 1
        self._decision = (self._decision + decisions) % self._population.decisions
        return self._population.figures() | {
            "gradient_norm": float(gradient.norm()),
            "norm": float(self.theta.norm()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "theta": self.theta.clone(),
            "optimizer": self._optimizer.state_dict(),
            "since_start": self._since_start.clone(),
            "generator": self._generator.get_state(),
            "counts": [self._row_seed, self._done, self._started, self._decision],
            "population": self._population.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.theta.copy_(state["theta"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._since_start = state["since_start"].clone()
        self._generator.set_state(state["generator"])
        self._row_seed, self._done, self._started, self._decision = state["counts"]
        self._population.load_state_dict(state["population"])
