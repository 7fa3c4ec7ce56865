"""Problems with a known optimum, a different problem for each run.

What makes a problem the run's own (a rotation, a teacher) is a buffer of the model, drawn from the
run's seed like the initial weights. The inputs are Gaussian noise, the same for all runs.
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

    The loss of example x is 1/2 |y|^2 + noise x.y, where y = sqrt(h) Q (theta - theta*). The
    curvatures h fall geometrically from 1 to 1/condition. Q is the Householder reflection
    I - 2 v v^T / |v|^2, so that no axis is an eigenvector. theta* and v are each run's own. Where x
    has mean 0, the mean loss is 1/2 |y|^2, and its optimum is 0.
    """

    optimum: Tensor  # (d,) theta*
    direction: Tensor  # (d,) v

    def __init__(self, size: int, condition: float, noise: float) -> None:
        """Make the problem.

        Args:
            size: d, the number of parameters.
            condition: condition number of the Hessian.
            noise: standard deviation of the gradient of y.
        """
        super().__init__()
        self.noise = noise
        self.condition = condition
        self.theta = nn.Parameter(torch.zeros(size))
        self.register_buffer("optimum", torch.zeros(size))
        self.register_buffer("direction", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Losses (n,) of examples (n, d)."""
        return self.losses(self.theta, self.optimum, self.direction, x)

    def losses(self, theta: Tensor, optimum: Tensor, direction: Tensor, x: Tensor) -> Tensor:
        """The loss of each example, for one run or for several at once.

        Args:
            theta: (..., d) parameters.
            optimum: (..., d) theta*.
            direction: (..., d) v.
            x: (..., n, d) examples.

        Returns:
            (..., n).
        """
        gap = theta - optimum
        size = theta.shape[-1]
        along = (direction * gap).sum(-1, keepdim=True) / direction.square().sum(-1, keepdim=True)
        root = self.condition ** (
            -0.5 * torch.linspace(0, 1, size, dtype=theta.dtype, device=theta.device)
        )
        y = root * (gap - 2 * along * direction)
        return 0.5 * y.square().sum(-1, keepdim=True) + self.noise * (x * y.unsqueeze(-2)).sum(-1)


class Rosenbrock(nn.Module):
    """Rosenbrock's valley (1960), chained over the dimensions.

    The loss of example x is sum_i (1 - t_i)^2 + 100 (t_{i+1} - t_i^2)^2 + noise x.(t - 1). The
    optimum is 0, at t = 1.
    """

    def __init__(self, size: int, noise: float) -> None:
        """Make the problem.

        Args:
            size: d, the number of parameters.
            noise: standard deviation of the gradient.
        """
        super().__init__()
        self.noise = noise
        self.theta = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Losses (n,) of examples (n, d)."""
        return self.losses(self.theta, x)

    def losses(self, theta: Tensor, x: Tensor) -> Tensor:
        """The loss of each example, for one run or for several at once.

        Args:
            theta: (..., d) parameters.
            x: (..., n, d) examples.

        Returns:
            (..., n).
        """
        head, tail = theta[..., :-1], theta[..., 1:]
        value = ((1 - head).square() + 100 * (tail - head.square()).square()).sum(-1, keepdim=True)
        return value + self.noise * (x * (theta - 1).unsqueeze(-2)).sum(-1)


@functools.cache
def gaussian(size: int, gradient: int = 4096, others: int = 512, seed: int = 0) -> Data:
    """Standard normal inputs, and targets that are all 0 and unused.

    The inputs of all splits but the first come in pairs x, -x, so that their mean is 0.

    Args:
        size: numbers of an input.
        gradient: examples of the gradient split.
        others: examples of each other split.
        seed: seed of the numbers.
    """
    splits: list[Split] = []
    start = 0
    for count in (gradient, others // 2, others // 2, others // 2):
        numbers = normal(torch.tensor([seed]), Stream.TASK, 1, count * size, start=start)
        x = numbers[0].view(count, size)
        x = x if not splits else torch.stack((x, -x), dim=1).flatten(0, 1)
        splits.append(Split(x, torch.zeros(len(x))))
        start += count * size
    return Data(*splits)
