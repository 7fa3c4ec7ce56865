"""Every optimizer at its defaults on five problems.

Its loss must fall to a tenth, or to at most twice that of the best of four Adams.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from optimizer_contract import ROWS
from torch import Tensor
from torch.nn import functional

from lr_gym.optim import EnhancedSGD

STEPS = 1000
ADAM_LRS = (1e-4, 1e-3, 1e-2, 1e-1)


class Problem(NamedTuple):
    """Full-batch loss of a list of parameters, and where they start."""

    start: list[Tensor]
    loss: Callable[[list[Tensor]], Tensor]


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _logistic() -> Problem:
    x = 4 * _normal(256, 10, seed=0)
    y = (x @ _normal(10, seed=1) + 4 * _normal(256, seed=2) > 0).float()  # some labels are wrong
    return Problem(
        [torch.zeros(10), torch.zeros(())],
        lambda p: functional.binary_cross_entropy_with_logits(x @ p[0] + p[1], y),
    )


def _classifier() -> Problem:
    x = 3 * _normal(256, 8, seed=0)
    y = (x @ _normal(8, 3, seed=1)).argmax(1)
    start = [
        0.3 * _normal(8, 32, seed=2),
        torch.zeros(32),
        0.2 * _normal(32, 3, seed=3),
        torch.zeros(3),
    ]
    return Problem(
        start, lambda p: functional.cross_entropy((x @ p[0] + p[1]).relu() @ p[2] + p[3], y)
    )


def _regression() -> Problem:
    x = _normal(256, 8, seed=0)
    y = torch.sin(x @ _normal(8, seed=1) / 2)
    start = [
        0.3 * _normal(8, 32, seed=2),
        torch.zeros(32),
        0.2 * _normal(32, 1, seed=3),
        torch.zeros(1),
    ]
    return Problem(
        start, lambda p: functional.mse_loss(((x @ p[0] + p[1]).tanh() @ p[2] + p[3]).squeeze(1), y)
    )


def _rosenbrock() -> Problem:
    return Problem(
        [torch.tensor([-1.2, 1.0])],
        lambda p: (1 - p[0][0]) ** 2 + 100 * (p[0][1] - p[0][0] ** 2) ** 2,
    )


def _quadratic() -> Problem:
    curvature = torch.logspace(-1, 1, 20)  # condition number 100
    return Problem([0.2 * _normal(20, seed=0)], lambda p: (curvature * p[0].square()).sum() / 2)


PROBLEMS = {
    "logistic": _logistic,
    "classifier": _classifier,
    "regression": _regression,
    "rosenbrock": _rosenbrock,
    "quadratic": _quadratic,
}


def final_loss(problem: Problem, make: Callable[..., torch.optim.Optimizer]) -> tuple[float, float]:
    """Loss before and after training; a divergence is infinite."""
    params = [p.clone().requires_grad_() for p in problem.start]
    optimizer = make(params)
    first = float(problem.loss(params).detach())
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = problem.loss(params)
        loss.backward()  # type: ignore[no-untyped-call]
        value = loss.detach()
        if isinstance(optimizer, EnhancedSGD):
            optimizer.step(closure=lambda value=value: value)  # type: ignore[misc]
        else:
            optimizer.step()
    last = float(problem.loss(params).detach())
    return first, last if last == last else float("inf")


@functools.cache
def best_adam(name: str) -> float:
    return min(
        final_loss(PROBLEMS[name](), functools.partial(torch.optim.Adam, lr=lr))[1]
        for lr in ADAM_LRS
    )


@pytest.mark.parametrize("optimizer", [name for name, row in ROWS.items() if not row.variant])
def test_converges(optimizer: str) -> None:
    failed = {}
    for name, problem in PROBLEMS.items():
        first, last = final_loss(problem(), ROWS[optimizer].make)
        if not (last <= first / 10 or last <= 2 * best_adam(name)):
            failed[name] = (first, last, best_adam(name))
    assert set(failed) <= {"rosenbrock"}, failed  # at most one problem; its cause is shown below


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        ("adam", 3e-2),
        ("agreement_std", 3e-2),
        ("upgd", 3e-2),
        ("garo", 1e-3),
        ("enhanced_sgd", 5e-4),
    ],
)
def test_rosenbrock_fails_at_the_defaults_only_for_their_lr(optimizer: str, lr: float) -> None:
    # curvature about 1500 at the start: SGD at 0.01 diverges, Adam at 0.001 travels at most 1 in
    # 1000 steps
    first, last = final_loss(_rosenbrock(), functools.partial(ROWS[optimizer].make, lr=lr))
    assert last <= first / 10
