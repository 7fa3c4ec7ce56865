"""The weights of GARO's recurrent cell: their shapes, their start, and their file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lr_gym.policies.builtin import BUILTIN, GARO, POLICY_FILE, builtin_file
from lr_gym.policies.tensor_file import check_finite, read_tensor_file, reading, write_tensor_file

__all__ = [
    "FEATURES",
    "INITIAL_LR",
    "INITIAL_WEIGHT_DECAY",
    "GaroWeights",
    "flatten_weights",
    "initial_weights",
    "load_weights",
    "save_weights",
    "unflatten_weights",
]

KIND = "garo"
INITIAL_LR = 0.01
# A softplus cannot reach 0. Times the learning rate this is below float32's resolution.
INITIAL_WEIGHT_DECAY = 1e-6
# Inputs of the cell; `garo_cell.garo_features` computes them.
FEATURES = ("gradient_change", "gradient_decay", "cosine", "gradient_to_weight", "age")


class GaroWeights(NamedTuple):
    """Weights of the cell with H hidden units and F = len(FEATURES) inputs.

    The dots are () for one cell and (P,) for a population of P cells.

    Attributes:
        input: (..., 3H, F) for the reset, update and new gates.
        recurrent: (..., 3H, H) for the same gates.
        input_bias: (..., 3H).
        recurrent_bias: (..., 3H).
        head: (..., 3, H) with a row each for lr, momentum and weight decay.
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


def _softplus_inverse(y: float) -> float:
    return math.log(math.expm1(y))


def _shapes(hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of one cell."""
    gates = 3 * hidden_size
    return {
        "input": (gates, len(FEATURES)),
        "recurrent": (gates, hidden_size),
        "input_bias": (gates,),
        "recurrent_bias": (gates,),
        "head": (3, hidden_size),
        "head_bias": (3,),
    }


def initial_weights(hidden_size: int, generator: torch.Generator) -> GaroWeights:
    """Random weights, uniform in +-1/sqrt(H) as in torch.nn.GRUCell.

    The biases of the heads make the first step SGD at lr 0.01 without momentum.
    """
    bound = hidden_size**-0.5
    shapes = _shapes(hidden_size)
    del shapes["head_bias"]
    drawn = {
        name: torch.empty(shape).uniform_(-bound, bound, generator=generator)
        for name, shape in shapes.items()
    }
    biases = [_softplus_inverse(INITIAL_LR), 0.0, _softplus_inverse(INITIAL_WEIGHT_DECAY)]
    return GaroWeights(**drawn, head_bias=torch.tensor(biases))


def flatten_weights(weights: GaroWeights) -> Tensor:
    """The weights of one cell as a vector (D,)."""
    return torch.cat([value.flatten() for value in weights])


def unflatten_weights(theta: Tensor, like: GaroWeights) -> GaroWeights:
    """Vectors (..., D) as weights with the same leading dimensions; `like` gives the shapes."""
    parts = torch.split(theta, [value.numel() for value in like], dim=-1)
    return GaroWeights(
        *(
            part.view(*theta.shape[:-1], *value.shape)
            for part, value in zip(parts, like, strict=True)
        )
    )


def save_weights(
    weights: GaroWeights, path: str | os.PathLike[str], about: Mapping[str, Any] | None = None
) -> Path:
    """Write the weights of one cell atomically as `.safetensors`, with the names of its inputs.

    Args:
        weights: weights of one cell.
        path: the file.
        about: where the weights come from, in plain JSON values.
    """
    content = {"features": FEATURES, "about": dict(about or {})}
    return write_tensor_file(path, KIND, content, weights._asdict())


def load_weights(path: str | os.PathLike[str]) -> GaroWeights:
    """Read what `save_weights` wrote.

    Args:
        path: a file, the output folder of a training, or "builtin:garo", which ships with the
            package.

    Raises:
        PolicyFileError: the file is missing, too large, truncated, altered, not finite, holds
            something else, or was written for other inputs. The message names the file.
    """
    file = builtin_file(GARO) if os.fspath(path) == BUILTIN + GARO else Path(path)
    file = file / POLICY_FILE if file.is_dir() else file
    with reading(file):
        content, tensors = read_tensor_file(file, KIND)
        if tuple(content["features"]) != FEATURES:
            raise ValueError(f"inputs {content['features']}, this lr_gym has {', '.join(FEATURES)}")
        check_finite(tensors)
        weights = GaroWeights(**tensors)
        for name, shape in _shapes(weights.hidden_size).items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    return weights
