"""Saved policies: one `.safetensors` file whose metadata is JSON. Nothing in it is ever unpickled or evaluated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from lr_gym.action import action_mode, action_table
from lr_gym.control import ControlSpec
from lr_gym.tensor_file import PolicyFileError, read_tensor_file, reading, write_tensor_file
from lr_gym.types import check_count

__all__ = [
    "POLICY_FILE",
    "MLPPolicy",
    "Policy",
    "PolicyFileError",
    "builtin_policies",
    "constant_policy",
    "load_policy",
    "save_policy",
]

POLICY_FILE = "policy.safetensors"
_BUILTIN = Path(__file__).parent / "policies"


class Policy(Protocol):
    """A controller that can be saved and deployed; MLPPolicy is one.

    Attributes:
        spec: how it observes and acts.
        interval: inner steps between decisions in training, for deployments that do not know their length.
    """

    @property
    def spec(self) -> ControlSpec:
        """See Attributes."""
        ...

    @property
    def interval(self) -> int:
        """See Attributes."""
        ...

    def predict(self, observation: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map (R, F) observations to (R, A) actions in [-1, 1]; `state` is None for memoryless policies."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same policy on another device."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class MLPPolicy:
    """A memoryless policy: a tanh network whose last layer is linear and whose actions are clipped to [-1, 1].

    In the discrete modes the last layer has one output per row of `action.action_table` and the largest one is taken.

    Attributes:
        spec: how it observes and acts.
        interval: inner steps between decisions in training, for deployments that do not know their length.
        weights: per layer (out, in).
        biases: per layer (out,).
        mean: (F,) subtracted from the observation.
        std: (F,) by which it is then divided.
        about: where it comes from: tasks, seeds, cost, versions; plain JSON values.

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

    kind = "mlp"

    def __post_init__(self) -> None:
        """Check that the network fits the spec."""
        check_count("interval", self.interval)
        width, controls = len(self.spec.features), self.spec.controls
        discrete = action_mode(self.spec.action).discrete
        outputs = len(action_table(controls)) if discrete else len(controls)
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(f"the network has {len(self.weights)} weights and {len(self.biases)} biases")
        for name, vector in (("mean", self.mean), ("std", self.std)):
            if vector.shape != (width,):
                raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected ({width},)")
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
                raise ValueError(f"layer {i} has shapes {shapes}, which do not fit an input of {width}")
            width = len(bias)
        if width != outputs:
            raise ValueError(f"the network has {width} outputs, expected {outputs}")
        for name, tensor in self.tensors().items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} must hold finite float32 numbers")
        if bool((self.std <= 0).any()):
            raise ValueError("std must be positive")

    def predict(self, observation: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Map (R, F) observations to (R, A) actions in [-1, 1]; deterministic, `state` is passed through."""
        x = (observation - self.mean) / self.std
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.nn.functional.linear(x.tanh() if i else x, weight, bias)
        if action_mode(self.spec.action).discrete:
            return action_table(self.spec.controls).to(x)[x.argmax(-1)], state
        return x.clamp(-1.0, 1.0), state

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        layers = {f"weight.{i}": w for i, w in enumerate(self.weights)}
        layers |= {f"bias.{i}": b for i, b in enumerate(self.biases)}
        return layers | {"normaliser.mean": self.mean, "normaliser.std": self.std}

    def to(self, device: torch.device | str) -> MLPPolicy:
        """The same policy on another device."""
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
        cls, spec: ControlSpec, interval: int, about: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> MLPPolicy:
        """Inverse of `tensors`; a ValueError where names are missing or unknown."""
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
        )


# kind -> class; a class offers `predict`, `tensors`, `to` and `from_parts`.
KINDS = {MLPPolicy.kind: MLPPolicy}


def save_policy(policy: MLPPolicy, path: str | os.PathLike[str]) -> Path:
    """Write a policy file atomically: whatever happens, the path holds the old file or the new one.

    Args:
        policy: what to save.
        path: ends in `.safetensors`; missing parent folders are made.

    Returns:
        The path.

    Raises:
        ValueError: for another ending.
    """
    content = {"control": policy.spec.to_json(), "interval": policy.interval, "about": dict(policy.about)}
    return write_tensor_file(path, policy.kind, content, policy.tensors())


def builtin_policies() -> list[str]:
    """Names of the policies shipped with the package, for `load_policy("builtin:NAME")`."""
    return sorted(path.stem for path in _BUILTIN.glob("*.safetensors"))


def _resolve(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if text.startswith("builtin:"):
        name = text.removeprefix("builtin:")
        if name not in builtin_policies():
            raise PolicyFileError(f"no built-in policy {name!r}; there are {', '.join(builtin_policies())}")
        return _BUILTIN / f"{name}.safetensors"
    file = Path(text)
    if file.is_dir():
        file = file / POLICY_FILE
    if not file.is_file():
        raise PolicyFileError(
            f"no policy file at {str(file)!r}: give a .safetensors file, the output folder of train_agent.py, or "
            f"builtin:NAME with NAME one of {', '.join(builtin_policies())}"
        )
    return file


def load_policy(path: str | os.PathLike[str]) -> MLPPolicy:
    """Read a policy from a file, a training's output folder, or the package ("builtin:NAME").

    Raises:
        PolicyFileError: where the file is missing, larger than 16 MiB, truncated, altered, not finite, or of an unknown
            schema version or kind. The message names the file.
    """
    file = _resolve(path)
    with reading(file):
        content, tensors = read_tensor_file(file, *KINDS)
        if not isinstance(content["about"], dict):
            raise ValueError(f"about must be an object; got {content['about']!r:.80}")
        spec = ControlSpec.from_json(content["control"])
        return KINDS[content["kind"]].from_parts(spec, content["interval"], content["about"], tensors)


def constant_policy(spec: ControlSpec, interval: int) -> MLPPolicy:
    """The policy whose action is always 0: the base optimizer and its schedule, nothing else."""
    features = len(spec.features)
    zeros = torch.zeros(len(spec.controls), features)
    return MLPPolicy(spec, interval, (zeros,), (zeros[:, 0].clone(),), torch.zeros(features), torch.ones(features))
