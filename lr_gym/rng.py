"""Counter-based random numbers: every number is a function of (row seed, stream, step, index).

No generator is carried along, so a row of a batch draws what it would draw alone, a resumed run
draws what the uninterrupted one would have drawn, and environment and optimizer share their noise.
One hash serves all rows.

The hash is SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) used as a counter-based generator in the
sense of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): output i is
`mix(key + i * GOLDEN)`. Torch's int64 multiplication wraps, which is all that 64-bit arithmetic
modulo 2^64 needs.
"""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

__all__ = ["Stream", "integers", "normal", "random_bits", "run_seeds", "uniform"]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


class Stream(enum.IntEnum):
    """Independent uses of randomness; append only, since saved results depend on the numbers."""

    EPISODE = 0
    INIT = 1
    BATCH = 2
    NOISE = 3
    INITIAL_LR = 4
    MASK = 5
    DROPOUT = 6
    TASK = 7


def _shift_right(x: Tensor, n: int) -> Tensor:
    """Logical right shift of int64, whose own `>>` copies the sign."""
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
        seed: int64 of any shape S, one per row.
        stream: what the numbers are for.
        step: int64 broadcastable to S; equal steps draw equal numbers.
        count: how many numbers each seed gets.
        start: index of the first one, so that a long draw can be made in pieces.

    Returns:
        int64 of shape S + (count,).
    """
    key = _mix(_mix(seed + _GOLDEN) ^ _mix(torch.full_like(seed, int(stream) + 1)))
    step = torch.full_like(seed, step) if isinstance(step, int) else step
    key = _mix(key + step * _GOLDEN)
    # "| 0": a compiler would fold a bare arange and GOLDEN into one signed index, whose overflow is
    # undefined in C++.
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
    """Uniform numbers in [0, 1): as many of the top bits as the dtype holds.

    Arguments as `random_bits`.
    """
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))
    bits = random_bits(seed, stream, step, count, start)
    return _shift_right(bits, 64 - digits).to(dtype) * 2.0**-digits


def integers(seed: Tensor, stream: Stream, step: Tensor | int, count: int, high: int) -> Tensor:
    """Integers in [0, high), high below 2^31, by multiply and shift (Lemire 2019).

    Arguments as `random_bits`.
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
    """Standard normal numbers, Box-Muller on the two halves of each 64-bit word.

    Arguments as `random_bits`.
    """
    bits, wide = (
        random_bits(seed, stream, step, count, start),
        torch.promote_types(dtype, torch.float32),
    )
    radius = ((_shift_right(bits, 32) + 1).to(wide) * 2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = (bits & 0xFFFFFFFF).to(wide) * (2.0 * math.pi * 2.0**-32)
    return (radius * angle.cos_()).to(dtype)


def run_seeds(row_seed: Tensor, episode: Tensor | int) -> Tensor:
    """Seed of each row's episode, shape as `row_seed`: what identifies one inner training."""
    return _shift_right(random_bits(row_seed, Stream.EPISODE, episode, 1).squeeze(-1), 1)
