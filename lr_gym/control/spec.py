"""The controller's side of a training.

How a policy is wired to a base optimizer, and what it carries along.

`ControlSpec` is saved in every policy file. `ControlState` is the little that lives between
decisions. Environment and deployed optimizer both take `decide_observation` and `apply_action` from
here, so that they cannot drift apart.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lr_gym.control.action import ActionMode, action_mode, check_controls, decode, move
from lr_gym.control.observation import (
    DEFAULT_FEATURES,
    FEATURES,
    Memory,
    Observed,
    TrainingContext,
    check_features,
    empty_memory,
    observe,
    remember,
)
from lr_gym.layers import check_granularity
from lr_gym.types import Hyperparams, LayerStats, check_count, check_number
from lr_gym.updates.rules import base_rule
from lr_gym.updates.schedules import base_schedule

__all__ = ["ControlSpec", "ControlState", "apply_action", "decide_observation", "initial_state"]


@dataclasses.dataclass(frozen=True)
class ControlSpec:
    """How a policy observes and acts.

    Everything that must be equal when it learns and when it is deployed.

    Attributes:
        granularity: "per_layer" or "global".
        controls: the hyperparameters it sets, a part of ("lr", "momentum", "noise").
        action: a name of ACTIONS.
        action_step: offset of a full action, that of ACTIONS by default; saved, so that files
            outlive its defaults.
        action_bound: largest offset, likewise.
        base: a name of RULES; adam and adamw differ in weight decay only and may stand in for each
            other.
        schedule: a name of SCHEDULES that multiplies the learning rate at every inner step.
        decisions: decisions per training; one falls every max(1, horizon // decisions) inner steps.
        features: names of FEATURES, in order.
        average: p of `averaging`, by which the weights are averaged that a training is judged by;
            None for none.

    Raises:
        ValueError: for an unknown name or a value out of range, naming the field.
    """

    granularity: str = "per_layer"
    controls: tuple[str, ...] = ("lr",)
    action: str = "recursive"
    action_step: float | None = None
    action_bound: float | None = None
    base: str = "adamw"
    schedule: str = "wsd"
    decisions: int = 50
    features: tuple[str, ...] = DEFAULT_FEATURES
    average: float | None = None

    def __post_init__(self) -> None:
        """Validate at the border."""
        check_granularity(self.granularity)
        mode = action_mode(self.action)
        for name, default in (("action_step", mode.step), ("action_bound", mode.bound)):
            value = getattr(self, name)
            object.__setattr__(
                self, name, default if value is None else check_number(name, value, 0.0)
            )
        base_rule(self.base)
        base_schedule(self.schedule)
        object.__setattr__(self, "controls", check_controls(self.controls))
        object.__setattr__(self, "features", check_features(self.features))
        check_count("decisions", self.decisions)
        if self.average is not None:
            object.__setattr__(self, "average", check_number("average", self.average, 0.0))

    @property
    def mode(self) -> ActionMode:
        """The row of ACTIONS with this policy's own step and bound."""
        assert self.action_step is not None
        assert self.action_bound is not None
        return action_mode(self.action)._replace(step=self.action_step, bound=self.action_bound)

    @property
    def endless(self) -> bool:
        """Whether nothing that it sees or does asks how long a training is."""
        told = {
            name for name, feature in FEATURES.items() if feature.needs in ("progress", "passes")
        }
        return self.schedule == "constant" and not (
            told | {"progress_known", "passes_known"}
        ) & set(self.features)

    @property
    def gradient_only(self) -> bool:
        """Whether nothing of LayerStats but the size of the gradient matters to what it sees."""
        return not any(FEATURES[name].of_stats for name in self.features)

    def check_base(self, base: str) -> None:
        """Raise a ValueError where `base` is not the optimizer the policy was trained on."""
        if base_rule(base).family != base_rule(self.base).family:
            raise ValueError(
                f"the policy was trained on base={self.base!r}; it cannot drive base={base!r}"
            )

    def interval(self, horizon: int) -> int:
        """Inner steps between two decisions of a training of `horizon` steps."""
        return max(1, horizon // self.decisions)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ControlSpec:
        """Inverse of `to_json`; a ValueError names unknown or missing fields."""
        values = {"average": None, **values}  # which files of before 2026-11-23 lack
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(values) != expected:
            raise ValueError(f"the spec has fields {sorted(values)}, expected {sorted(expected)}")
        return cls(
            **{
                **values,
                "controls": tuple(values["controls"]),
                "features": tuple(values["features"]),
            }
        )


class ControlState(NamedTuple):
    """What a controller carries from one inner step to the next.

    Attributes:
        memory: of the observation.
        offset: (B, L, A) position of each control.
        action: (B, L, A) the last action.
        loss_sum: (B,) sum of the training losses since the last decision.
        loss_count: (B,) how many there were.
    """

    memory: Memory
    offset: Tensor
    action: Tensor
    loss_sum: Tensor
    loss_count: Tensor

    def add_loss(self, loss: Tensor) -> ControlState:
        """Take note of one more inner step's training loss (B,); none where it is not finite.

        Mixed precision skips steps of infinite loss, and the others of the interval must still
        count.
        """
        told = torch.isfinite(loss)
        return self._replace(
            loss_sum=self.loss_sum + torch.where(told, loss, 0.0), loss_count=self.loss_count + told
        )


def initial_state(spec: ControlSpec, runs: int, layers: int, like: Tensor) -> ControlState:
    """State before the first step, on the device and of the dtype of `like`."""
    zeros = like.new_zeros(runs, layers, len(spec.controls))
    return ControlState(
        empty_memory(runs, layers, like),
        zeros,
        zeros.clone(),
        like.new_zeros(runs),
        like.new_zeros(runs),
    )


def decide_observation(
    spec: ControlSpec,
    state: ControlState,
    stats: LayerStats,
    hyper: Hyperparams,
    outlook: TrainingContext,
) -> tuple[Tensor, ControlState]:
    """A decision is due: update the memory and observe.

    Args:
        spec: of the policy.
        state: with the losses since the last decision.
        stats: of the pending gradient.
        hyper: in force until now, (B, L) each, the base schedule included.
        outlook: of the trainings.

    Returns:
        Observation (B, L, F) and the state with its loss sums emptied.
    """
    memory = remember(state.memory, stats, state.loss_sum / state.loss_count)
    observed = Observed(stats, memory, hyper, state.offset, state.action, outlook)
    empty = torch.zeros_like(state.loss_sum)
    state = state._replace(memory=memory, loss_sum=empty, loss_count=empty.clone())
    return observe(spec.features, observed), state


def apply_action(
    spec: ControlSpec, state: ControlState, action: Tensor, base: Hyperparams
) -> tuple[Hyperparams, ControlState]:
    """Decode an action (B, L, A) into hyperparameters, which hold until the next decision.

    `base.lr` is the learning rate without the base schedule: the schedule moves at every inner step
    and multiplies what comes out of here.
    """
    offset = move(spec.mode, state.offset, action)
    state = state._replace(offset=offset, action=action.to(offset.dtype))
    return decode(spec.controls, offset, base), state
