"""Tabular Q-learning over binned features: one table for the environment and for optimizers.

    Q[s, a] += learning_rate (r + discount max_a' Q[s', a'] - Q[s, a])     (Watkins & Dayan 1992)

R rows act and learn at once. Rows that share a cell move it by the mean of their errors, so the
result depends neither on their order nor on how many agree. An action is a row of control values in
[-1, 1], one for each control, which is what the policies of this package return.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lr_gym.policies.tensor_file import check_finite, read_tensor_file, reading, write_tensor_file
from lr_gym.types import check_number, numbers_like

__all__ = ["QLearningController"]

KIND = "q_table"
_OPTIONS = (
    "learning_rate",
    "discount",
    "epsilon_decay",
    "min_epsilon",
    "initial_mix_prob",
    "mix_tolerance",
)
_NUMBERS = ("epsilon", "mix_prob", "epoch", "epoch_total", "epoch_count", "previous_loss")


class QLearningController:
    """Epsilon-greedy Q-learning on a table of binned features.

    The table lives on the host.

    Args:
        edges: for each of F features its inner bin edges, ascending; n edges make n + 1 bins.
        actions: (num_actions, A) control values in [-1, 1].
        learning_rate: step size of Watkins' update.
        discount: weight of the next state's value.
        epsilon: initial probability of a uniformly random action.
        epsilon_decay: factor on epsilon at each call of `act`.
        min_epsilon: floor of epsilon.
        initial_mix_prob: while the loss moves, the probability that a change is applied as a
            factor; else it is added.
        mix_tolerance: relative change of the loss between epochs at which that probability has
            halved.
        seed: seed of the exploration; the global generators are not used.

    Attributes:
        q: (S, num_actions) values, float32, from 0.
        visits: (S, num_actions) int64 number of updates.
        epsilon: present exploration probability.
        mix_prob: present probability of a multiplicative change.
    """

    def __init__(
        self,
        edges: Sequence[Sequence[float]],
        actions: Sequence[Sequence[float]],
        *,
        learning_rate: float = 0.1,
        discount: float = 0.9,
        epsilon: float = 0.1,
        epsilon_decay: float = 0.995,
        min_epsilon: float = 0.01,
        initial_mix_prob: float = 0.9,
        mix_tolerance: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.edges = [[float(x) for x in row] for row in edges]
        if not self.edges or any(row != sorted(set(row)) for row in self.edges):
            raise ValueError(
                f"edges must hold strictly ascending numbers for each feature; got {edges!r}"
            )
        self.actions = torch.tensor(actions, dtype=torch.float32)
        if self.actions.ndim != 2 or self.actions.numel() == 0 or self.actions.abs().max() > 1:
            raise ValueError(
                f"actions must be a table of control values in [-1, 1]; got {actions!r}"
            )
        self.learning_rate = check_number("learning_rate", learning_rate, 0.0, 1.0)
        self.discount = check_number("discount", discount, 0.0, 1.0)
        self.epsilon = check_number("epsilon", epsilon, 0.0, 1.0)
        self.epsilon_decay = check_number("epsilon_decay", epsilon_decay, 0.0, 1.0)
        self.min_epsilon = check_number("min_epsilon", min_epsilon, 0.0, 1.0)
        self.initial_mix_prob = check_number("initial_mix_prob", initial_mix_prob, 0.0, 1.0)
        if not mix_tolerance > 0:
            raise ValueError(f"mix_tolerance must be positive; got {mix_tolerance!r}")
        self.mix_tolerance = mix_tolerance
        self.mix_prob = self.initial_mix_prob
        self.epoch = 0  # the present epoch, and the sum and number of its losses
        self.epoch_total = 0.0
        self.epoch_count = 0
        self.previous_loss = math.nan  # mean loss of the epoch before
        self.q = torch.zeros(self.num_states, len(self.actions))
        self.visits = torch.zeros(self.q.shape, dtype=torch.int64)
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def num_states(self) -> int:
        """S, the product of the numbers of bins."""
        return math.prod(len(row) + 1 for row in self.edges)

    @property
    def num_actions(self) -> int:
        """Rows of the action table."""
        return len(self.actions)

    def state_index(self, features: Tensor) -> Tensor:
        """Bin features (R, F) into states (R,); NaN, which is an absent feature, counts as 0."""
        if features.ndim != 2 or features.shape[1] != len(self.edges):
            raise ValueError(
                f"features must be (R, {len(self.edges)}); got {tuple(features.shape)}"
            )
        index = torch.zeros(len(features), dtype=torch.int64)
        columns = features.cpu().nan_to_num(nan=0.0).unbind(1)
        for column, edges in zip(columns, self.edges, strict=True):
            # right=True: a value on an edge belongs to the bin above it.
            bins = torch.bucketize(column.contiguous(), numbers_like(edges, column), right=True)
            index = index * (len(edges) + 1) + bins
        return index

    def greedy(self, states: Tensor) -> Tensor:
        """Best action (R,) of each state, the first one among equals."""
        return self.q[states].argmax(1)

    def act(self, states: Tensor) -> Tensor:
        """Epsilon-greedy actions (R,) for states (R,), then epsilon decays.

        Among equal values the choice is random: a new table, all zeros, must not prefer the first
        action.
        """
        rows = len(states)
        values = self.q[states]
        ties = torch.where(values == values.amax(1, keepdim=True), 1.0, 0.0)
        best = torch.multinomial(ties, 1, generator=self._generator).squeeze(1)
        explore = torch.rand(rows, generator=self._generator) < self.epsilon
        chance = torch.randint(self.num_actions, (rows,), generator=self._generator)
        self.epsilon = max(self.min_epsilon, self.epsilon * self.epsilon_decay)
        return torch.where(explore, chance, best)

    def update(
        self,
        states: Tensor,
        actions: Tensor,
        rewards: Tensor,
        next_states: Tensor,
        terminated: Tensor | None = None,
    ) -> Tensor:
        """Watkins' update; rows with a non-finite reward are left out.

        Args:
            states: (R,) where the actions were taken.
            actions: (R,) the actions.
            rewards: (R,).
            next_states: (R,).
            terminated: (R,) bool, rows whose next state has no value; None for none.

        Returns:
            Temporal-difference errors (R,), NaN in the rows left out.
        """
        rewards = rewards.to(self.q)
        known = rewards.isfinite()
        next_values = self.q[next_states].amax(1)
        if terminated is not None:
            next_values = next_values.masked_fill(terminated, 0.0)
        errors = rewards + self.discount * next_values - self.q[states, actions]
        cells = (states * self.num_actions + actions)[known]
        sums = torch.zeros(self.q.numel()).index_add_(0, cells, errors[known])
        counts = torch.bincount(cells, minlength=self.q.numel())
        self.q += (self.learning_rate * sums / counts.clamp_min(1)).view_as(self.q)
        self.visits += counts.view_as(self.visits)
        return torch.where(known, errors, torch.nan)

    def predict(self, observation: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Greedy control values (R, A) for features (R, F): the interface of every policy here."""
        best = self.greedy(self.state_index(observation)).to(observation.device)
        return self.actions.to(observation.device)[best], state

    def draw_multiplicative(self, rows: int) -> Tensor:
        """Draw for each of R rows whether its change is a factor, with probability `mix_prob`."""
        return torch.rand(rows, generator=self._generator) < self.mix_prob

    def update_mix_prob(self, loss: float, epoch: int) -> None:
        """Adapt `mix_prob` to how much the loss still moves from epoch to epoch.

        With c the relative change between the mean losses of the last two epochs,
        mix_prob = initial_mix_prob c / (c + mix_tolerance): factors while the loss moves, small
        summands once it has converged. Ours: the user's document only says which of them when.

        Args:
            loss: a loss of the epoch; one that is not finite is ignored.
            epoch: number of the epoch.
        """
        if not math.isfinite(loss):
            return
        if epoch != self.epoch and self.epoch_count:
            mean = self.epoch_total / self.epoch_count
            if math.isfinite(self.previous_loss):
                change = abs(mean - self.previous_loss) / max(abs(self.previous_loss), 1e-12)
                self.mix_prob = self.initial_mix_prob * change / (change + self.mix_tolerance)
            self.previous_loss = mean
            self.epoch_total = 0.0
            self.epoch_count = 0
        self.epoch = epoch
        self.epoch_total += loss
        self.epoch_count += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors, numbers and lists; `torch.load(weights_only=True)` reads it."""
        return {
            "q": self.q.clone(),
            "visits": self.visits.clone(),
            "actions": self.actions.clone(),
            "generator": self._generator.get_state(),
            "edges": [list(row) for row in self.edges],
            **{name: getattr(self, name) for name in (*_OPTIONS, *_NUMBERS)},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`, options and bins included; missing entries keep their value."""
        edges = state_dict.get("edges", self.edges)
        actions = state_dict.get("actions", self.actions)
        shape = (math.prod(len(row) + 1 for row in edges), len(actions))
        if tuple(state_dict["q"].shape) != shape:
            raise ValueError(
                f"the table has shape {tuple(state_dict['q'].shape)}, its bins and actions make "
                f"{shape}"
            )
        self.q = state_dict["q"].cpu().clone()
        self.actions = actions.cpu().clone()
        self.visits = state_dict.get("visits", torch.zeros(shape, dtype=torch.int64)).cpu().clone()
        self.edges = [list(row) for row in edges]
        if "generator" in state_dict:
            self._generator.set_state(state_dict["generator"].cpu())
        for name in (*_OPTIONS, *_NUMBERS):
            setattr(self, name, state_dict.get(name, getattr(self, name)))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table atomically as `.safetensors`, numbers as JSON in its header."""
        state = self.state_dict()
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        if math.isnan(self.previous_loss):
            rest["previous_loss"] = None  # JSON has no NaN
        return write_tensor_file(path, KIND, rest, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> QLearningController:
        """Read what `save` wrote.

        Raises:
            PolicyFileError: the file is missing, too large, truncated, altered, not finite, or
                holds something else. The message names the file.
        """
        file = Path(path)
        with reading(file):
            rest, tensors = read_tensor_file(file, KIND)
            check_finite(tensors)
            if rest["previous_loss"] is None:
                rest["previous_loss"] = math.nan
            options = {name: rest[name] for name in (*_OPTIONS, "epsilon")}
            controller = cls(rest["edges"], tensors["actions"].tolist(), **options)
            controller.load_state_dict({**rest, **tensors})
        return controller

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._generator = torch.Generator()
        self.edges = []
        self.actions = torch.empty(0)
        for name in (*_OPTIONS, *_NUMBERS):
            setattr(self, name, state[name])
        self.load_state_dict(state)
