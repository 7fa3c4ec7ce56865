"""The state of a vector environment as flat tensors, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.tree import flatten, unflatten

__all__ = ["restored", "snapshot"]

HOST = "host."  # prefix of what the host knows
RUNS = "runs"  # prefix of the state on the device

State = TypeVar("State")


def snapshot(host: Mapping[str, NDArray[Any]], runs: Any) -> dict[str, Tensor]:
    """Copies of all arrays and tensors by name.

    Args:
        host: arrays of the host.
        runs: nested tuples of tensors.
    """
    arrays = {HOST + name: torch.from_numpy(value.copy()) for name, value in host.items()}
    return arrays | {name: value.clone() for name, value in flatten(runs, RUNS).items()}


def restored(
    state: Mapping[str, Tensor], host: Mapping[str, NDArray[Any]], runs: State
) -> tuple[dict[str, NDArray[Any]], State]:
    """Inverse of `snapshot`.

    Args:
        state: what `snapshot` returned.
        host: arrays whose names are restored.
        runs: a state of the structure, shapes and devices to restore.

    Raises:
        ValueError: where structure or shapes differ, naming the first difference.
    """
    here = {name: tuple(value.shape) for name, value in flatten(runs, RUNS).items()}
    here |= {HOST + name: value.shape for name, value in host.items()}
    there = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            raise ValueError(
                f"this state was saved by an environment of other options: {name} has shape "
                f"{there.get(name, 'none')} there and {here.get(name, 'none')} here"
            )
    arrays = {name: state[HOST + name].numpy().copy() for name in host}
    tensors = {name: value.clone() for name, value in state.items() if name.startswith(RUNS)}
    return arrays, unflatten(runs, tensors, RUNS)
