"""The types that all other modules use, and the meaning of the letters in shapes.

Every shape comment of the package uses these letters for its dimensions:

    B  runs: independent inner trainings that advance together, step by step
    L  layers: the parts of a model that a policy controls one by one. With granularity="global"
       there is one, otherwise each module that owns parameters is one.
    F  features that a policy sees of one layer
    A  controls: the hyperparameters that a policy sets ("lr", "momentum", "noise")
    R  rows of a policy's input, one for each layer of each run: R = B * L
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Hyperparams",
    "LayerStats",
    "check_count",
    "check_device",
    "check_number",
    "numbers_like",
]


class Hyperparams(NamedTuple):
    """The hyperparameters of one inner step of the base optimizer, for each run and layer.

    Attributes:
        lr: (B, L) effective learning rate; the base schedule is included.
        momentum: (B, L) SGD's mu or Adam's beta1.
        noise: (B, L) standard deviation of the gradient noise, divided by the root mean square of
            the gradient of the same tensor; 0 means no noise.
        weight_decay: (B, L) coefficient of weight decay.
    """

    lr: Tensor
    momentum: Tensor
    noise: Tensor
    weight_decay: Tensor


class LayerStats(NamedTuple):
    """Statistics of each layer of each run, measured while the gradient is pending.

    A gradient is pending after it was computed and before the step that uses it. "RMS" is the root
    mean square over the elements of the layer. All statistics are defined at the first step too.

    Attributes:
        param_rms: (B, L) RMS of the parameters.
        grad_rms: (B, L) RMS of the pending gradient.
        momentum_rms: (B, L) RMS of the bias-corrected first moment; the pending gradient is not
            yet part of it.
        second_moment_rms: (B, L) root of the mean of the bias-corrected second moment; for SGD,
            which keeps none, the RMS of the gradient.
        update_rms: (B, L) RMS of the update that the base rule would make now at lr = 1.
        cosine: (B, L) cosine between the pending gradient and the first moment; 0 if one of them
            is zero.
    """

    param_rms: Tensor
    grad_rms: Tensor
    momentum_rms: Tensor
    second_moment_rms: Tensor
    update_rms: Tensor
    cosine: Tensor


def check_count(name: str, value: Any) -> int:
    """Return `value` as an int.

    Args:
        name: The name of the value for the error message.
        value: The value to check.

    Raises:
        ValueError: The value is not an integer of at least 1.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
    return int(value)


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, *, below: bool = False
) -> float:
    """Return `value` as a float.

    Args:
        name: The name of the value for the error message.
        value: The value to check.
        low: The smallest allowed value.
        high: The largest allowed value.
        below: Whether `high` itself is forbidden.

    Raises:
        TypeError: The value is a tensor.
        ValueError: The value is no number, infinite, NaN or out of range.
    """
    if isinstance(value, Tensor):  # reading it may have to wait for the device
        raise TypeError(f"{name} must be a Python number, got a tensor: pass float({name}) instead")
    inside = isinstance(value, Real) and math.isfinite(value) and low <= float(value) <= high
    if not inside or (below and value == high):
        closing = ")" if below or high == math.inf else "]"
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}{closing}; got {value!r}")
    return float(value)


def check_device(device: torch.device | str) -> torch.device:
    """Return the device after making sure that tensors can be made on it.

    Raises:
        ValueError: Torch does not know the device, or this machine lacks it.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # An AssertionError says that torch was built without this kind of device.
    except (AssertionError, RuntimeError) as error:
        cause = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"device {str(device)!r} cannot be used here: {cause} (cpu always can)"
        ) from None
    return found


def numbers_like(
    values: Sequence[float] | Sequence[Sequence[float]] | NDArray[Any], like: Tensor
) -> Tensor:
    """Return numbers as a tensor with the dtype and device of `like`, without waiting for it."""
    # A copy to a GPU waits unless the host's memory is pinned.
    host = torch.tensor(values, dtype=like.dtype, device="cpu", pin_memory=like.is_cuda)
    return host.to(like.device, non_blocking=True)
