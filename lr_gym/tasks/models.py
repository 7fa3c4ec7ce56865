"""Models of the tasks, and the initial parameters of any model as a function of the run's seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.rng import Stream, normal, uniform

__all__ = ["INITIAL", "Initial", "initial_parameters", "load_parameters", "mlp"]


def mlp(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected network, `widths` from input to output."""
    modules: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        modules += [activation()] * (i > 0) + [nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*modules)


class Initial(NamedTuple):
    """Distribution of one parameter tensor's initial values.

    Attributes:
        kind: "uniform" in [-scale, scale], "normal" with std `scale`, or "constant" equal to `scale`.
        scale: see kind.
    """

    kind: str
    scale: float


def _fan_in(module: nn.Module, name: str) -> Initial:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch's Linear and Conv reset their weight and bias to."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return Initial("uniform", weight[0].numel() ** -0.5)


# Module type -> (module, name of its parameter) -> how torch itself initialises that parameter.
INITIAL: dict[type[nn.Module], Callable[[nn.Module, str], Initial]] = {
    nn.Linear: _fan_in,
    nn.Conv1d: _fan_in,
    nn.Conv2d: _fan_in,
}


def initial_parameters(model: nn.Module, run_seed: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Initial values of every parameter for each run, in the order of `model.parameters()`.

    Args:
        model: names the shapes and the module types; its own values are ignored.
        run_seed: int64 (B,); values depend on nothing else.
        dtype: of the result, which is on the device of `run_seed`.

    Returns:
        Per parameter (B, *shape).

    Raises:
        TypeError: for a module with parameters whose type is not in INITIAL.
    """
    values, start = [], 0
    for path, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if type(module) not in INITIAL:
                raise TypeError(
                    f"no initial distribution for {type(module).__name__} ({path or 'the model itself'}): "
                    "add its type to lr_gym.tasks.models.INITIAL"
                )
            kind, scale = INITIAL[type(module)](module, name)
            count = param.numel()
            if kind == "uniform":
                draw = uniform(run_seed, Stream.INIT, 0, count, start=start, dtype=dtype) * (2 * scale) - scale
            elif kind == "normal":
                draw = normal(run_seed, Stream.INIT, 0, count, start=start, dtype=dtype) * scale
            else:
                draw = torch.full((len(run_seed), count), scale, dtype=dtype, device=run_seed.device)
            values.append(draw.view(-1, *param.shape))
            start += count
    return tuple(values)


def load_parameters(model: nn.Module, values: Sequence[Tensor], row: int = 0) -> nn.Module:
    """Copy one run's parameters into a plain module and return it, in the dtype and on the device of `values`."""
    model.to(values[0].device, values[0].dtype)
    with torch.no_grad():
        for param, value in zip(model.parameters(), values, strict=True):
            param.copy_(value[row])
    return model
