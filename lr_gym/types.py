"""The types that everything else is written in, and the legend of shapes.

Dimension letters, used in every shape comment of the package:

    B  runs: independent inner trainings, advanced in lock-step
    L  layers: rows of control; one with granularity="global", else one per module that owns parameters
    F  features of one observation row
    A  controls: the hyperparameters a policy sets ("lr", "momentum", "noise")
    R  rows of a policy's input, R = B * L
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
    """What one inner step of the base optimizer needs to know, for each run and layer.

    Attributes:
        lr: (B, L) effective learning rate, the base schedule included.
        momentum: (B, L) SGD's mu or Adam's beta1.
        noise: (B, L) std of the gradient noise over the root mean square of that tensor's gradient;
            0 is off.
        weight_decay: (B, L) coefficient of weight decay.
    """

    lr: Tensor
    momentum: Tensor
    noise: Tensor
    weight_decay: Tensor


class LayerStats(NamedTuple):
    """Root mean squares over the elements of each layer, taken from the pending gradient.

    The momentum is bias-corrected, the update is the one that the base rule would make *now* at lr
    1: both are therefore defined at the first step too.

    Attributes:
        param_rms: (B, L) of the parameters.
        grad_rms: (B, L) of the pending gradient.
        momentum_rms: (B, L) of the bias-corrected first moment, before the pending gradient joins
            it.
        second_moment_rms: (B, L) root of the mean bias-corrected second moment; the gradient's own
            for SGD.
        update_rms: (B, L) of the next update at lr 1.
        cosine: (B, L) cosine between the pending gradient and the first moment; 0 where either
            vanishes.
    """

    param_rms: Tensor
    grad_rms: Tensor
    momentum_rms: Tensor
    second_moment_rms: Tensor
    update_rms: Tensor
    cosine: Tensor


def check_count(name: str, value: Any) -> int:
    """Return `value` as an int or raise a ValueError that names it: an integer of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
    return int(value)


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, *, below: bool = False
) -> float:
    """Return `value` as a float if `low <= value <= high`, or with `below` if `low <= value < high`.

    Raises:
        TypeError: for a tensor, which would have to be waited for.
        ValueError: for what is no number, out of range, infinite or NaN.
    """
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Python number, got a tensor: pass float({name}) instead")
    inside = isinstance(value, Real) and math.isfinite(value) and low <= float(value) <= high
    if not inside or (below and value == high):
        closing = ")" if below or high == math.inf else "]"
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}{closing}; got {value!r}")
    return float(value)


def check_device(device: torch.device | str) -> torch.device:
    """A device that tensors can be made on here.

    Raises:
        ValueError: for one that torch does not know, or that this machine lacks.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError) as error:  # torch was built without it, or finds none
        cause = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"device {str(device)!r} cannot be used here: {cause} (cpu always can)"
        ) from None
    return found


def numbers_like(
    values: Sequence[float] | Sequence[Sequence[float]] | NDArray[Any], like: Tensor
) -> Tensor:
    """Numbers of the host as a tensor of the dtype and on the device of `like`, which need not be waited for."""
    # pageable memory may be waited for
    host = torch.tensor(values, dtype=like.dtype, device="cpu", pin_memory=like.is_cuda)
    return host.to(like.device, non_blocking=True)
