"""The forward pass of B models of one architecture at once, each with its own parameters and its own inputs.

Module types in STACKED have a hand-written form: weight gradients come out contiguous, the bias rides along with the
product, convolutions of series are a product with unfolded inputs, those of pictures one grouped convolution. Every
other module runs row by row as it stands, which is right for any module, and no slower than a plain loop.

Whatever changes in training mode (batch norm's running statistics, dropout's counters) is a buffer, updated in place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

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
from lr_gym.tasks.synthetic import Quadratic, Rosenbrock

__all__ = ["STACKED", "Values", "stacked_forward"]

Values = Mapping[str, Tensor]


class _Affine(torch.autograd.Function):
    """(B, n, i), (B, o, i), (B, o) -> (B, n, o).

    The weight's gradient is contiguous, unlike that of baddbmm.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        grad_x = torch.bmm(grad, weight) if ctx.needs_input_grad[0] else None
        return grad_x, torch.bmm(grad.transpose(1, 2), x), grad.sum(1)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
    out: Tensor = _Affine.apply(x, weight, bias)
    return out


def _linear(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    weight = values[prefix + "weight"]
    rows = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
    return _affine(rows, weight, values.get(prefix + "bias")).view(*x.shape[:-1], weight.shape[1])


def _conv1d(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """(B, n, c, length) -> (B, n, o, length').

    Windows (B, n, length', kernel, c) times the weights.
    """
    assert isinstance(module, nn.Conv1d)
    (kernel,), (stride,), padding = module.kernel_size, module.stride, module.padding
    plain = module.groups == 1 and module.dilation == (1,) and module.padding_mode == "zeros"
    if not plain or isinstance(padding, str):
        return _row_by_row(module, values, prefix, x)
    x = nn.functional.pad(x, (padding[0], padding[0])).transpose(2, 3)
    length = (x.shape[2] - kernel) // stride + 1
    cuts = [
        x[:, :, offset : offset + stride * (length - 1) + 1 : stride] for offset in range(kernel)
    ]
    windows = torch.cat(cuts, dim=-1).flatten(1, -2)
    weight = values[prefix + "weight"].transpose(2, 3).flatten(2)
    return (
        _affine(windows, weight, values.get(prefix + "bias"))
        .view(*x.shape[:2], length, -1)
        .transpose(2, 3)
    )


def _conv2d(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """Runs beside channels: (B, n, c, h, w) is one grouped convolution of (n, B c, h, w)."""
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros":
        return _row_by_row(module, values, prefix, x)
    weight, bias = values[prefix + "weight"], values.get(prefix + "bias")
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
    """Runs beside channels: (B, n, c, ...) is one batch norm of (n, B c, ...)."""
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    if not (module.affine and module.track_running_stats and module.momentum is not None):
        return _row_by_row(module, values, prefix, x)
    folded = x.transpose(0, 1).flatten(1, 2)
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
    weight, bias = values.get(prefix + "weight"), values.get(prefix + "bias")
    if weight is None:
        return out
    weight = _spread(weight, out)
    return out * weight if bias is None else torch.addcmul(_spread(bias, out), out, weight)


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """(B, *shape) -> (B, 1, ..., *shape), to be broadcast over what lies between."""
    return value.view(len(value), *[1] * (like.ndim - value.ndim), *value.shape[1:])


def _embedding(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """One long table: row b of the batch looks up its indices after those of the rows before."""
    assert isinstance(module, nn.Embedding)
    if module.max_norm is not None:
        raise ValueError(
            f"{prefix.removesuffix('.') or 'the embedding'} has max_norm, which changes weights in "
            "passing"
        )
    if module.padding_idx is not None or module.scale_grad_by_freq:
        return _row_by_row(module, values, prefix, x)
    weight = values[prefix + "weight"]
    first = torch.arange(len(weight), device=x.device) * weight.shape[1]
    return nn.functional.embedding(x + _spread(first, x), weight.flatten(0, 1))


def _position(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    return x + _spread(values[prefix + "weight"], x)


class _GatedRecurrence(torch.autograd.Function):
    """GRU of torch over time.

    Input's share (B, T, n, 3h), W (B, 3h, h), b (B, h) -> last hidden state (B, n, h).

    r, z = sigmoid(x + W h) of the first two thirds, new = tanh(x + r (W h + b)) of the last, h =
    new + z (h - new). Backward, the weight's gradient is one product over all steps, where autograd
    would add up one for each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        saved: list[Tensor] = []
        h = x.new_zeros(x.shape[0], x.shape[2], weight.shape[2])
        for step in x.unbind(1):
            reset_x, update_x, new_x = step.chunk(3, dim=-1)
            reset_h, update_h, new_h = torch.bmm(h, weight.transpose(1, 2)).chunk(3, dim=-1)
            new_h = new_h + bias.unsqueeze(1)
            reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
            new = torch.tanh(torch.addcmul(new_x, reset, new_h))
            saved += [h, reset, update, new, new_h]
            h = torch.lerp(new, h, update)
        ctx.save_for_backward(weight, *saved)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, *saved = ctx.saved_tensors
        (grad,) = grads
        inputs: list[Tensor] = []
        products: list[Tensor] = []
        for t in reversed(range(0, len(saved), 5)):
            h, reset, update, new, new_h = saved[t : t + 5]
            grad_new = grad * (1.0 - update) * (1.0 - new * new)
            grad_update = grad * (h - new) * update * (1.0 - update)
            grad_reset = grad_new * new_h * reset * (1.0 - reset)
            inputs.append(torch.cat((grad_reset, grad_update, grad_new), dim=-1))
            products.append(torch.cat((grad_reset, grad_update, grad_new * reset), dim=-1))
            grad = grad * update + torch.bmm(products[-1], weight)
        product = torch.stack(products[::-1], dim=1).flatten(1, 2)
        hidden = torch.stack(saved[::5], dim=1).flatten(1, 2)
        grad_weight = torch.bmm(product.transpose(1, 2), hidden)
        return (
            torch.stack(inputs[::-1], dim=1),
            grad_weight,
            product[..., -weight.shape[2] :].sum(1),
        )


def _input_share(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, n, T, i), W (B, o, i), b (B, o) -> (B, T, n, o).

    What a recurrence owes to its inputs, in one product.
    """
    runs, examples, length, _ = x.shape
    return _affine(x.transpose(1, 2).flatten(1, 2), weight, bias).view(runs, length, examples, -1)


def _gru(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """The GRU of torch; every bias that can rides along with the input's share."""
    w_x, w_h, b_x, b_h = (
        values[prefix + f"{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = w_h.shape[2]
    bias = b_x + nn.functional.pad(b_h[:, : 2 * hidden], (0, hidden))
    out: Tensor = _GatedRecurrence.apply(_input_share(x, w_x, bias), w_h, b_h[:, 2 * hidden :])
    return out


class _Recurrence(torch.autograd.Function):
    """h = tanh(x + W h) over time: input's share (B, T, n, h), W (B, h, h) -> last state (B, n, h).

    Backward as in `_GatedRecurrence`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        states = [x[:, 0].tanh()]
        for step in x[:, 1:].unbind(1):
            states.append(torch.baddbmm(step, states[-1], weight.transpose(1, 2)).tanh_())
        ctx.save_for_backward(weight, *states)
        return states[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        weight, *states = ctx.saved_tensors
        (grad,) = grads
        inputs: list[Tensor] = []
        for h in reversed(states):
            inputs.append(torch.addcmul(grad, grad * h, h, value=-1.0))
            grad = torch.bmm(inputs[-1], weight)
        grad_x = torch.stack(inputs[::-1], dim=1)
        before = torch.stack([torch.zeros_like(grad), *states[:-1]], dim=1)
        return grad_x, torch.bmm(grad_x.flatten(1, 2).transpose(1, 2), before.flatten(1, 2))


class _LongShortTermMemory(torch.autograd.Function):
    """LSTM of torch over time.

    Input's share (B, T, n, 4h), W (B, 4h, h) -> last hidden state (B, n, h).

    i, f, o = sigmoid(x + W h), g = tanh(x + W h), the memory c = f c + i g, h = o tanh(c). Backward
    as in `_GatedRecurrence`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        saved: list[Tensor] = []
        h = c = x.new_zeros(x.shape[0], x.shape[2], weight.shape[2])
        for step in x.unbind(1):
            i, f, g, o = torch.baddbmm(step, h, weight.transpose(1, 2)).chunk(4, dim=-1)
            i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
            new = torch.addcmul(f * c, i, g)
            seen = torch.tanh(new)
            saved += [h, c, i, f, g, o, seen]
            h, c = o * seen, new
        ctx.save_for_backward(weight, *saved)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        weight, *saved = ctx.saved_tensors
        (grad,) = grads
        grad_c = torch.zeros_like(grad)
        inputs: list[Tensor] = []
        for t in reversed(range(0, len(saved), 7)):
            _, c, i, f, g, o, seen = saved[t : t + 7]
            grad_o = grad * seen * o * (1.0 - o)
            grad_c = grad_c + grad * o * (1.0 - seen * seen)
            grad_i, grad_f = grad_c * g * i * (1.0 - i), grad_c * c * f * (1.0 - f)
            inputs.append(torch.cat((grad_i, grad_f, grad_c * i * (1.0 - g * g), grad_o), dim=-1))
            grad, grad_c = torch.bmm(inputs[-1], weight), grad_c * f
        grad_x = torch.stack(inputs[::-1], dim=1)
        hidden = torch.stack(saved[::7], dim=1).flatten(1, 2)
        return grad_x, torch.bmm(grad_x.flatten(1, 2).transpose(1, 2), hidden)


def _recurrence(
    function: type[torch.autograd.Function],
    module: nn.Module,
    values: Values,
    prefix: str,
    x: Tensor,
) -> Tensor:
    """A recurrence of torch whose biases both ride along with the input's share."""
    w_x, w_h, b_x, b_h = (
        values[prefix + f"{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    out: Tensor = function.apply(_input_share(x, w_x, b_x + b_h), w_h)
    return out


def _dropout(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    assert isinstance(module, Dropout)
    return module.masked(x, values[prefix + "seed"], values[prefix + "calls"])


def _any_leading(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    out: Tensor = module(x)
    return out


def _folded(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    """A module that treats every example alone and has no parameters: runs beside examples."""
    out: Tensor = module(x.flatten(0, 1))
    return out.view(*x.shape[:2], *out.shape[1:])


def _sequential(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    for (
        name,
        child,
    ) in module._modules.items():  # named_children() would leave out what is there twice
        assert child is not None
        x = stacked_forward(child, values, x, f"{prefix}{name}.")
    return x


def _residual(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    return x + _sequential(module, values, prefix, x)


def _pair(module: nn.Module, values: Values, prefix: str, x: Tensor) -> Tensor:
    assert isinstance(module, Pair)
    student = stacked_forward(module.student, values, x, f"{prefix}student.")
    return torch.stack(
        (student, stacked_forward(module.teacher, values, x, f"{prefix}teacher.")), dim=-1
    )


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
    """Each run by itself.

    Unbinding gathers the gradients of all rows once, indexing would do so for each row.
    """
    params = {name: values[prefix + name].unbind(0) for name, _ in module.named_parameters()}
    buffers = {name: values[prefix + name] for name, _ in module.named_buffers()}
    outputs = []
    for row in range(len(x)):
        own = {name: rows[row] for name, rows in params.items()} | {
            name: b[row] for name, b in buffers.items()
        }
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
    GRU: _gru,
    LSTM: functools.partial(_recurrence, _LongShortTermMemory),
    Recurrent: functools.partial(_recurrence, _Recurrence),
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
        values: name -> (B, *shape) of every parameter and buffer, names as in the outermost module;
            of what it holds twice, all names.
        x: (B, n, ...) inputs of each run.
        prefix: of this module's names within `values`.

    Returns:
        (B, n, ...) outputs.
    """
    return STACKED.get(type(module), _row_by_row)(module, values, prefix, x)
