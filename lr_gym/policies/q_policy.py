"""QTablePolicy: a Q-table over binned features, trained in the environment, deployed greedily."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lr_gym.control.spec import ControlSpec
from lr_gym.policies.q_table import QLearningController
from lr_gym.policies.ranges import ObservedRanges
from lr_gym.types import check_count

__all__ = ["QTablePolicy"]


@dataclasses.dataclass(frozen=True, eq=False)
class QTablePolicy:
    """The greedy policy of a Q-table.

    Attributes:
        spec: how it observes and acts; its actions are continuous.
        interval: inner steps between decisions in training, for deployments whose length is
            unknown.
        controller: the table; it bins the features of `spec`, and its actions hold a value for each
            control.
        about: where the policy comes from, in plain JSON values.
        ranges: ranges of what it observed; None where nobody measured them, and then it is deployed
            without a guard.

    Raises:
        ValueError: table and spec do not fit.
    """

    spec: ControlSpec
    interval: int
    controller: QLearningController
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranges: ObservedRanges | None = None

    kind = "q_policy"

    def __post_init__(self) -> None:
        check_count("interval", self.interval)
        features, controls = len(self.spec.features), len(self.spec.controls)
        if len(self.controller.edges) != features:
            raise ValueError(
                f"the table bins {len(self.controller.edges)} features, the spec names {features}"
            )
        if self.controller.actions.shape[1] != controls:
            raise ValueError(
                f"actions hold {self.controller.actions.shape[1]} values, the spec has {controls} "
                "controls"
            )
        if self.spec.mode.discrete:
            raise ValueError(
                "a table has actions of its own, so those of the spec must be continuous; got "
                f"action={self.spec.action!r}"
            )
        if self.ranges is not None:
            self.ranges.check(features, controls)

    def predict(self, observation: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map observations (..., F) to greedy actions (..., A) in [-1, 1].

        In states that were never visited the action is 0, which changes nothing.

        Args:
            observation: (..., F).
            state: passed through.
        """
        table = self.controller
        states = table.state_index(observation.reshape(-1, observation.shape[-1]))
        visited = table.visits[states].sum(1, keepdim=True) > 0
        action = torch.where(visited, table.actions[table.greedy(states)], 0.0)
        return action.to(observation).reshape(*observation.shape[:-1], -1), state

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        table = self.controller
        edges = {
            f"edges.{i}": torch.tensor(row, dtype=torch.float64)
            for i, row in enumerate(table.edges)
        }
        table_tensors = {"q": table.q, "visits": table.visits, "actions": table.actions, **edges}
        return table_tensors if self.ranges is None else table_tensors | self.ranges.tensors()

    def to(self, device: torch.device | str) -> QTablePolicy:
        """Return itself: the table stays on the host, and actions go where observations are."""
        return self

    @classmethod
    def from_parts(
        cls,
        spec: ControlSpec,
        interval: int,
        about: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> QTablePolicy:
        """Inverse of `tensors`.

        Args:
            spec: see the attributes, as for the next two.
            interval: inner steps between decisions.
            about: where the policy comes from.
            tensors: what `tensors` returned.

        Raises:
            ValueError: tensors do not fit.
            KeyError: tensors are missing.
        """
        tensors = dict(tensors)
        ranges = ObservedRanges.taken_from(tensors)
        # Three tensors are the table; all others must be edges.
        edges = [tensors[f"edges.{i}"].tolist() for i in range(len(tensors) - 3)]
        if not bool(torch.isfinite(tensors["q"]).all()):
            raise ValueError("q must hold finite numbers")
        controller = QLearningController(edges, tensors["actions"].tolist())
        controller.load_state_dict({"q": tensors["q"], "visits": tensors["visits"]})
        return cls(spec, interval, controller, about, ranges)
