"""The forward pass of B models of one architecture at once.

Each model has its own parameters and its own inputs.

Module types in STACKED have a form written by hand: gradients of weights come out contiguous, the
bias is added within the product, a convolution of series is one product with unfolded inputs, and
a convolution of pictures is one grouped convolution. Every other module runs row by row as it
stands, which is right for any module and no slower than a plain loop.

Whatever changes in training mode (running statistics of batch norm, counters of dropout) is a
buffer and is updated in place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lr_gym.tasks.affine import affine
from lr_gym.tasks.modules import (
    GRU,
    LSTM,
    Dropout,
    MeanOverTime,
    Pair,
    Position,
    Recurrent,
    Residual,
    SelfAttention,
)
from lr_gym.tasks.recurrences import gru, lstm, recurrent
from lr_gym.tasks.synthetic import Quadratic, Rosenbrock

__all__ = ["STACKED", "Values", "aliases_of", "stacked_forward", "values_by_name"]

Values = Mapping[str, Tensor]


def aliases_of(model: nn.Module) -> dict[str, str]:
    """Further names of parameters and buffers that a model holds more than once.

    Args:
        model: any module.

    Returns:
        Further name -> first name.
    """
    every = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    first_names: dict[int, str] = {}
    aliases = {}
    for name, tensor in every:
        first_name = first_names.setdefault(id(tensor), name)
        if first_name != name:
            aliases[name] = first_name
    return aliases


def values_by_name(
    model: nn.Module, params: Sequence[Tensor], buffers: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Values of B runs by name, as `stacked_forward` takes them.

    Args:
        model: gives the names. A tensor that it holds more than once has several.
        params: (B, *shape) for each parameter, in the order of `model.parameters()`.
        buffers: (B, *shape) for each buffer, in the order of `model.buffers()`.

    Returns:
        Name of every parameter and buffer -> (B, *shape).
    """
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    values = dict(zip(names, (*params, *buffers), strict=True))
    return values | {alias: values[name] for alias, name in aliases_of(model).items()}


