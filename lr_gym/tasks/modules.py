"""Modules that torch lacks in the form that tasks need.

Each maps one tensor to one tensor, so that nn.Sequential can hold it. Modules without parameters
work on any leading dimensions, so that the same line serves one model and B of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lr_gym.rng import Stream, uniform

__all__ = [
    "GRU",
    "LSTM",
    "Dropout",
    "MeanOverTime",
    "Pair",
    "Position",
    "Pretrained",
    "Recurrent",
    "Residual",
    "SelfAttention",
]


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose masks are a function of run seed, layer and call.

    The seed and the number of calls are buffers, so the masks of a run are the same alone, in a
    batch of runs, and in a plain training loop. `initial_buffers` sets the seed.
    """

    seed: Tensor  # () int64; names the run and the layer
    calls: Tensor  # () int64

    def __init__(self, p: float) -> None:
        """Make the layer.

        Args:
            p: probability of zeroing an element, in [0, 1).
        """
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p must be in [0, 1); got {p!r}")
        self.p = p
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Mask a minibatch of one model."""
        return self.masked(x, self.seed.view(1), self.calls)

    def masked(self, x: Tensor, seed: Tensor, calls: Tensor) -> Tensor:
        """Mask a minibatch of each of B models.

        Args:
            x: any shape whose elements can be cut into B equal pieces.
            seed: (B,) int64.
            calls: (B,) or (), int64; counted up in place.

        Returns:
            The masked x.
        """
        if not self.training or self.p == 0.0:
            return x
        draw = uniform(seed, Stream.DROPOUT, calls.view(-1), x.numel() // len(seed), dtype=x.dtype)
        calls.add_(1)
        return x * (draw.view_as(x) >= self.p) / (1.0 - self.p)


class _LastState(nn.RNNBase):
    """Makes a recurrence of torch return its last hidden state only."""

    def __init__(self, inputs: int, hidden: int) -> None:
        """Make one layer of `hidden` units, h, that reads `inputs` numbers at a time, i."""
        super().__init__(inputs, hidden, batch_first=True)  # type: ignore[call-arg, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(n, T, i) -> (n, h)."""
        last: Tensor = super().forward(x)[0][:, -1]
        return last


class GRU(_LastState, nn.GRU):  # type: ignore[misc]
    """One-layer GRU (Cho et al. 2014): (n, T, i) -> the last hidden state (n, h)."""


class LSTM(_LastState, nn.LSTM):  # type: ignore[misc]
    """One-layer LSTM (Hochreiter & Schmidhuber 1997): (n, T, i) -> the last hidden state (n, h)."""


class Recurrent(_LastState, nn.RNN):  # type: ignore[misc]
    """One-layer recurrence with tanh (Elman 1990): (n, T, i) -> the last hidden state (n, h)."""


class Residual(nn.Sequential):
    """x + f(x), where f is the modules in sequence."""

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        branch = x
        for module in self:
            branch = module(branch)
        return x + branch


class SelfAttention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017) without parameters of its own.

    Queries, keys and values (..., T, 3 d) -> (..., T, d).
    """

    def __init__(self, heads: int, causal: bool = False) -> None:
        """Make the layer.

        Args:
            heads: number of heads, which share the d numbers evenly.
            causal: whether no position sees a later one.
        """
        super().__init__()
        self.heads = heads
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each head."""
        each = x.view(-1, x.shape[-2], 3, self.heads, x.shape[-1] // (3 * self.heads))
        queries, keys, values = each.permute(2, 0, 3, 1, 4)  # (..., heads, T, d / heads) each
        out = nn.functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=self.causal
        )
        return out.transpose(1, 2).reshape(*x.shape[:-1], -1)


class Position(nn.Module):
    """Add a learned vector to each position: (n, T, d) -> (n, T, d)."""

    def __init__(self, length: int, width: int) -> None:
        """Make vectors for `length` positions, T, of `width` numbers, d."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, width))

    def forward(self, x: Tensor) -> Tensor:
        """Add the vectors."""
        return x + self.weight


class MeanOverTime(nn.Module):
    """Mean of all positions: (..., T, d) -> (..., d)."""

    def forward(self, x: Tensor) -> Tensor:
        """Take the mean."""
        return x.mean(-2)


class Pair(nn.Module):
    """A student, which is trained, beside a teacher, which is not.

    (n, i) -> (n, o, 2), the student's outputs first. The teacher's weights are buffers, which
    `initial_buffers` draws from the run's seed, so each run has a problem of its own.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        """Turn the teacher's parameters into buffers."""
        super().__init__()
        self.student = student
        self.teacher = teacher
        for module in teacher.modules():
            for name, param in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, param.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Apply both to the same inputs."""
        return torch.stack((self.student(x), self.teacher(x)), dim=-1)


class Pretrained(nn.Module):
    """A module whose runs all start from its own weights; subclasses define the forward pass."""
