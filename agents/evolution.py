"""Evolution strategies: each training of a population is driven by its own perturbed weights.

    theta +- sigma eps_j   drive trainings 2 j and 2 j + 1, an antithetic pair
    gradient = mean_i  u_i xi_i / sigma^2

The two trainings of a pair share initial weights and data. Here u_i is half of the difference in
gain between the two, in robust units and bounded; xi_i is the sum of the perturbations since the
training began.

When an update plays whole trainings, xi is one perturbation, and this is the evolution strategy of
Salimans et al. 2017. When an update plays a window, this is persistent evolution (Vicol et al.
2021), whose gradient is unbiased although an update sees only a part of each training. A
`Population` is what is driven: small policies in the environment (`evolved_policy`), or the cell of
GARO (`garo`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.types import check_count

__all__ = ["EvolutionConfig", "Population", "Strategy"]

LARGEST_UTILITY = 3.0  # a difference in gain of more robust units counts as this many


@dataclasses.dataclass(frozen=True)
class EvolutionConfig:
    """Hyperparameters of the evolution strategy.

    Raises:
        ValueError: A count is below 1; the message names it.
    """

    learning_rate: float = 0.15
    """Learning rate of Adam on the weights. It falls linearly to a tenth."""
    sigma: float = 0.1
    """Standard deviation of the perturbations."""
    window: int | None = None
    """Decisions of an update. By default an update plays whole trainings."""
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of the policy's network, which are followed by tanh. Without any,
    the policy is linear. The agent garo does not use this."""

    def __post_init__(self) -> None:
        if self.window is not None:
            check_count("evolution.window", self.window)
        for width in self.hidden:
            check_count("evolution.hidden", width)


class Population(Protocol):
    """N trainings, each driven by its own weights; trainings 2 j and 2 j + 1 are a pair."""

    @property
    def decisions(self) -> int:
        """Decisions of the longest training."""
        ...

    @property
    def groups(self) -> NDArray[np.int64]:
        """Task of each pair, (N/2,). Gains are compared only within a task."""
        ...

    def start(self, row_seeds: Sequence[int]) -> None:
        """Start every training anew, from these row seeds (N,)."""
        ...

    def play(self, weights: Tensor, decisions: int) -> Tensor:
        """Drive the trainings for some decisions.

        Args:
            weights: (N, D) weights of each training.
            decisions: Number of decisions.

        Returns:
            Gains (N,) over these decisions, 0 for a training that is over.
        """
        ...

    def figures(self) -> dict[str, float]:
        """Means over the trainings that have ended since the last call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next decisions depend on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        ...


def pair_utilities(gains: Tensor, groups: NDArray[np.int64]) -> Tensor:
    """Utilities of trainings, from their gains.

    The two trainings of a pair have u/2 and -u/2. Here u is the difference of their gains over the
    median difference within their group, at most LARGEST_UTILITY. Pairs of equal gains, such as
    those that are both over, are left out of the median: it could be 0 otherwise.

    Args:
        gains: (N,) gain of each training.
        groups: (N/2,) task of each pair.

    Returns:
        Utilities (N,).
    """
    difference = gains[0::2] - gains[1::2]
    scaled = torch.zeros_like(difference)
    for group in np.unique(groups):
        rows = torch.from_numpy(np.flatnonzero(groups == group))
        part = difference[rows]
        # 1.4826 median |x| estimates the standard deviation of normal numbers
        different = part[part != 0.0]
        if not len(different):
            continue
        unit = 1.4826 * different.abs().median() + 1e-12
        scaled[rows] = (part / unit).clamp(-LARGEST_UTILITY, LARGEST_UTILITY)
    return torch.stack([scaled, -scaled], dim=1).flatten() / 2.0


class Strategy:
    """Adam on an estimate of the gradient of the expected gain.

    Attributes:
        theta: (D,) float32 weights without perturbation.
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
        """Start from given weights.

        Args:
            population: The trainings.
            theta: (D,) initial weights.
            config: Hyperparameters.
            seed: Seed of the perturbations; the row seeds of the trainings are counted up from it.
            updates: Number of updates.

        Raises:
            ValueError: The window is longer than a training.
        """
        pairs = len(population.groups)
        window = population.decisions if config.window is None else config.window
        if not 1 <= window <= population.decisions:
            raise ValueError(
                f"window must lie in [1, {population.decisions}], a training's decisions; got "
                f"{window}"
            )
        self.theta = theta.clone()
        self._population = population
        self._config = config
        self._updates = updates
        self._window = window
        self._row_seed = seed << 20  # row seeds of different seeds never meet
        self._pairs = pairs
        self._done = 0
        self._started = 0  # how often the trainings have been started
        self._decision = 0  # of the present trainings
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam([self.theta], lr=config.learning_rate)
        self._since_start = torch.zeros(2 * pairs, len(theta))  # xi, (N, D)

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        """Perturb the weights, play, make a step; start new trainings if the old ones are over."""
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
        self.theta.grad = -gradient  # Adam descends, the gain shall rise
        done = self._done / max(1, self._updates)
        self._optimizer.param_groups[0]["lr"] = config.learning_rate * (1.0 - 0.9 * done)
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
