"""GARO's recurrent cell as pure functions: gradient statistics in.

Lr, momentum and weight decay out.

    lr = softplus(w_lr h + b_lr)    momentum = tanh(w_mom h + b_mom)    weight decay = softplus(w_wd h + b_wd)
    h' = GRU(features(statistics), h),  h_0 = 0

The heads read h *before* the statistics of the same step enter it, so the first step is known: with
the initial biases it is SGD at lr 0.01. The GRU is that of Cho et al. 2014 in torch's arrangement
of gates.

Everything broadcasts over leading dimensions and is differentiable. In shapes, `...` is any of (),
(B,) or (P, B) with P members of a population: weights (P, ...), state (P, B, L, ...) trains P
controllers at once. Weights are expanded by `stack`-ing members along a new first dimension.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lr_gym.policies.builtin import BUILTIN, GARO, POLICY_FILE, builtin_file
from lr_gym.policies.tensor_file import check_finite, read_tensor_file, reading, write_tensor_file
from lr_gym.types import Hyperparams

__all__ = [
    "FEATURES",
    "INITIAL_LR",
    "INITIAL_WEIGHT_DECAY",
    "GaroState",
    "GaroWeights",
    "GradientStatistics",
    "garo_features",
    "garo_step",
    "initial_state",
    "initial_weights",
    "load_weights",
    "save_weights",
]

KIND = "garo"
INITIAL_LR = 0.01
INITIAL_WEIGHT_DECAY = 1e-6  # softplus cannot reach 0; times lr it is below float32's resolution
FEATURES = ("gradient_change", "gradient_decay", "cosine", "gradient_to_weight", "age")
_MEAN_DECAY = 0.9
_TINY = 1e-30


class GradientStatistics(NamedTuple):
    """What the cell is fed; `lr_gym.types.LayerStats` has the same fields and more.

    Attributes:
        param_rms: (..., L) of the parameters of each layer.
        grad_rms: (..., L) of the pending gradient.
        cosine: (..., L) between the pending gradient and the momentum buffer; 0 where either
            vanishes.
    """

    param_rms: Tensor
    grad_rms: Tensor
    cosine: Tensor


class HasGradientStatistics(Protocol):
    """`GradientStatistics`, `LayerStats` or any tuple with these fields."""

    @property
    def param_rms(self) -> Tensor: ...
    @property
    def grad_rms(self) -> Tensor: ...
    @property
    def cosine(self) -> Tensor: ...


class GaroWeights(NamedTuple):
    """Weights of the cell, H hidden units and F = len(FEATURES) inputs.

    Attributes:
        input: (..., 3H, F) of the reset, update and new gates.
        recurrent: (..., 3H, H).
        input_bias: (..., 3H).
        recurrent_bias: (..., 3H).
        head: (..., 3, H) rows lr, momentum and weight decay.
        head_bias: (..., 3).
    """

    input: Tensor
    recurrent: Tensor
    input_bias: Tensor
    recurrent_bias: Tensor
    head: Tensor
    head_bias: Tensor

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.recurrent.shape[-1]


class GaroState(NamedTuple):
    """What the cell remembers of each layer.

    Attributes:
        hidden: (..., L, H).
        first_log_rms: (..., L) log rms of the first gradient.
        mean_log_rms: (..., L) its running average.
        steps: (..., L) gradients seen, as float.
    """

    hidden: Tensor
    first_log_rms: Tensor
    mean_log_rms: Tensor
    steps: Tensor


def _softplus_inverse(y: float) -> float:
    return math.log(math.expm1(y))


def initial_weights(hidden_size: int, generator: torch.Generator) -> GaroWeights:
    """Random weights whose first step is SGD at lr 0.01.

    Uniform in +-1/sqrt(H), as torch.nn.GRUCell.
    """
    bound = hidden_size**-0.5

    def uniform(*shape: int) -> Tensor:
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    biases = [_softplus_inverse(INITIAL_LR), 0.0, _softplus_inverse(INITIAL_WEIGHT_DECAY)]
    return GaroWeights(
        uniform(3 * hidden_size, len(FEATURES)),
        uniform(3 * hidden_size, hidden_size),
        uniform(3 * hidden_size),
        uniform(3 * hidden_size),
        uniform(3, hidden_size),
        torch.tensor(biases),
    )


def initial_state(
    shape: tuple[int, ...], hidden_size: int, device: torch.device | None = None
) -> GaroState:
    """State before the first step; `shape` is (..., L)."""
    zeros = torch.zeros(shape, device=device)
    return GaroState(
        torch.zeros((*shape, hidden_size), device=device), zeros, zeros.clone(), zeros.clone()
    )


def garo_features(statistics: HasGradientStatistics, state: GaroState) -> tuple[Tensor, GaroState]:
    """Scale-free inputs (..., L, F) in [-1, 1], and the state with its averages updated.

    gradient_change is the log ratio of the gradient's rms to its running geometric mean,
    gradient_decay that to its first value, gradient_to_weight that to the parameters' rms; age is
    log(1 + t) / 10.
    """
    log_rms = statistics.grad_rms.clamp_min(_TINY).log()
    begun = state.steps > 0
    first = torch.where(begun, state.first_log_rms, log_rms)
    mean = torch.where(begun, state.mean_log_rms, log_rms)
    features = torch.stack(
        [
            torch.tanh(log_rms - mean),
            torch.tanh((log_rms - first) / 4),
            statistics.cosine,
            torch.tanh((log_rms - statistics.param_rms.clamp_min(_TINY).log()) / 4),
            torch.tanh(torch.log1p(state.steps) / 10),
        ],
        dim=-1,
    )
    mean = torch.lerp(log_rms, mean, _MEAN_DECAY)
    return features, state._replace(first_log_rms=first, mean_log_rms=mean, steps=state.steps + 1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., L, I) -> (..., L, O), with weights (O, I) or (P, O, I) for x of (P, ..., L, I)."""
    middle = (1,) * (x.ndim - weight.ndim)
    weight = weight.view(weight.shape[:-2] + middle + weight.shape[-2:])
    bias = bias.view(bias.shape[:-1] + middle + (1,) + bias.shape[-1:])
    return x @ weight.mT + bias