def _linear(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    weight = values[prefix + "weight"]
    rows = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
    return affine(rows, weight, values.get(prefix + "bias")).view(*x.shape[:-1], weight.shape[1])


def _conv1d(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """(B, n, c, length) -> (B, n, o, length'): windows of the inputs times the weights."""
    assert isinstance(module, nn.Conv1d)
    (kernel,), (stride,) = module.kernel_size, module.stride
    padding = module.padding
    plain = module.groups == 1 and module.dilation == (1,) and module.padding_mode == "zeros"
    if not plain or isinstance(padding, str):
        return _row_by_row(module, values, prefix, x)
    x = nn.functional.pad(x, (padding[0], padding[0])).transpose(2, 3)  # (B, n, length, c)
    length = (x.shape[2] - kernel) // stride + 1
    cuts = [
        x[:, :, offset : offset + stride * (length - 1) + 1 : stride] for offset in range(kernel)
    ]
    windows = torch.cat(cuts, dim=-1).flatten(1, -2)  # (B, n * length', kernel * c)
    weight = values[prefix + "weight"].transpose(2, 3).flatten(2)  # (B, o, kernel * c)
    out = affine(windows, weight, values.get(prefix + "bias"))
    return out.view(*x.shape[:2], length, -1).transpose(2, 3)


def _conv2d(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """(B, n, c, h, w) as one grouped convolution of (n, B * c, h, w): runs beside channels."""
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros":
        return _row_by_row(module, values, prefix, x)
    weight = values[prefix + "weight"]
    bias = values.get(prefix + "bias")
    folded = x.transpose(0, 1).flatten(1, 2)
    out = nn.functional.conv2d(
        folded,
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        module.stride,
        module.padding,
        module.dilation,
        len(weight) * module.groups,
    )
    return out.view(*x.transpose(0, 1).shape[:2], -1, *out.shape[2:]).transpose(0, 1)


def _batch_norm(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """(B, n, c, ...) as one batch norm of (n, B * c, ...): runs beside channels."""
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    if not (module.affine and module.track_running_stats and module.momentum is not None):
        return _row_by_row(module, values, prefix, x)
    folded = x.transpose(0, 1).flatten(1, 2)
    # Flattening makes no copy, so the running statistics change in place.
    mean, var, weight, bias = (
        values[prefix + name].flatten()
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    if module.training:
        values[prefix + "num_batches_tracked"].add_(1)
    out = nn.functional.batch_norm(
        folded, mean, var, weight, bias, module.training, module.momentum, module.eps
    )
    return out.view(x.transpose(0, 1).shape).transpose(0, 1)


def _layer_norm(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    out = nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    weight = values.get(prefix + "weight")
    bias = values.get(prefix + "bias")
    if weight is None:
        return out
    weight = _spread(weight, out)
    return out * weight if bias is None else torch.addcmul(_spread(bias, out), out, weight)


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """(B, *shape) -> (B, 1, ..., *shape) of as many dimensions as `like`, to be broadcast."""
    return value.view(len(value), *[1] * (like.ndim - value.ndim), *value.shape[1:])


def _embedding(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """One long table of all runs: run b looks up its indices behind the tables of earlier runs."""
    assert isinstance(module, nn.Embedding)
    if module.max_norm is not None:
        raise ValueError(
            f"{prefix.removesuffix('.') or 'the embedding'} has max_norm, which changes weights "
            "during the forward pass: leave max_norm out"
        )
    if module.padding_idx is not None or module.scale_grad_by_freq:
        return _row_by_row(module, values, prefix, x)
    weight = values[prefix + "weight"]  # (B, symbols, d)
    first = torch.arange(len(weight), device=x.device) * weight.shape[1]
    return nn.functional.embedding(x + _spread(first, x), weight.flatten(0, 1))


def _position(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    return x + _spread(values[prefix + "weight"], x)


def _recurrence(
    function: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    module: nn.Module,
    values: Values,
    prefix: str,
    x: Tensor,
) -> Tensor:
    """A function of `lr_gym.tasks.recurrences` with torch's names of the weights."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return function(x, *(values[f"{prefix}{kind}_l0"] for kind in kinds))


def _dropout(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    assert isinstance(module, Dropout)
    return module.masked(x, values[prefix + "seed"], values[prefix + "calls"])


def _any_leading(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """A module without parameters that works on any leading dimensions."""
    out: Tensor = module(x)
    return out


def _folded(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """A module without parameters that treats every example alone: runs beside examples."""
    out: Tensor = module(x.flatten(0, 1))
    return out.view(*x.shape[:2], *out.shape[1:])


def _sequential(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    # named_children() would leave out a module that is there a second time.
    for name, child in module._modules.items():
        assert child is not None
        x = stacked_forward(child, values, x, f"{prefix}{name}.")
    return x


def _residual(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    return x + _sequential(module, values, prefix, x)


def _pair(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    assert isinstance(module, Pair)
    student = stacked_forward(module.student, values, x, f"{prefix}student.")
    teacher = stacked_forward(module.teacher, values, x, f"{prefix}teacher.")
    return torch.stack((student, teacher), dim=-1)


def _quadratic(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    assert isinstance(module, Quadratic)
    theta, optimum, direction = (
        values[prefix + name] for name in ("theta", "optimum", "direction")
    )
    return module.losses(theta, optimum, direction, x)


def _rosenbrock(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    assert isinstance(module, Rosenbrock)
    return module.losses(values[prefix + "theta"], x)


def _row_by_row(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """Each run by itself."""
    # Unbinding gathers the gradients of all rows once; indexing would do so for each row.
    params = {name: values[prefix + name].unbind(0) for name, _ in module.named_parameters()}
    buffers = {name: values[prefix + name] for name, _ in module.named_buffers()}
    outputs = []
    for row in range(len(x)):
        own = {name: rows[row] for name, rows in params.items()}
        own |= {name: rows[row] for name, rows in buffers.items()}
        outputs.append(functional_call(module, own, (x[row],)))
    return torch.stack(outputs)


# Module type -> (module, values, prefix of its names, inputs (B, n, ...)) -> outputs (B, n, ...).
STACKED: dict[type[nn.Module], Callable[[nn.Module, Values, str, Tensor], Tensor]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv1d,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    Position: _position,
    GRU: functools.partial(_recurrence, gru),
    LSTM: functools.partial(_recurrence, lstm),
    Recurrent: functools.partial(_recurrence, recurrent),
    Dropout: _dropout,
    nn.Sequential: _sequential,
    Residual: _residual,
    Pair: _pair,
    Quadratic: _quadratic,
    Rosenbrock: _rosenbrock,
    nn.Identity: _any_leading,
    nn.ReLU: _any_leading,
    nn.Tanh: _any_leading,
    nn.GELU: _any_leading,
    nn.SiLU: _any_leading,
    nn.Sigmoid: _any_leading,
    MeanOverTime: _any_leading,
    SelfAttention: _any_leading,
    nn.Flatten: _folded,
    nn.Unflatten: _folded,
    nn.MaxPool1d: _folded,
    nn.MaxPool2d: _folded,
    nn.AvgPool1d: _folded,
    nn.AvgPool2d: _folded,
    nn.AdaptiveAvgPool1d: _folded,
    nn.AdaptiveAvgPool2d: _folded,
}


def stacked_forward(module: nn.Module, values: Values, x: Tensor, prefix: str = "") -> Tensor:
    """Run B models at once, in the module's own training or evaluation mode.

    Args:
        module: the architecture; its own parameters and buffers are ignored.
        values: name -> (B, *shape) of every parameter and buffer, names as in the outermost
            module, see `values_by_name`.
        x: (B, n, ...) inputs of each run.
        prefix: start of this module's names within `values`.

    Returns:
        (B, n, ...) outputs.
    """
    return STACKED.get(type(module), _row_by_row)(module, values, prefix, x)
