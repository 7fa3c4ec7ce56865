"""What a training starts from.

The initial values of a model's parameters and buffers are a function of the run's seed, so that a
run starts alike in a batch of runs, alone, and in a plain training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.rng import Stream, normal, random_bits, uniform
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
    "load_buffers",
    "load_parameters",
    "plain_model",
]


class Initial(NamedTuple):
    """Distribution of one tensor's initial values.

    Attributes:
        kind: "uniform" in [-scale, scale), "normal" with standard deviation `scale`, or "constant"
            equal to `scale`.
        scale: see kind.
    """

    kind: Literal["uniform", "normal", "constant"]
    scale: float


def _fan_in(module: nn.Module, name: str) -> Initial:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as torch's Linear and Conv reset weight and bias."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return Initial("uniform", weight[0].numel() ** -0.5)


def _hidden_size(module: nn.Module, name: str) -> Initial:
    """U(-1/sqrt(h), 1/sqrt(h)) for h hidden units, as torch's recurrences reset all parameters."""
    assert isinstance(module, nn.RNNBase)
    return Initial("uniform", module.hidden_size**-0.5)


def _one_and_zero(module: nn.Module, name: str) -> Initial:
    """The weight is 1, the bias 0."""
    return Initial("constant", float(name == "weight"))


DistributionOf = Callable[[nn.Module, str], Initial]  # of a module's tensor of that name

# Module type -> distribution of each of its parameters: torch's own, where torch has the module.
INITIAL: dict[type[nn.Module], DistributionOf] = {
    nn.Linear: _fan_in,
    nn.Conv1d: _fan_in,
    nn.Conv2d: _fan_in,
    nn.BatchNorm1d: _one_and_zero,
    nn.BatchNorm2d: _one_and_zero,
    nn.LayerNorm: _one_and_zero,
    nn.Embedding: lambda module, name: Initial("normal", 1.0),
    Position: lambda module, name: Initial("normal", 0.02),  # as BERT (Devlin et al. 2019)
    GRU: _hidden_size,
    LSTM: _hidden_size,
    Recurrent: _hidden_size,
    Quadratic: lambda module, name: Initial("normal", 1.0),
    Rosenbrock: lambda module, name: Initial("normal", 0.5),
}

# Module type -> distribution of each of its buffers, where these are the run's own problem (a
# teacher, an optimum). All other buffers start as the module was built.
PROBLEM: dict[type[nn.Module], DistributionOf] = {
    nn.Linear: _fan_in,
    Quadratic: lambda module, name: Initial("normal", 1.0),
}


class _Source(NamedTuple):
    """Random numbers for B runs.

    Attributes:
        run_seed: (B,) int64.
        stream: what the numbers are for.
        dtype: dtype of the numbers.
    """

    run_seed: Tensor
    stream: Stream
    dtype: torch.dtype

    def draw(self, initial: Initial, shape: torch.Size, start: int) -> Tensor:
        """Draw (B, *shape), each run's numbers from its `start`th on."""
        kind, scale = initial
        count = shape.numel()
        if kind == "constant":
            size = (len(self.run_seed), count)
            values = torch.full(size, scale, dtype=self.dtype, device=self.run_seed.device)
        elif kind == "uniform":
            unit = uniform(self.run_seed, self.stream, 0, count, start=start, dtype=self.dtype)
            values = unit * (2 * scale) - scale
        else:
            unit = normal(self.run_seed, self.stream, 0, count, start=start, dtype=self.dtype)
            values = unit * scale
        return values.view(-1, *shape)

    def repeat(self, value: Tensor) -> Tensor:
        """Give every run a copy of one value: (B, *shape)."""
        dtype = self.dtype if value.is_floating_point() else value.dtype
        value = value.detach().to(self.run_seed.device, dtype)
        return value.expand(len(self.run_seed), *value.shape).clone()


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Every module with its path, and whether it is part of a Pretrained one."""
    pretrained = {
        id(part)
        for module in model.modules()
        if isinstance(module, Pretrained)
        for part in module.modules()
    }
    for path, module in model.named_modules():
        yield path, module, id(module) in pretrained


def initial_parameters(
    model: nn.Module, run_seed: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Initial values of every parameter for each run, in the order of `model.parameters()`.

    Args:
        model: gives the module types and the shapes. Its own values are ignored, except inside
            Pretrained modules.
        run_seed: (B,) int64; the values depend on nothing else.
        dtype: dtype of the result, which is on the device of `run_seed`.

    Returns:
        (B, *shape) for each parameter.

    Raises:
        TypeError: for a module with parameters whose type is not in INITIAL.
    """
    source = _Source(run_seed, Stream.INIT, dtype)
    start = 0
    values: dict[int, Tensor] = {}
    for path, module, pretrained in _modules(model):
        for name, param in module.named_parameters(recurse=False):
            if id(param) in values:  # tied weights are drawn once
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

    Each Dropout gets a seed of its own, modules in PROBLEM draw their buffers, and all other
    buffers start as they were built.

    Args:
        model: gives the module types, the shapes, and the values of buffers that are not drawn.
        run_seed: (B,) int64.
        dtype: dtype of the floating-point buffers.

    Returns:
        (B, *shape) for each buffer.

    Raises:
        TypeError: for torch's own dropout, which draws from the global generator.
    """
    source = _Source(run_seed, Stream.TASK, dtype)
    start = 0
    dropouts = 0
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
    """Copy one run's parameters into a plain module.

    Args:
        model: changed in place; it moves to the dtype and device of the values.
        values: (B, *shape) for each parameter.
        row: which of the B runs.

    Returns:
        The same module.
    """
    model.to(values[0].device, values[0].dtype)
    with torch.no_grad():
        for param, value in zip(model.parameters(), values, strict=True):
            param.copy_(value[row])
    return model


def load_buffers(model: nn.Module, values: Sequence[Tensor], row: int = 0) -> nn.Module:
    """Copy one run's buffers into a plain module.

    Args:
        model: changed in place.
        values: (B, *shape) for each buffer.
        row: which of the B runs.

    Returns:
        The same module.
    """
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), values, strict=True):
            buffer.copy_(value[row])
    return model


def build_model(task: Task) -> nn.Module:
    """Build the task's module, without a draw from torch's global generator.

    Torch initialises modules as they are built; nobody looks at these values.
    """
    with torch.random.fork_rng(devices=[]):
        return task.model()


def plain_model(task: Task, run_seed: Tensor, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build an ordinary module at the start of a run, for a plain training loop.

    Args:
        task: whose model it is.
        run_seed: (1,) int64, seed of the run.
        dtype: dtype of the parameters.

    Returns:
        The module, in training mode.
    """
    model = build_model(task)
    load_parameters(model, initial_parameters(model, run_seed, dtype))
    load_buffers(model, initial_buffers(model, run_seed, dtype))
    return model.train()
