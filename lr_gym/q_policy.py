"""QTablePolicy: a Q-table trained in the environment, deployed greedily, and readable by EnhancedSGD.

The table's states are those of EnhancedSGD, recovered from the observation, so that one table serves both:

    loss_trend = exp(atanh(loss_change) / 4) - 1        relative change of the loss
    variance_change = 2 atanh(grad_trend)               log variance of the gradient against its running mean
    entropy                                             not observed here: every bin of it holds the same values
    depth = (depth + 1) / 2                             0 for the first layer, 1 for the last
    progress = log10(1 + decisions made)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lr_gym.control import ControlSpec
from lr_gym.q_table import QLearningController
from lr_gym.types import check_count

__all__ = ["OBSERVED", "QTablePolicy", "share_over_entropy", "table_features"]

OBSERVED = ("loss_change", "grad_trend", "depth", "progress")


def table_features(spec: ControlSpec, observation: Tensor) -> Tensor:
    """The table's features (R, 5) of observations (R, F) that hold `OBSERVED`; NaN in the place of the entropy."""
    column = {name: observation[:, spec.features.index(name)].double() for name in OBSERVED}
    near = 1.0 - 1e-6
    return torch.stack(
        [
            torch.expm1(torch.atanh(column["loss_change"].clamp(-near, near)) / 4.0),
            2.0 * torch.atanh(column["grad_trend"].clamp(-near, near)),
            torch.full_like(column["depth"], torch.nan),
            (column["depth"] + 1.0) / 2.0,
            torch.log10(1.0 + (column["progress"] + 1.0) / 2.0 * spec.decisions),
        ],
        dim=1,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class QTablePolicy:
    """The greedy policy of a Q-table.

    Attributes:
        spec: how it observes and acts; its features are `OBSERVED`.
        interval: inner steps between decisions in training, for deployments that do not know their length.
        controller: the table; its actions hold a value for lr and one for momentum.
        about: where it comes from; plain JSON values.

    Raises:
        ValueError: where table and spec do not fit.
    """

    spec: ControlSpec
    interval: int
    controller: QLearningController
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    kind = "q_policy"

    def __post_init__(self) -> None:
        check_count("interval", self.interval)
        if self.spec.features != OBSERVED:
            raise ValueError(f"a Q-table observes {', '.join(OBSERVED)}; got {', '.join(self.spec.features)}")
        if len(self.controller.edges) != len(OBSERVED) + 1:
            raise ValueError(f"the table has {len(self.controller.edges)} features, expected {len(OBSERVED) + 1}")
        if self.spec.controls not in (("lr",), ("lr", "momentum")) or self.controller.actions.shape[1] != 2:
            raise ValueError(
                f"a Q-table sets lr, or lr and momentum, with actions of two values; got {self.spec.controls!r} and "
                f"{self.controller.actions.shape[1]} values"
            )

    def predict(self, observation: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map (..., F) observations to (..., A) greedy actions in [-1, 1], 0 in states that were never visited.

        `state` is passed through.
        """
        rows = observation.reshape(-1, observation.shape[-1])
        states = self.controller.state_index(table_features(self.spec, rows))
        visited = self.controller.visits[states].sum(1, keepdim=True) > 0
        action = torch.where(visited, self.controller.actions[self.controller.greedy(states)], 0.0)
        width = len(self.spec.controls)
        return action[:, :width].to(observation).reshape(*observation.shape[:-1], width), state

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        table = self.controller
        edges = {f"edges.{i}": torch.tensor(row, dtype=torch.float64) for i, row in enumerate(table.edges)}
        return {"q": table.q, "visits": table.visits, "actions": table.actions, **edges}

    def to(self, device: torch.device | str) -> QTablePolicy:
        """Itself: the table stays on the host and its actions go where the observations are."""
        return self

    @classmethod
    def from_parts(
        cls, spec: ControlSpec, interval: int, about: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> QTablePolicy:
        """Inverse of `tensors`; a ValueError or KeyError where names are missing, unknown or do not fit."""
        edges = [tensors[f"edges.{i}"].tolist() for i in range(len(tensors) - 3)]
        if not bool(torch.isfinite(tensors["q"]).all()):
            raise ValueError("q must hold finite numbers")
        controller = QLearningController(edges, tensors["actions"].tolist())
        controller.load_state_dict({"q": tensors["q"], "visits": tensors["visits"]})
        return cls(spec, interval, controller, about)


def share_over_entropy(controller: QLearningController) -> None:
    """Give every bin of the entropy the values of the first, the only one that a table learned here has visited."""
    bins = [len(row) + 1 for row in controller.edges]
    for table in (controller.q, controller.visits):
        view = table.view(*bins, -1)
        view[:, :, 1:] = view[:, :, :1].clone()
