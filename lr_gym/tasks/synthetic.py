"""Problems with a known optimum, each run with its own.

What makes a run's problem its own (a rotation, a teacher) is a buffer of its model, drawn from the
run's seed like its initial weights. Inputs are Gaussian noise, the same for all runs.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from lr_gym.rng import Stream, normal
from lr_gym.tasks.task import Data, Split

__all__ = ["Quadratic", "Rosenbrock", "gaussian"]


class Quadratic(nn.Module):
    """Noisy quadratic (Schaul et al. 2013).

    Loss of example x is 1/2 |y|^2 + noise x.y, y = sqrt(h) Q (theta - theta*).

    h falls geometrically from 1 to 1/condition; Q is the Householder reflection I - 2 v v^T /
    |v|^2, so that no axis is an eigenvector. theta* and v are each run's own. The mean over x of
    mean 0 is 1/2 |y|^2, its optimum 0.
    """

    optimum: Tensor
    direction: Tensor

    def __init__(self, size: int, condition: float, noise: float) -> None:
        """`size`: of theta; `condition`: of the Hessian; `noise`.

        The gradient's std over sqrt(h).
        """
        super().__init__()
        self.noise, self.condition = noise, condition
        self.theta = nn.Parameter(torch.zeros(size))
        self.register_buffer("optimum", torch.zeros(size))
        self.register_buffer("direction", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(n, size) -> (n,) losses."""
        return self.losses(self.theta, self.optimum, self.direction, x)

    def losses(self, theta: Tensor, optimum: Tensor, direction: Tensor, x: Tensor) -> Tensor:
        """(..., d) three times, and x (..., n, d) -> (..., n)."""
        gap, size = theta - optimum, theta.shape[-1]
        along = (direction * gap).sum(-1, keepdim=True) / direction.square().sum(-1, keepdim=True)
        root = self.condition ** (
            -0.5 * torch.linspace(0, 1, size, dtype=theta.dtype, device=theta.device)
        )
        y = root * (gap - 2 * along * direction)
        return 0.5 * y.square().sum(-1, keepdim=True) + self.noise * (x * y.unsqueeze(-2)).sum(-1)


class Rosenbrock(nn.Module):
    """Rosenbrock (1960), chained: sum_i (1 - t_i)^2 + 100 (t_{i+1} - t_i^2)^2 + noise x.(t - 1).

    Optimum 0 at t = 1.
    """

    def __init__(self, size: int, noise: float) -> None:
        """`size`: of t; `noise`: std of the gradient's."""
        super().__init__()
        self.noise = noise
        self.theta = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """(n, size) -> (n,) losses."""
        return self.losses(self.theta, x)

    def losses(self, theta: Tensor, x: Tensor) -> Tensor:
        """(..., d), x (..., n, d) -> (..., n)."""
        head, tail = theta[..., :-1], theta[..., 1:]
        value = ((1 - head).square() + 100 * (tail - head.square()).square()).sum(-1, keepdim=True)
        return value + self.noise * (x * (theta - 1).unsqueeze(-2)).sum(-1)


@functools.cache
def gaussian(size: int, gradient: int = 4096, others: int = 512, seed: int = 0) -> Data:
    """Standard normal inputs (n, size), no targets.

    Reward, selection and test inputs come in pairs x, -x: mean 0.
    """
    splits: list[Split] = []
    start = 0
    for count in (gradient, others // 2, others // 2, others // 2):
        x = normal(torch.tensor([seed]), Stream.TASK, 1, count * size, start=start)[0].view(
            count, size
        )
        x = x if not splits else torch.stack((x, -x), dim=1).flatten(0, 1)
        splits.append(Split(x, torch.zeros(len(x))))
        start += count * size
    return Data(*splits)
