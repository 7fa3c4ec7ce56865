"""ControlSpec: how a policy is wired to a base optimizer. It is saved in every policy file."""

from __future__ import annotations

import dataclasses
from typing import Any

from lr_gym.control.action import FINISH, ActionMode, action_mode, check_controls
from lr_gym.control.features import FEATURES, check_features, features_of_group
from lr_gym.layers import check_granularity
from lr_gym.types import check_count, check_number
from lr_gym.updates.rules import base_rule
from lr_gym.updates.schedules import base_schedule

__all__ = ["ControlSpec"]


@dataclasses.dataclass(frozen=True)
class ControlSpec:
    """How a policy observes and acts: what must be equal when it learns and when it is deployed.

    Environments and scripts take these fields as keyword arguments.

    Raises:
        ValueError: for an unknown name or a value out of range, naming the field.
    """

    granularity: str = "per_layer"
    """What one decision is for: "per_layer" decides for each layer, "global" for the model."""
    controls: tuple[str, ...] = ("lr",)
    """What the policy sets: some of ("lr", "momentum", "noise", "finish"), in this order. The last
    one ends the training by its held-out loss (`lr_gym.control.finish`)."""
    action: str = "recursive"
    """How an action acts, a name of ACTIONS: "recursive" moves the learning rate from where it is,
    "residual" bends the base schedule, "discrete" moves it by one of a few factors."""
    action_step: float | None = None
    """Log of the largest factor on the learning rate in one decision; by default as in ACTIONS."""
    action_bound: float | None = None
    """Log of the largest factor on the learning rate in all; by default as in ACTIONS."""
    base: str = "adamw"
    """Base optimizer, a name of RULES."""
    schedule: str = "wsd"
    """Base schedule, a name of SCHEDULES, which multiplies the learning rate at every step."""
    decisions: int = 50
    """Decisions in a training; one falls every max(1, horizon // decisions) steps."""
    features: tuple[str, ...] = ()
    """What the policy sees, names of FEATURES in order. By default the group "course", momentum and
    noise where they are controlled, and the group "monitor" where the policy can end a training."""
    average: float | None = None
    """Judge a training by the average of its weights over about the last 1 / (average + 1) of its
    time. Where the end is not known, this replaces the decay. None judges the last weights."""

    def __post_init__(self) -> None:
        """Check every field, and fill in defaults so that saved specs outlive changes of them."""
        check_granularity(self.granularity)
        mode = action_mode(self.action)
        for name, default in (("action_step", mode.step), ("action_bound", mode.bound)):
            value = getattr(self, name)
            value = default if value is None else check_number(name, value, 0.0)
            object.__setattr__(self, name, value)
        base_rule(self.base)
        base_schedule(self.schedule)
        object.__setattr__(self, "controls", check_controls(self.controls))
        features = self.features or (
            *features_of_group("course"),
            *(control for control in self.controls if control in FEATURES),
            *(features_of_group("monitor") if self.finishes else ()),
        )
        object.__setattr__(self, "features", check_features(features))
        check_count("decisions", self.decisions)
        if self.average is not None:
            object.__setattr__(self, "average", check_number("average", self.average, 0.0))

    @property
    def finishes(self) -> bool:
        """Whether the policy can end a training."""
        return FINISH in self.controls

    @property
    def mode(self) -> ActionMode:
        """The row of ACTIONS, with this policy's own step and bound."""
        assert self.action_step is not None
        assert self.action_bound is not None
        mode = action_mode(self.action)
        return mode._replace(step=self.action_step, bound=self.action_bound)

    @property
    def endless(self) -> bool:
        """Whether nothing that the policy sees or does depends on how long a training is."""
        tells_end = any(FEATURES[name].tells_end for name in self.features)
        return self.schedule == "constant" and not tells_end

    @property
    def gradient_only(self) -> bool:
        """Whether the policy sees nothing of LayerStats but the size of the gradient."""
        return not any(FEATURES[name].needs_stats for name in self.features)

    @property
    def watches_held_out(self) -> bool:
        """Whether the policy looks at the held-out loss."""
        return self.finishes or any("monitor" in FEATURES[name].groups for name in self.features)

    def check_base(self, base: str) -> None:
        """Raise a ValueError where `base` is not of the family that the policy was trained on.

        Adam and AdamW differ in weight decay only, so either may stand in for the other.
        """
        if base_rule(base).family != base_rule(self.base).family:
            raise ValueError(
                f"the policy was trained on base={self.base!r}; it cannot drive base={base!r}"
            )

    def interval(self, horizon: int) -> int:
        """Inner steps between two decisions in a training of `horizon` steps."""
        return max(1, horizon // self.decisions)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ControlSpec:
        """Inverse of `to_json`.

        Raises:
            ValueError: for unknown or missing fields, naming them.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(values) != expected:
            raise ValueError(f"the spec has fields {sorted(values)}, expected {sorted(expected)}")
        lists = {name: tuple(values[name]) for name in ("controls", "features")}
        return cls(**{**values, **lists})
