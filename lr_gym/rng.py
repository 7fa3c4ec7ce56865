"""Counter-based random numbers: every number is a function of (row seed, stream, step, index).

There is no generator whose state has to be kept. A run in a batch therefore draws the numbers that
it would draw alone, a resumed run draws what the uninterrupted one would have drawn, and the
environment and the optimizer draw the same noise.

The function is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), used as a counter-based generator in
the sense of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): output i is
`mix(key + i * GOLDEN)`. SplitMix64 computes modulo 2^64, and so does torch, since the product of
two int64 tensors wraps around.
"""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

__all__ = ["Stream", "integers", "normal", "random_bits", "run_seeds", "uniform"]


def _signed(word: int) -> int:
    """Return the int64 that has the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


class Stream(enum.IntEnum):
    """Independent uses of randomness. Never renumber them: saved results depend on the numbers."""

    EPISODE = 0
    INIT = 1
    BATCH = 2
    NOISE = 3
    INITIAL_LR = 4
    MASK = 5
    DROPOUT = 6
    TASK = 7
    STREAM = 8
    CHANGE = 9
    LABEL = 10
    MIXTURE = 11
    MONITOR = 12
    HELD_OUT_TASK = 13


def _shift_right(x: Tensor, n: int) -> Tensor:
    """Shift int64 to the right and fill with zeros, where torch's `>>` fills with the sign."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def random_bits(
    seed: Tensor, stream: Stream, step: Tensor | int, count: int, start: int = 0
) -> Tensor:
    """Draw 64 random bits for each seed and index.

    Args:
        seed: int64 tensor of any shape S.
        stream: The use of the numbers.
        step: An int64 that broadcasts to S; equal steps draw equal numbers.
        count: The number of draws for each seed.
        start: The index of the first draw; a long draw can so be made in pieces.

    Returns:
        int64 tensor of shape S + (count,).
    """
    key = _mix(_mix(seed + _GOLDEN) ^ _mix(torch.full_like(seed, int(stream) + 1)))
    step = torch.full_like(seed, step) if isinstance(step, int) else step
    key = _mix(key + step * _GOLDEN)
    # Without "| 0" torch.compile would merge the arange and the product with GOLDEN into one signed
    # index, and the overflow of a signed index is undefined in C++.
    index = torch.arange(
        start + 1, start + count + 1, dtype=torch.int64, device=seed.device
    ).bitwise_or(0)
    return _mix(key.unsqueeze(-1) + index * _GOLDEN)


def uniform(
    seed: Tensor,
    stream: Stream,
    step: Tensor | int,
    count: int,
    *,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw uniform numbers in [0, 1), multiples of the spacing of `dtype` just below 1.

    The arguments are those of `random_bits`; `dtype` is the type of the result.
    """
    # The number of binary digits that the dtype holds, 24 for float32; so many bits are used.
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))
    bits = random_bits(seed, stream, step, count, start)
    return _shift_right(bits, 64 - digits).to(dtype) * 2.0**-digits


def integers(seed: Tensor, stream: Stream, step: Tensor | int, count: int, high: int) -> Tensor:
    """Draw integers in [0, high) by multiplying and shifting (Lemire 2019).

    The arguments are those of `random_bits`; `high` must be less than 2^31.
    """
    return _shift_right(_shift_right(random_bits(seed, stream, step, count), 32) * high, 32)


def normal(
    seed: Tensor,
    stream: Stream,
    step: Tensor | int,
    count: int,
    *,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal numbers, by Box-Muller on the two halves of each 64-bit word.

    The arguments are those of `random_bits`; `dtype` is the type of the result.
    """
    bits = random_bits(seed, stream, step, count, start)
    wide = torch.promote_types(dtype, torch.float32)  # 16 bits cannot hold 32 random ones
    # "+ 1" keeps the logarithm finite.
    radius = ((_shift_right(bits, 32) + 1).to(wide) * 2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFFFF).to(wide) * (2.0 * math.pi * 2.0**-32)
    return (radius * angle.cos_()).to(dtype)


def run_seeds(row_seed: Tensor, episode: Tensor | int) -> Tensor:
    """Return the seed of each row's episode, which identifies one inner training.

    Args:
        row_seed: int64 tensor of any shape.
        episode: The number of the episode, an int64 that broadcasts to that shape.

    Returns:
        int64 tensor of the same shape, not negative.
    """
    return _shift_right(random_bits(row_seed, Stream.EPISODE, episode, 1).squeeze(-1), 1)
