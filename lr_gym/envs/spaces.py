"""Spaces of the environments, and the reader of actions, which checks them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.action import action_table
from lr_gym.control.spec import ControlSpec

__all__ = ["ActionReader", "action_space", "observation_space"]


def observation_space(spec: ControlSpec, layers: int) -> gym.spaces.Box:
    """(L, F) within [-1, 1]: the observation of one run."""
    return gym.spaces.Box(-1.0, 1.0, (layers, len(spec.features)), np.float32)


def action_space(spec: ControlSpec, layers: int) -> gym.Space[Any]:
    """(L, A) within [-1, 1], or L indices of the action table: the action on one run."""
    if spec.mode.discrete:
        return gym.spaces.MultiDiscrete([len(action_table(spec.controls))] * layers)
    return gym.spaces.Box(-1.0, 1.0, (layers, len(spec.controls)), np.float32)


class ActionReader:
    """Turns what agents and policies give as actions into values on the device."""

    def __init__(self, spec: ControlSpec, runs: int, layers: int, device: torch.device) -> None:
        """Put the table of discrete actions on the device.

        Args:
            spec: how the policy acts.
            runs: B.
            layers: L.
            device: where the trainings run.
        """
        self._discrete = spec.mode.discrete
        self._indices = (runs, layers)
        self._values = (runs, layers, len(spec.controls))
        self._table = action_table(spec.controls).to(device)  # (n, A)

    def __call__(self, actions: Any) -> Tensor:
        """Actions as float32 values (B, L, A) on the device.

        Args:
            actions: (B, L, A) values, or in the discrete modes (B, L) indices of the table.

        Raises:
            ValueError: for another shape, and for an action that is not finite or no index of the
                table, naming its row.
        """
        # Actions come from the host, so these checks do not wait for the device.
        array = np.asarray(actions)
        device = self._table.device
        if array.shape == self._values:
            _check_rows(array, np.isfinite(array), "finite numbers")
            values = np.clip(array, -1.0, 1.0).astype(np.float32)
            return torch.from_numpy(values).to(device, non_blocking=True)
        if not self._discrete or array.shape != self._indices:
            expected = self._indices if self._discrete else self._values
            raise ValueError(f"actions must have shape {expected}; got {array.shape}")
        count = len(self._table)
        _check_rows(array, (array >= 0) & (array < count), f"indices in [0, {count})")
        index = torch.from_numpy(array.astype(np.int64)).to(device, non_blocking=True)
        return self._table[index]


def _check_rows(actions: NDArray[Any], good: NDArray[np.bool_], wanted: str) -> None:
    """Raise a ValueError that names the first row with an action that is not good.

    Args:
        actions: (B, ...) actions of all rows.
        good: (B, ...) whether each number may be an action.
        wanted: what actions must be, for the message.
    """
    if not good.all():
        row = int(np.argwhere(~good)[0, 0])
        raise ValueError(f"actions must be {wanted}; row {row} has {actions[row].tolist()}")
