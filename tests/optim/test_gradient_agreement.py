"""Gradient Agreement against a plain-Python twin."""

from __future__ import annotations

import statistics

import pytest
import torch
from optimizer_contract import assert_same, descend, make_params

from lr_gym.optim import GradientAgreementOptimizer, log_metrics
from lr_gym.optim.contrib.agreement_scores import SCORES, population_std


def scores_by_hand(score: str, history: list[list[float]], beta: float = 0.9) -> float:
    """Score of the last of several gradients of one tensor, in Python floats."""
    last = history[-1]
    if score != "snr":
        std = statistics.pstdev(last)
        rms = (sum(x * x for x in last) / len(last)) ** 0.5
        return 1 / (1 + (std if score == "std" else std / rms))
    weights = [(1 - beta) * beta ** (len(history) - 1 - i) for i in range(len(history))]
    mean = [
        sum(w * g[j] for w, g in zip(weights, history, strict=True)) / sum(weights)
        for j in range(len(last))
    ]
    power = sum(w * sum(x * x for x in g) for w, g in zip(weights, history, strict=True)) / sum(
        weights
    )
    return sum(x * x for x in mean) / power


@pytest.mark.parametrize("score", SCORES)
def test_equals_sgd_on_gradients_scaled_by_hand(score: str) -> None:
    param = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimizer = GradientAgreementOptimizer(torch.optim.SGD([param], lr=1.0), score)
    history: list[list[float]] = []
    for step in range(6):
        grad = (
            torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) + 0.5
        )
        history.append(grad.tolist())
        before, param.grad = param.detach().clone(), grad.clone()
        optimizer.step()
        torch.testing.assert_close(before - param.detach(), grad * scores_by_hand(score, history))


@pytest.mark.parametrize("score", ["std", "std_over_rms"])
def test_equal_elements_agree_fully_however_large(score: str) -> None:
    param = torch.zeros(1000, requires_grad=True)
    param.grad = torch.full((1000,), 1000.1)
    optimizer = GradientAgreementOptimizer(torch.optim.SGD([param], lr=1.0), score)
    optimizer.step()
    assert optimizer.metrics()["agreement/mean"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("count", [1, 2, 2**16, 2**16 + 1, 200_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_std_in_blocks_equals_float64(dtype: torch.dtype, count: int, mean: float) -> None:
    drift = torch.linspace(-1, 1, count)  # so that the blocks differ in mean too
    grad = (torch.randn(count, generator=torch.Generator().manual_seed(0)) + drift + mean).to(dtype)
    expected = grad.double().std(correction=0)
    torch.testing.assert_close(population_std(grad).double(), expected, rtol=1e-4, atol=2e-7 * mean)


def test_std_of_a_transposed_gradient() -> None:
    grad = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)).t()
    torch.testing.assert_close(population_std(grad), grad.std(correction=0))


@pytest.mark.parametrize("score", SCORES)
def test_restoring_takes_the_same_steps(score: str) -> None:
    results = []
    for restore in (False, True):
        params = make_params()
        descend(
            GradientAgreementOptimizer(torch.optim.Adam(params), score, restore_grad=restore),
            params,
            9,
        )
        results.append(params)
    assert_same(*results)


@pytest.mark.parametrize("score", SCORES)
def test_only_std_depends_on_the_scale_of_the_gradient(score: str) -> None:
    found = []
    for scale in (1.0, 1e-3):
        param = torch.zeros(50, requires_grad=True)
        optimizer = GradientAgreementOptimizer(torch.optim.SGD([param], lr=1.0), score)
        for step in range(3):
            param.grad = scale * torch.randn(50, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        found.append(optimizer.metrics()["agreement/mean"])
    assert (found[0] == pytest.approx(found[1], rel=1e-4)) == (score != "std")


def test_snr_of_independent_gradients_tends_to_its_theoretical_value() -> None:
    param = torch.zeros(20_000, requires_grad=True)
    optimizer = GradientAgreementOptimizer(torch.optim.SGD([param], lr=0.0), "snr", beta=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        param.grad = torch.randn(20_000, generator=generator)
        optimizer.step()
    assert optimizer.metrics()["agreement/mean"] == pytest.approx(0.1 / 1.9, rel=0.05)


def test_shares_groups_and_state_with_the_base() -> None:
    params = make_params()
    base = torch.optim.Adam(params, lr=0.1)
    optimizer = GradientAgreementOptimizer(base)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is base.param_groups
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state


def test_checkpoints_pass_to_and_from_the_bare_base() -> None:
    params = make_params()
    adam = torch.optim.Adam(params, lr=0.1)
    descend(adam, params, 3)
    wrapped = GradientAgreementOptimizer(torch.optim.Adam(params), "snr")
    wrapped.load_state_dict(adam.state_dict())
    descend(wrapped, params, 3)
    torch.optim.Adam(params).load_state_dict(wrapped.state_dict())
    assert wrapped.param_groups[0]["lr"] == 0.1
    assert float(wrapped.state[params[0]]["step"]) == 6


def test_wraps_any_first_order_optimizer() -> None:
    for make in (torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW):
        params = make_params()
        before = [p.detach().clone() for p in params]
        descend(GradientAgreementOptimizer(make(params, lr=0.01)), params, 3)
        assert all(not torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_gradient_returns_even_if_the_base_fails() -> None:
    params = make_params()
    base = torch.optim.SGD(params, lr=0.1)
    optimizer = GradientAgreementOptimizer(base, restore_grad=True)
    descend(optimizer, params, 1)
    grads = [p.grad.clone() for p in params if p.grad is not None]
    base.step = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        optimizer.step()
    assert_same([p.grad for p in params if p.grad is not None], grads)


def test_border() -> None:
    params = make_params()
    with pytest.raises(TypeError, match="LBFGS"):
        GradientAgreementOptimizer(torch.optim.LBFGS(params))
    with pytest.raises(TypeError, match="Optimizer, got list"):
        GradientAgreementOptimizer(params)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'std', 'std_over_rms', 'snr'; got 'variance'"):
        GradientAgreementOptimizer(torch.optim.SGD(params), "variance")
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\); got 1.0"):
        GradientAgreementOptimizer(torch.optim.SGD(params), "snr", beta=1.0)


def test_log_metrics_calls_every_so_many_steps_until_removed() -> None:
    params = make_params()
    optimizer = GradientAgreementOptimizer(torch.optim.SGD(params, lr=0.1))
    lines: list[tuple[dict[str, float], int]] = []
    handle = log_metrics(optimizer, lambda metrics, step: lines.append((metrics, step)), every=2)
    descend(optimizer, params, 5)
    handle.remove()
    descend(optimizer, params, 4)
    assert [step for _, step in lines] == [2, 4]
    assert lines[0][0]["lr"] == 0.1
