"""Saved policies: one `.safetensors` file whose metadata is JSON.

Nothing in it is ever unpickled or evaluated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from lr_gym.control.spec import ControlSpec
from lr_gym.policies.builtin import BUILTIN, GARO, POLICY_FILE, builtin_file, builtin_names
from lr_gym.policies.mlp_policy import MLPPolicy
from lr_gym.policies.q_policy import QTablePolicy
from lr_gym.policies.tensor_file import (
    PolicyFileError,
    read_tensor_file,
    reading,
    write_tensor_file,
)

__all__ = [
    "POLICY_FILE",
    "MLPPolicy",
    "Policy",
    "PolicyFileError",
    "QTablePolicy",
    "SavedPolicy",
    "builtin_policies",
    "constant_policy",
    "load_policy",
    "save_policy",
]


class Policy(Protocol):
    """What can be deployed as a controller, such as an MLPPolicy or a class of your own.

    A policy may have the attribute `ranges` (ObservedRanges); it is then guarded when deployed.

    Attributes:
        spec: how the policy observes and acts.
        interval: inner steps between decisions while it learned, used where a deployed optimizer
            does not know the length of its training.
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
        """Decide.

        Args:
            observation: (R, F), one row per run and layer.
            state: state of a recurrent policy; None for one without memory.

        Returns:
            Actions (R, A) within [-1, 1], and the next state.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same policy on another device."""
        ...


# kind -> class; a class offers `predict`, `tensors`, `to` and `from_parts`.
KINDS: dict[str, type[MLPPolicy] | type[QTablePolicy]] = {
    policy.kind: policy for policy in (MLPPolicy, QTablePolicy)
}
SavedPolicy = MLPPolicy | QTablePolicy


def save_policy(policy: SavedPolicy, path: str | os.PathLike[str]) -> Path:
    """Write a policy file atomically: whatever happens, the path holds the old file or the new one.

    Args:
        policy: what to save.
        path: ends in `.safetensors`; missing parent folders are made.

    Returns:
        The path.

    Raises:
        TypeError: for a policy of another class.
        ValueError: for another ending.
    """
    if not isinstance(policy, SavedPolicy):
        raise TypeError(
            f"a file can hold an MLPPolicy or a QTablePolicy; got {type(policy).__name__}: give "
            "the object itself to PolicyOptimizer"
        )
    content = {
        "spec": policy.spec.to_json(),
        "interval": policy.interval,
        "about": dict(policy.about),
    }
    return write_tensor_file(path, policy.kind, content, policy.tensors())


def builtin_policies() -> list[str]:
    """Names of the policies shipped with the package, for `load_policy("builtin:NAME")`."""
    return [name for name in builtin_names() if name != GARO]


def _find_file(path: str | os.PathLike[str]) -> Path:
    """The file of a policy, whether a path, a folder or "builtin:NAME" was given."""
    text = os.fspath(path)
    names = ", ".join(builtin_policies())
    if text == BUILTIN + GARO:
        raise PolicyFileError(
            f"{text} holds no policy but weights: use GlobalAdaptiveSGD(params, weights={text!r})"
        )
    if text.startswith(BUILTIN):
        name = text.removeprefix(BUILTIN)
        if name not in builtin_policies():
            raise PolicyFileError(f"no built-in policy {name!r}; there are {names}")
        return builtin_file(name)
    file = Path(text)
    if file.is_dir():
        file = file / POLICY_FILE
    if not file.is_file():
        raise PolicyFileError(
            f"no policy file at {str(file)!r}: give a .safetensors file, the output folder of "
            f"train_agent.py, or builtin:NAME with NAME one of {names}"
        )
    return file


def load_policy(path: str | os.PathLike[str]) -> SavedPolicy:
    """Read a policy from a file, a training's output folder, or the package ("builtin:NAME").

    Raises:
        PolicyFileError: where the file is missing, larger than 16 MiB, truncated, altered, not
            finite, or of an unknown schema version or kind. The message names the file.
    """
    file = _find_file(path)
    with reading(file):
        content, tensors = read_tensor_file(file, *KINDS)
        if not isinstance(content["about"], dict):
            raise ValueError(f"about must be an object; got {content['about']!r:.80}")
        spec = ControlSpec.from_json(content["spec"])
        return KINDS[content["kind"]].from_parts(
            spec, content["interval"], content["about"], tensors
        )


def constant_policy(spec: ControlSpec, interval: int) -> MLPPolicy:
    """The policy whose action is always 0: the base optimizer and its schedule, nothing else."""
    features = len(spec.features)
    zeros = torch.zeros(len(spec.controls), features)
    return MLPPolicy(
        spec,
        interval,
        (zeros,),
        (zeros[:, 0].clone(),),
        torch.zeros(features),
        torch.ones(features),
    )