def _gru(weights: GaroWeights, x: Tensor, hidden: Tensor) -> Tensor:
    reset_x, update_x, new_x = _linear(x, weights.input, weights.input_bias).chunk(3, -1)
    reset_h, update_h, new_h = _linear(hidden, weights.recurrent, weights.recurrent_bias).chunk(
        3, -1
    )
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return torch.lerp(new, hidden, update)


def garo_step(
    weights: GaroWeights, state: GaroState, statistics: HasGradientStatistics
) -> tuple[Hyperparams, GaroState]:
    """One decision: hyperparameters (..., L) from the present state, then the next state.

    A layer whose statistics are not finite keeps its state, so one bad gradient is forgotten.

    Args:
        weights: of one cell, or (P, ...) of a population.
        state: (..., L), with P first where there is a population.
        statistics: (..., L) of the pending gradient.
    """
    outputs = _linear(state.hidden, weights.head, weights.head_bias)
    lr, momentum, decay = outputs.unbind(-1)
    hyperparams = Hyperparams(
        lr=functional.softplus(lr),
        momentum=torch.tanh(momentum),
        noise=torch.zeros_like(lr),
        weight_decay=functional.softplus(decay),
    )
    valid = (
        statistics.grad_rms.isfinite()
        & statistics.param_rms.isfinite()
        & statistics.cosine.isfinite()
    )
    statistics = GradientStatistics(
        *(
            torch.where(valid, x, 0.0)
            for x in (statistics.param_rms, statistics.grad_rms, statistics.cosine)
        )
    )
    features, following = garo_features(statistics, state)
    following = following._replace(hidden=_gru(weights, features, state.hidden))
    kept = [torch.where(valid, new, old) for new, old in zip(following[1:], state[1:], strict=True)]
    return hyperparams, GaroState(
        torch.where(valid.unsqueeze(-1), following.hidden, state.hidden), *kept
    )


def save_weights(
    weights: GaroWeights, path: str | os.PathLike[str], about: Mapping[str, Any] | None = None
) -> Path:
    """Write the weights of one cell atomically as `.safetensors`, with the names of its inputs.

    `about` says where they come from, in plain JSON values.
    """
    return write_tensor_file(
        path, KIND, {"features": FEATURES, "about": dict(about or {})}, weights._asdict()
    )


def load_weights(path: str | os.PathLike[str]) -> GaroWeights:
    """Read what `save_weights` wrote, a training's output folder, or "builtin:garo", which ships with the package.

    Raises:
        PolicyFileError: where the file is missing, too large, truncated, altered, not finite, holds something else, or
            was written for other inputs. The message names the file.
    """
    file = builtin_file(GARO) if os.fspath(path) == BUILTIN + GARO else Path(path)
    file = file / POLICY_FILE if file.is_dir() else file
    with reading(file):
        content, tensors = read_tensor_file(file, KIND)
        if tuple(content["features"]) != FEATURES:
            raise ValueError(f"inputs {content['features']}, this lr_gym has {', '.join(FEATURES)}")
        check_finite(tensors)
        weights = GaroWeights(**tensors)
        hidden = weights.hidden_size
        shapes: dict[str, tuple[int, ...]]
        shapes = {
            "input": (3 * hidden, len(FEATURES)),
            "recurrent": (3 * hidden, hidden),
            "head": (3, hidden),
        }
        shapes |= {"input_bias": (3 * hidden,), "recurrent_bias": (3 * hidden,), "head_bias": (3,)}
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    return weights
