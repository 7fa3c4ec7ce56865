"""What a model starts from.

The initial parameters and buffers of any module as a function of the run's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.rng import Stream, normal, random_bits, uniform
from lr_gym.tasks.architectures import mlp
from lr_gym.tasks.modules import GRU, LSTM, Dropout, Position, Pretrained, Recurrent
from lr_gym.tasks.synthetic import Quadratic, Rosenbrock
from lr_gym.tasks.task import Task

__all__ = [
    "INITIAL",
    "PROBLEM",
    "Initial",
    "build_model",
    "initial_buffers",
    "initial_parameters",
    "load_parameters",
    "mlp",
    "plain_model",
]


class Initial(NamedTuple):
    """Distribution of one tensor's initial values.

    Attributes:
        kind: "uniform" in [-scale, scale], "normal" with std `scale`, or "constant" equal to
            `scale`.
        scale: see kind.
    """

    kind: str
    scale: float


def _fan_in(module: nn.Module, name: str) -> Initial:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    What torch's Linear and Conv reset their weight and bias to.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    return Initial("uniform", weight[0].numel() ** -0.5)


def _hidden(module: nn.Module, name: str) -> Initial:
    """U(-1/sqrt(h), 1/sqrt(h)), as torch."""
    assert isinstance(module, nn.RNNBase)
    return Initial("uniform", module.hidden_size**-0.5)


def _one_and_zero(module: nn.Module, name: str) -> Initial:
    return Initial("constant", float(name == "weight"))


Draw = Callable[[nn.Module, str], Initial]

# Module type -> (module, name of its parameter) -> how torch itself initialises that parameter.
INITIAL: dict[type[nn.Module], Draw] = {
    nn.Linear: _fan_in,
    nn.Conv1d: _fan_in,
    nn.Conv2d: _fan_in,
    nn.BatchNorm1d: _one_and_zero,
    nn.BatchNorm2d: _one_and_zero,
    nn.LayerNorm: _one_and_zero,
    nn.Embedding: lambda module, name: Initial("normal", 1.0),
    Position: lambda module, name: Initial("normal", 0.02),  # as BERT (Devlin et al. 2019)
    GRU: _hidden,
    LSTM: _hidden,
    Recurrent: _hidden,
    Quadratic: lambda module, name: Initial("normal", 1.0),
    Rosenbrock: lambda module, name: Initial("normal", 0.5),
}

# The same for buffers that make up a run's own problem; other buffers start as the module was
# built.
PROBLEM: dict[type[nn.Module], Draw] = {
    nn.Linear: _fan_in,
    Quadratic: lambda module, name: Initial("normal", 1.0),
}


class _Source(NamedTuple):
    """Consecutive numbers of one stream for each run."""

    run_seed: Tensor
    stream: Stream
    dtype: torch.dtype

    def draw(self, initial: Initial, shape: torch.Size, start: int) -> Tensor:
        """(B, *shape), from number `start` on."""
        kind, scale = initial
        runs, count = len(self.run_seed), shape.numel()
        if kind == "uniform":
            draw = (
                uniform(self.run_seed, self.stream, 0, count, start=start, dtype=self.dtype)
                * (2 * scale)
                - scale
            )
        elif kind == "normal":
            draw = (
                normal(self.run_seed, self.stream, 0, count, start=start, dtype=self.dtype) * scale
            )
        else:
            draw = torch.full((runs, count), scale, dtype=self.dtype, device=self.run_seed.device)
        return draw.view(-1, *shape)

    def repeat(self, value: Tensor) -> Tensor:
        """(B, *shape), the same for every run."""
        dtype = self.dtype if value.is_floating_point() else value.dtype
        return (
            value.detach()
            .to(self.run_seed.device, dtype)
            .expand(len(self.run_seed), *value.shape)
            .clone()
        )


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Every module with its path and whether it lies inside a Pretrained one."""
    inside = {
        id(m)
        for module in model.modules()
        if isinstance(module, Pretrained)
        for m in module.modules()
    }
    yield from ((path, module, id(module) in inside) for path, module in model.named_modules())


def initial_parameters(
    model: nn.Module, run_seed: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Initial values of every parameter for each run, in the order of `model.parameters()`.

    Args:
        model: names the shapes and the module types; its own values are ignored, except inside
            Pretrained modules.
        run_seed: int64 (B,); values depend on nothing else.
        dtype: of the result, which is on the device of `run_seed`.

    Returns:
        Per parameter (B, *shape).

    Raises:
        TypeError: for a module with parameters whose type is not in INITIAL.
    """
    source, start = _Source(run_seed, Stream.INIT, dtype), 0
    values: dict[int, Tensor] = {}
    for path, module, pretrained in _modules(model):
        for name, param in module.named_parameters(recurse=False):
            if id(param) in values:  # tied weights
                continue
            if pretrained:
                values[id(param)] = source.repeat(param)
                continue
            if type(module) not in INITIAL:
                raise TypeError(
                    f"no initial distribution for {type(module).__name__} "
                    f"({path or 'the model itself'}): "
                    "add its type to lr_gym.tasks.initial.INITIAL"
                )
            values[id(param)] = source.draw(INITIAL[type(module)](module, name), param.shape, start)
            start += param.numel()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                values[id(param)][:, module.padding_idx] = 0.0
    return tuple(values.values())


def initial_buffers(
    model: nn.Module, run_seed: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Initial values of every buffer for each run, in the order of `model.buffers()`.

    Arguments as above.

    Returns:
        Per buffer (B, *shape): each Dropout has a seed of its own, modules in PROBLEM draw theirs,
        others keep what they were built with.

    Raises:
        TypeError: for torch's own dropout, which draws from the global generator.
    """
    source, start, dropouts = _Source(run_seed, Stream.TASK, dtype), 0, 0
    values: list[Tensor] = []
    for path, module, _ in _modules(model):
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0.0:
            raise TypeError(
                f"{path} is torch's {type(module).__name__}: use lr_gym.tasks.modules.Dropout, "
                "seeded by run"
            )
        for name, buffer in module.named_buffers(recurse=False):
            if isinstance(module, Dropout) and name == "seed":
                values.append(random_bits(run_seed, Stream.DROPOUT, dropouts, 1)[:, 0])
                dropouts += 1
            elif type(module) in PROBLEM:
                values.append(source.draw(PROBLEM[type(module)](module, name), buffer.shape, start))
                start += buffer.numel()
            else:
                values.append(source.repeat(buffer))
    return tuple(values)


def load_parameters(model: nn.Module, values: Sequence[Tensor], row: int = 0) -> nn.Module:
    """Copy one run's parameters into a plain module and return it, in the dtype and on the device of `values`."""
    model.to(values[0].device, values[0].dtype)
    with torch.no_grad():
        for param, value in zip(model.parameters(), values, strict=True):
            param.copy_(value[row])
    return model


def build_model(task: Task) -> nn.Module:
    """Build the task's module.

    Torch's own initial values, which nobody looks at, cost the global generator no draw.
    """
    with torch.random.fork_rng(devices=[]):
        return task.model()


def plain_model(task: Task, run_seed: Tensor, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An ordinary module at the start of run `run_seed`, (1,), in training mode.

    For a plain loop, any optimizer.
    """
    model = build_model(task)
    load_parameters(model, initial_parameters(model, run_seed, dtype))
    with torch.no_grad():
        for buffer, value in zip(
            model.buffers(), initial_buffers(model, run_seed, dtype), strict=True
        ):
            buffer.copy_(value[0])
    return model.train()
