"""MLPPolicy: a small tanh network that decides for each layer from what it observes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lr_gym.control.action import action_mode, action_table
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.ranges import ObservedRanges
from lr_gym.types import check_count

__all__ = ["MLPPolicy"]


@dataclasses.dataclass(frozen=True, eq=False)
class MLPPolicy:
    """A tanh network without memory, whose last layer is linear.

    Its actions are clipped to [-1, 1]. In the discrete modes the last layer has one output per row
    of `lr_gym.control.action.action_table`, and the row of the largest output is taken.

    Attributes:
        spec: how the policy observes and acts.
        interval: inner steps between decisions while it learned, used where a deployed optimizer
            does not know the length of its training.
        weights: weight (out, in) of each layer.
        biases: bias (out,) of each layer.
        mean: (F,) vector that is subtracted from the observation.
        std: (F,) vector by which the difference is divided.
        about: where the policy comes from (tasks, seeds, cost, versions), as plain JSON values.
        ranges: ranges of what it observed while it learned; None gives a policy without a guard.

    Raises:
        ValueError: where shapes do not fit or a number is not finite.
    """

    spec: ControlSpec
    interval: int
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    mean: Tensor
    std: Tensor
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ranges: ObservedRanges | None = None

    kind = "mlp"

    def __post_init__(self) -> None:
        """Check that the network fits the spec."""
        check_count("interval", self.interval)
        width, controls = len(self.spec.features), self.spec.controls
        discrete = action_mode(self.spec.action).discrete
        outputs = len(action_table(controls)) if discrete else len(controls)
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(
                f"the network has {len(self.weights)} weights and {len(self.biases)} biases"
            )
        for name, vector in (("mean", self.mean), ("std", self.std)):
            if vector.shape != (width,):
                raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected ({width},)")
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
                raise ValueError(
                    f"layer {i} has shapes {shapes}, which do not fit an input of {width}"
                )
            width = len(bias)
        if width != outputs:
            raise ValueError(f"the network has {width} outputs, expected {outputs}")
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} must hold finite float32 numbers")
        if bool((self.std <= 0).any()):
            raise ValueError("std must be positive")
        if self.ranges is not None:
            self.ranges.check(len(self.spec.features), len(controls))

    def predict(self, observation: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map (R, F) observations to (R, A) actions in [-1, 1].

        Deterministic, `state` is passed through.
        """
        x = (observation - self.mean) / self.std
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.nn.functional.linear(x.tanh() if i else x, weight, bias)
        if action_mode(self.spec.action).discrete:
            return action_table(self.spec.controls).to(x, non_blocking=True)[x.argmax(-1)], state
        return x.clamp(-1.0, 1.0), state

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        layers = {f"weight.{i}": w for i, w in enumerate(self.weights)}
        layers |= {f"bias.{i}": b for i, b in enumerate(self.biases)}
        layers |= {"normaliser.mean": self.mean, "normaliser.std": self.std}
        return layers if self.ranges is None else layers | self.ranges.tensors()

    def to(self, device: torch.device | str) -> MLPPolicy:
        """The same policy on another device; `ranges` stays on the host, for the guard to move."""
        if self.mean.device == torch.device(device):
            return self  # nothing to check again, which would read from the device
        return dataclasses.replace(
            self,
            weights=tuple(w.to(device) for w in self.weights),
            biases=tuple(b.to(device) for b in self.biases),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    @classmethod
    def from_parts(
        cls,
        spec: ControlSpec,
        interval: int,
        about: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> MLPPolicy:
        """Inverse of `tensors`; a ValueError or KeyError where names are missing or unknown."""
        tensors = dict(tensors)
        ranges = ObservedRanges.taken_from(tensors)
        depth = sum(name.startswith("weight.") for name in tensors)
        expected = {f"{part}.{i}" for part in ("weight", "bias") for i in range(depth)}
        expected |= {"normaliser.mean", "normaliser.std"}
        if set(tensors) != expected:
            raise ValueError(f"tensors are {sorted(tensors)}, expected {sorted(expected)}")
        return cls(
            spec=spec,
            interval=interval,
            weights=tuple(tensors[f"weight.{i}"] for i in range(depth)),
            biases=tuple(tensors[f"bias.{i}"] for i in range(depth)),
            mean=tensors["normaliser.mean"],
            std=tensors["normaliser.std"],
            about=about,
            ranges=ranges,
        )
