"""Muon (Jordan 2024), with updates of AdamW's size (Liu et al. 2025, "Muon is scalable ...").

    m_t = beta1 m_{t-1} + (1 - beta1) g_t = U S V'                 (singular value decomposition)
    w_t = (1 - lr * weight_decay) w_{t-1} - lr 0.2 sqrt(max(rows, columns)) U V'

so that a hidden matrix (`layers.hidden_matrices`) moves with all its singular values near 1, and by
about as much as AdamW would move it. One learning rate therefore serves both: all other tensors are
updated by AdamW. A fused matrix holds several maps below one another, such as the queries, keys and
values of attention or the gates of an LSTM (`layers.row_blocks`); each of them is such a matrix.

Ours has neither Nesterov's step ahead nor Jordan's momentum of 0.95, but Adam's beta1, because that
measured best (docs/log.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lr_gym.updates.adam import Adam
from lr_gym.updates.rule import BASE_WIDTH, BaseRule, MomentMasses

__all__ = ["MUON_RMS", "NEWTON_SCHULZ_STEPS", "Muon", "iterated_type", "orthogonal"]

# Root mean square of Muon's update at lr 1 for a matrix of full rank, about that of AdamW's.
MUON_RMS = 0.2
# Jordan's quintic brings the singular values near 1, not to it, in few steps.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# Ratio of a matrix's sides from which iterating on the products of the shorter side is cheaper.
GRAM = 4


@dataclasses.dataclass(frozen=True)
class Muon(Adam):
    """Muon; the formulas are at the top of this file. Of Adam's moments it keeps the first.

    Attributes:
        family: "muon", see `BaseRule`.
        decoupled: True, since Muon shrinks the weights as AdamW does.
        blocks: how many maps the rows of its tensors hold.
    """

    family: ClassVar[str] = "muon"

    decoupled: bool = True
    blocks: int = 1

    def for_tensor(self, hidden: bool, blocks: int = 1) -> BaseRule:
        """Muon for a hidden matrix of so many blocks, AdamW with the same constants otherwise."""
        if hidden:
            return dataclasses.replace(self, blocks=blocks)
        return Adam(self.decoupled, self.momentum, self.beta2, self.eps)

    def unit(self, shape: Sequence[int], *, embedding: bool = False) -> float:
        """RMS-to-RMS norm of the update of a BASE_WIDTH square, over that of a block of rows."""
        rows = max(1, shape[0] // self.blocks)
        columns = max(1, math.prod(shape[1:]))
        norm = math.sqrt(max(rows, columns) * columns / rows)
        return math.sqrt(BASE_WIDTH) / norm

    def direction(self, first: Tensor, second: Tensor | None, masses: MomentMasses) -> Tensor:
        """U V' of each block of the first moment, with the root mean square of MUON_RMS."""
        runs, rows = first.shape[:2]
        blocks = first.reshape(runs * self.blocks, rows // self.blocks, -1)
        size = MUON_RMS * math.sqrt(max(blocks.shape[1:]))
        return (orthogonal(blocks, iterated_type(first)) * size).reshape(first.shape)

    def factor(self, masses: MomentMasses) -> Tensor:
        """1 for every run: U V' does not depend on the size of the first moment."""
        return torch.ones_like(masses.first)


def iterated_type(moment: Tensor) -> torch.dtype:
    """The type of number in which the matrices of a moment are iterated.

    On a GPU bfloat16 takes the place of float32, as in torch.optim.Muon, because its products are
    many times as fast there and the result is needed roughly only. Elsewhere it is the moment's.
    """
    return torch.bfloat16 if moment.is_cuda and moment.dtype == torch.float32 else moment.dtype


def orthogonal(matrices: Tensor, iterated: torch.dtype | None = None) -> Tensor:
    """U V' of each matrix U S V', approximately.

    The singular values of the result lie within 0.68 to 1.2; those that were below 1e-3 of the
    matrix's norm come out lower. This is the iteration of Newton and Schulz as Jordan (2024) tuned
    it.

    Where one side is at least GRAM times the other, as in convolutions, the iteration runs on the
    products of the shorter side. It is the same polynomial for a half to a third of the
    multiplications, and in float32 the same matrix within 1e-3. In half precision it diverges for
    badly conditioned matrices, so there the matrices themselves are iterated: in bfloat16 that is
    the same matrix within 0.1, and within 0.03 where no singular value is below 0.01 of the
    largest.

    Args:
        matrices: (B, rows, *columns), B matrices.
        iterated: type of number of the iteration, None for that of the matrices.

    Returns:
        The same shape and type of number.
    """
    x = matrices.flatten(2)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    x = x.to(iterated or x.dtype)
    full_precision = torch.finfo(x.dtype).bits >= 32
    long = x.shape[2] >= GRAM * x.shape[1]
    x = _by_products(x) if full_precision and long else _by_matrices(x)
    return (x if wide else x.mT).reshape(matrices.shape).to(matrices.dtype)


def _by_matrices(x: Tensor) -> Tensor:
    """Iterate matrices (B, m, n): x <- a x + (b G + c G^2) x with G = x x'."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_products(x: Tensor) -> Tensor:
    """The same on G = x x' (B, m, m) alone.

    A step multiplies x by P = a I + b G + c G^2 from the left, so the result is ... P P x, and the
    next G is P G P. All of these commute, so the product of the P's is gathered and applied once.
    """
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT
    rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # P - a I
    gathered = rest + a * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        half = torch.baddbmm(gram, rest, gram, beta=a)  # P G
        gram = torch.baddbmm(half, half, rest, beta=a)  # P G P
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        gathered = torch.baddbmm(gathered, rest, gathered, beta=a)
    return gathered @ x
