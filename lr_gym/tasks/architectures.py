"""The architectures of the tasks. All of them are sequences of modules."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lr_gym.tasks.modules import GRU, Dropout, MeanOverTime, Position, Residual, SelfAttention

__all__ = [
    "autoencoder",
    "char_transformer",
    "cnn1d",
    "cnn2d",
    "dropout_mlp",
    "gru",
    "mlp",
    "normed_mlp",
    "transformer",
]


def mlp(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected network, `widths` from input to output."""
    modules: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        modules += [activation()] * (i > 0) + [nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*modules)


def dropout_mlp(widths: Sequence[int], p: float) -> nn.Sequential:
    """`mlp` with dropout after every hidden activation."""
    modules: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        modules += [nn.ReLU(), Dropout(p)] * (i > 0) + [nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*modules)


def normed_mlp(widths: Sequence[int]) -> nn.Sequential:
    """`mlp` with layer norm before every hidden activation."""
    modules: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        modules += [nn.LayerNorm(fan_in), nn.ReLU()] * (i > 0) + [nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*modules)


def cnn1d(length: int, channels: int, classes: int) -> nn.Sequential:
    """Three convolutions with stride 2 on a series (n, length), as in the CNN of MNIST-1D.

    Their kernels are 5, 3 and 3.
    """
    sizes = [length]
    for kernel in (5, 3, 3):
        sizes.append((sizes[-1] + 2 - kernel) // 2 + 1)
    return nn.Sequential(
        nn.Unflatten(1, (1, length)),
        nn.Conv1d(1, channels, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels * sizes[-1], classes),
    )


def cnn2d(side: int, channels: int, classes: int) -> nn.Sequential:
    """Two 3 x 3 convolutions on pictures (n, side * side).

    Each has batch norm (Ioffe & Szegedy 2015) and max pooling.
    """
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * (side // 4) ** 2, classes),
    )


def gru(hidden: int, classes: int, length: int) -> nn.Sequential:
    """A GRU that reads a series (n, length) number by number; linear readout of its last state."""
    return nn.Sequential(nn.Unflatten(1, (length, 1)), GRU(1, hidden), nn.Linear(hidden, classes))


def _block(width: int, heads: int, causal: bool) -> list[nn.Module]:
    """Pre-norm transformer block (Xiong et al. 2020)."""
    modules = {
        "norm": nn.LayerNorm(width),
        "qkv": nn.Linear(width, 3 * width),  # by this name Muon knows that it is three maps
        "heads": SelfAttention(heads, causal),
        "out": nn.Linear(width, width),
    }
    attention = Residual(OrderedDict(modules))
    mlp = Residual(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    )
    return [attention, mlp]


def transformer(
    length: int, patch: int, width: int, heads: int, blocks: int, classes: int
) -> nn.Sequential:
    """Encoder over patches of a series (n, length), mean over positions, linear readout."""
    return nn.Sequential(
        nn.Unflatten(1, (length // patch, patch)),
        nn.Linear(patch, width),
        Position(length // patch, width),
        *(module for _ in range(blocks) for module in _block(width, heads, causal=False)),
        nn.LayerNorm(width),
        MeanOverTime(),
        nn.Linear(width, classes),
    )


def char_transformer(
    symbols: int, length: int, width: int, heads: int, blocks: int
) -> nn.Sequential:
    """Causal language model: symbols (n, length) -> logits of the next (n, length, symbols)."""
    return nn.Sequential(
        nn.Embedding(symbols, width),
        Position(length, width),
        *(module for _ in range(blocks) for module in _block(width, heads, causal=True)),
        nn.LayerNorm(width),
        nn.Linear(width, symbols),
    )


def autoencoder(inputs: int, hidden: int, code: int) -> nn.Sequential:
    """Fully connected network of widths inputs, hidden, code, hidden, inputs, with tanh."""
    return mlp((inputs, hidden, code, hidden, inputs), nn.Tanh)
