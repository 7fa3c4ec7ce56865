"""Muon written naively: matrix by matrix, through singular values; AdamW for other tensors."""

from __future__ import annotations

import torch


def iterated(value: torch.Tensor) -> torch.Tensor:
    """A singular value after five steps of Newton and Schulz."""
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    return value


def direction(matrix: torch.Tensor, blocks: int = 1) -> torch.Tensor:
    """Direction of the update of a tensor (rows, ...), each block of its rows by itself."""
    if blocks > 1:
        return torch.cat([direction(block) for block in matrix.chunk(blocks)])
    flat = matrix.flatten(1)
    if flat.numel() == 0:
        return matrix
    left, values, right = torch.linalg.svd(
        flat.double() / max(float(flat.double().norm()), 1e-7), full_matrices=False
    )
    way = left @ torch.diag(iterated(values)) @ right
    return (0.2 * max(flat.shape) ** 0.5 * way).to(matrix.dtype).reshape(matrix.shape)


class NaiveMuon(torch.optim.Optimizer):
    """One parameter group; the last matrix, the readout, is left to AdamW unless `last` is set.

    `blocks` tells how many maps the rows of a parameter hold, where they are more than one.
    """

    def __init__(
        self,
        params,
        lr=0.01,
        weight_decay=0.01,
        maximize=False,
        beta1=0.9,
        last=False,
        blocks=None,
    ):
        super().__init__(
            list(params), {"lr": lr, "weight_decay": weight_decay, "maximize": maximize}
        )
        params = self.param_groups[0]["params"]
        self.blocks = blocks or {}
        matrices = [p for p in params if p.ndim >= 2]
        self.matrices, self.beta1 = matrices if last else matrices[:-1], beta1
        others = [p for p in params if all(p is not matrix for matrix in self.matrices)]
        empty = [torch.zeros(0, requires_grad=True)]
        betas = (beta1, 0.999)
        self.rest = torch.optim.AdamW(
            others or empty, lr, betas, weight_decay=weight_decay, maximize=maximize
        )

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        self.rest.param_groups[0]["lr"] = group["lr"]
        self.rest.step()
        for matrix in self.matrices:
            if matrix.grad is not None:
                old = self.state[matrix].get("m", torch.zeros_like(matrix))
                self.state[matrix]["m"] = old + (1.0 - self.beta1) * (matrix.grad - old)
                way = direction(self.state[matrix]["m"], self.blocks.get(matrix, 1))
                way = way * (-1.0 if group["maximize"] else 1.0)
                matrix.copy_(
                    (1.0 - group["lr"] * group["weight_decay"]) * matrix - group["lr"] * way
                )
