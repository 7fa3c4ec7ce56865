"""The recurrences of torch for B runs at once, each run with its own weights.

All of them first multiply the inputs of all steps by the input weights, in one product. The loop
over time then holds only what depends on the state. Backward, the gradient of the state's weights
is one product over all steps, where autograd would add up one product for each step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lr_gym.tasks.affine import affine

__all__ = ["gru", "lstm", "recurrent"]


class _GRU(torch.autograd.Function):
    """GRU (Cho et al. 2014, as torch has it) over time.

    x: (B, T, n, 3h) the inputs times their weights; weight: W (B, 3h, h); bias: b (B, h). Returns
    the last hidden state (B, n, h).

    With x and W h in thirds for r, z and new: r, z = sigmoid(x + W h), new = tanh(x + r (W h + b)),
    h = new + z (h - new).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        saved: list[Tensor] = []
        h = x.new_zeros(x.shape[0], x.shape[2], weight.shape[2])
        for step in x.unbind(1):
            reset_x, update_x, new_x = step.chunk(3, dim=-1)
            reset_h, update_h, new_h = torch.bmm(h, weight.transpose(1, 2)).chunk(3, dim=-1)
            new_h = new_h + bias.unsqueeze(1)
            reset = torch.sigmoid(reset_x + reset_h)
            update = torch.sigmoid(update_x + update_h)
            new = torch.tanh(torch.addcmul(new_x, reset, new_h))
            saved += [h, reset, update, new, new_h]
            h = torch.lerp(new, h, update)
        ctx.save_for_backward(weight, *saved)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, *saved = ctx.saved_tensors
        (grad,) = grads
        inputs: list[Tensor] = []  # gradient of x of each step, last step first
        products: list[Tensor] = []  # gradient of W h + (0, 0, b) of each step
        for t in reversed(range(0, len(saved), 5)):
            h, reset, update, new, new_h = saved[t : t + 5]
            grad_new = grad * (1.0 - update) * (1.0 - new * new)
            grad_update = grad * (h - new) * update * (1.0 - update)
            grad_reset = grad_new * new_h * reset * (1.0 - reset)
            inputs.append(torch.cat((grad_reset, grad_update, grad_new), dim=-1))
            products.append(torch.cat((grad_reset, grad_update, grad_new * reset), dim=-1))
            grad = grad * update + torch.bmm(products[-1], weight)
        grad_x = torch.stack(inputs[::-1], dim=1)
        product = torch.stack(products[::-1], dim=1).flatten(1, 2)
        hidden = torch.stack(saved[::5], dim=1).flatten(1, 2)
        grad_weight = torch.bmm(product.transpose(1, 2), hidden)
        grad_bias = product[..., -weight.shape[2] :].sum(1)
        return grad_x, grad_weight, grad_bias


class _Recurrent(torch.autograd.Function):
    """h = tanh(x + W h) over time (Elman 1990).

    x: (B, T, n, h) the inputs times their weights; weight: W (B, h, h). Returns the last hidden
    state (B, n, h).
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
        inputs: list[Tensor] = []  # gradient of x of each step, last step first
        for h in reversed(states):
            inputs.append(torch.addcmul(grad, grad * h, h, value=-1.0))
            grad = torch.bmm(inputs[-1], weight)
        grad_x = torch.stack(inputs[::-1], dim=1)
        before = torch.stack([torch.zeros_like(grad), *states[:-1]], dim=1)
        return grad_x, torch.bmm(grad_x.flatten(1, 2).transpose(1, 2), before.flatten(1, 2))


class _LSTM(torch.autograd.Function):
    """LSTM (Hochreiter & Schmidhuber 1997, as torch has it) over time.

    x: (B, T, n, 4h) the inputs times their weights; weight: W (B, 4h, h). Returns the last hidden
    state (B, n, h).

    With x and W h in quarters for i, f, g and o: i, f, o = sigmoid(x + W h), g = tanh(x + W h), the
    memory c = f c + i g, h = o tanh(c).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        saved: list[Tensor] = []
        h = x.new_zeros(x.shape[0], x.shape[2], weight.shape[2])
        c = h
        for step in x.unbind(1):
            i, f, g, o = torch.baddbmm(step, h, weight.transpose(1, 2)).chunk(4, dim=-1)
            i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
            new = torch.addcmul(f * c, i, g)
            shown = torch.tanh(new)
            saved += [h, c, i, f, g, o, shown]
            h = o * shown
            c = new
        ctx.save_for_backward(weight, *saved)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        weight, *saved = ctx.saved_tensors
        (grad,) = grads
        grad_c = torch.zeros_like(grad)
        inputs: list[Tensor] = []  # gradient of x of each step, last step first
        for t in reversed(range(0, len(saved), 7)):
            _, c, i, f, g, o, shown = saved[t : t + 7]
            grad_o = grad * shown * o * (1.0 - o)
            grad_c = grad_c + grad * o * (1.0 - shown * shown)
            grad_i = grad_c * g * i * (1.0 - i)
            grad_f = grad_c * c * f * (1.0 - f)
            inputs.append(torch.cat((grad_i, grad_f, grad_c * i * (1.0 - g * g), grad_o), dim=-1))
            grad = torch.bmm(inputs[-1], weight)
            grad_c = grad_c * f
        grad_x = torch.stack(inputs[::-1], dim=1)
        hidden = torch.stack(saved[::7], dim=1).flatten(1, 2)
        return grad_x, torch.bmm(grad_x.flatten(1, 2).transpose(1, 2), hidden)


def _times_weights(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, n, T, i), W (B, o, i), b (B, o) -> (B, T, n, o), all steps in one product."""
    runs, examples, length, _ = x.shape
    return affine(x.transpose(1, 2).flatten(1, 2), weight, bias).view(runs, length, examples, -1)


def gru(x: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> Tensor:
    """A GRU as torch has it.

    The biases of the state, except the last third, which is multiplied by r, are added to the
    inputs.

    Args:
        x: (B, n, T, i) inputs.
        w_x: (B, 3h, i) weights of the inputs.
        w_h: (B, 3h, h) weights of the state.
        b_x: (B, 3h) biases of the inputs.
        b_h: (B, 3h) biases of the state.

    Returns:
        (B, n, h), the last hidden state.
    """
    hidden = w_h.shape[2]
    bias = b_x + nn.functional.pad(b_h[:, : 2 * hidden], (0, hidden))
    out: Tensor = _GRU.apply(_times_weights(x, w_x, bias), w_h, b_h[:, 2 * hidden :])
    return out


def lstm(x: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> Tensor:
    """An LSTM as torch has it; arguments as `gru`, with 4h in place of 3h."""
    out: Tensor = _LSTM.apply(_times_weights(x, w_x, b_x + b_h), w_h)
    return out


def recurrent(x: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> Tensor:
    """A recurrence with tanh as torch has it; arguments as `gru`, with h in place of 3h."""
    out: Tensor = _Recurrent.apply(_times_weights(x, w_x, b_x + b_h), w_h)
    return out
