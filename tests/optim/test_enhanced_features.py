"""Every feature of EnhancedSGD against a slow twin of its own."""

from __future__ import annotations

import copy
import math
import statistics

import numpy as np
import pytest
import torch
from enhanced_runs import ALL_OFF, LOSSES, losses_of
from optimizer_contract import descend, make_params
from torch import nn

from lr_gym.optim import EnhancedSGD
from lr_gym.optim.contrib.gradient_entropy import (
    BINS,
    MAX_ENTROPY,
    gradient_samples,
    histogram_entropy,
)
from lr_gym.optim.contrib.running_moments import (
    clip_factor,
    corrected_for_spike,
    observe,
    running_moments,
)


def test_clipping_lets_an_outlier_through_at_its_limit_only() -> None:
    norms = [1.0 + 0.1 * (-1) ** i for i in range(20)] + [50.0, 1.0]
    moments, factors = running_moments((), torch.device("cpu")), []
    for norm in norms:
        factor, moments = clip_factor(moments, torch.tensor(norm), 0.01)
        factors.append(float(factor))
    limit = statistics.mean(norms[:20]) + 2 * statistics.pstdev(norms[:20])
    assert factors[:20] == [1.0] * 20
    assert factors[20] == pytest.approx(limit / 50, rel=1e-4)
    assert factors[21] == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_clipping_of_a_bad_norm_is_none(bad: float) -> None:
    moments = running_moments((), torch.device("cpu"))
    factor, after = clip_factor(moments, torch.tensor(bad), 0.1)
    assert factor == 1.0
    assert all(x.isfinite() for x in after)


def test_running_moments_are_plain_then_exponential() -> None:
    values = torch.randn(60, generator=torch.Generator().manual_seed(0)).tolist()
    moments = running_moments((), torch.device("cpu"))
    weights: list[float] = []
    for i, value in enumerate(values):
        moments = observe(moments, torch.tensor(value), 0.1)
        w = max(0.1, 1 / (i + 1))
        weights = [x * (1 - w) for x in weights] + [w]
        mean = sum(x * v for x, v in zip(weights, values, strict=False))
        assert float(moments.mean) == pytest.approx(mean, abs=1e-5)
        variance = sum(x * (v - mean) ** 2 for x, v in zip(weights, values, strict=False))
        assert float(moments.variance) == pytest.approx(variance, abs=1e-5)
    assert observe(moments, torch.tensor(math.nan), 0.1) == moments


def test_spike_lowers_lr_and_momentum_and_they_recover() -> None:
    params = make_params()
    optimizer = EnhancedSGD(params, lr=0.02, **{**ALL_OFF, "loss_correction_factor": 0.5})
    losses_of(optimizer, params, LOSSES[:20])
    assert optimizer.metrics()["lr"] == pytest.approx(0.02)
    losses_of(optimizer, params, [5.0])
    assert (optimizer.metrics()["lr"], optimizer.metrics()["momentum"]) == pytest.approx(
        (0.01, 0.45)
    )
    losses_of(optimizer, params, [math.nan])
    assert optimizer.metrics()["lr"] == pytest.approx(0.005)
    losses_of(optimizer, params, [1.0])
    assert optimizer.metrics()["lr"] == pytest.approx(0.02 * (0.25 + 0.05 * 0.75))
    losses_of(optimizer, params, [1.0] * 100)
    assert optimizer.metrics()["lr"] == pytest.approx(0.02, rel=0.01)


def test_ordinary_noise_is_no_spike_and_the_correction_has_a_floor() -> None:
    generator = torch.Generator().manual_seed(0)
    correction, moments = torch.ones(()), running_moments((), torch.device("cpu"))
    options = {"factor": 0.5, "rate": 0.1}
    spikes = 0
    for _ in range(500):
        loss = 1 + 0.2 * torch.rand((), generator=generator)
        before = correction
        correction, moments = corrected_for_spike(correction, moments, loss, **options)
        spikes += int(correction < before)
    assert spikes <= 5
    for _ in range(50):
        correction, moments = corrected_for_spike(
            correction, moments, torch.tensor(math.inf), **options
        )
    assert float(correction) == pytest.approx(0.1)


def test_entropy_equals_that_of_numpys_histogram_and_is_scale_free() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack(
        [
            torch.randn(4096, generator=generator),
            torch.rand(4096, generator=generator),
            torch.ones(4096),
        ]
    )
    for scale in (1.0, 1e-9):
        found = histogram_entropy(rows * scale)
        for row, value in zip(rows, found, strict=True):
            scaled = (row / row.square().mean().sqrt()).clamp(-4, 3.9999)
            p = np.histogram(scaled.numpy(), bins=BINS, range=(-4, 4))[0] / len(row)
            assert float(value) == pytest.approx(
                -sum(x * math.log(x) for x in p if x > 0), abs=0.02
            )
    assert float(found[0]) == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e) + math.log(4), abs=0.03
    )
    assert found[2] == 0.0
    assert histogram_entropy(torch.zeros(1, 9)) == 0.0
    assert histogram_entropy(torch.full((1, 9), math.nan)).isnan()
    assert found.max() < MAX_ENTROPY


@pytest.mark.parametrize("count", [1, 3, 255, 256, 257, 1000, 100_000])
def test_samples_come_from_the_whole_tensor(count: int) -> None:
    sample = gradient_samples([torch.arange(count)])[0]
    assert sample.shape == (256,)
    assert len(set(sample.tolist())) == min(count, 256)
    assert sample.max() >= 0.49 * count - 1


def test_retention_keeps_gradients_of_high_entropy_only() -> None:
    param = torch.zeros(512, requires_grad=True)
    optimizer = EnhancedSGD([param], **{**ALL_OFF, "gradient_buffer_size": 4})
    spread = torch.linspace(-1, 1, 512)
    peaked = torch.zeros(512)
    peaked[::128] = 1.0
    for grad in (peaked, peaked):
        param.grad = grad.clone()
        optimizer.step()
    assert optimizer.state[param]["kept_mass"] == 0.0
    param.grad = spread.clone()
    optimizer.step()
    kept = optimizer.state[param]["kept"] / optimizer.state[param]["kept_mass"]
    torch.testing.assert_close(kept, spread)
    before, buffer = param.detach().clone(), optimizer.state[param]["momentum_buffer"].clone()
    param.grad = peaked.clone()
    optimizer.step()
    expected = before - 0.01 * (0.9 * buffer + 0.9 * peaked + 0.1 * spread)
    torch.testing.assert_close(param.detach(), expected)


def test_lookahead_equals_its_definition() -> None:
    params, others = make_params(), make_params()
    descend(
        EnhancedSGD(params, lr=0.05, **{**ALL_OFF, "lookahead_k": 4, "lookahead_alpha": 0.3}),
        params,
        12,
    )
    inner = torch.optim.SGD(others, lr=0.05, momentum=0.9)
    slow = [p.detach().clone() for p in others]
    for start in (0, 4, 8):
        descend(inner, others, 4, start=start)
        with torch.no_grad():
            slow = [s + 0.3 * (p - s) for s, p in zip(slow, others, strict=True)]
            for p, s in zip(others, slow, strict=True):
                p.copy_(s)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_centering_and_entropy_and_variance_adjustment() -> None:
    param = torch.zeros(2, 3, requires_grad=True)
    param.grad = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    EnhancedSGD([param], lr=1.0, **{**ALL_OFF, "gradient_centering": True}).step()
    torch.testing.assert_close(
        -param.detach(), torch.tensor([[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]])
    )

    param = torch.zeros(256, requires_grad=True)
    optimizer = EnhancedSGD(
        [param], lr=1.0, momentum=0.0, **{**ALL_OFF, "entropy_adjustment": True}
    )
    param.grad = torch.linspace(-1, 1, 256)
    optimizer.step()
    torch.testing.assert_close(param.detach(), -torch.linspace(-1, 1, 256))
    before = param.detach().clone()
    param.grad = 2 * torch.linspace(
        -1, 1, 256
    )  # the same entropy, 4 times the variance: lr * 4^(-1/4)
    optimizer.step()
    torch.testing.assert_close(
        param.detach() - before,
        -2 * torch.linspace(-1, 1, 256) / math.sqrt(2),
        rtol=1e-4,
        atol=1e-5,
    )
    before, peaked = param.detach().clone(), torch.zeros(256)
    peaked[0] = math.sqrt(256 * 2.5 / 3)
    first, second = (
        float(histogram_entropy(gradient_samples([g])))
        for g in (torch.linspace(-1, 1, 256), peaked)
    )
    param.grad = peaked.clone()
    optimizer.step()
    moved = float((before - param.detach())[0] / peaked[0]) / optimizer.metrics()["lr"]
    assert moved == pytest.approx(1 + (second - first) / (2 * MAX_ENTROPY), rel=1e-4)


def test_noise_is_relative_to_the_gradient() -> None:
    for scale in (1.0, 1e-4):
        param = torch.zeros(10_000, requires_grad=True)
        param.grad = torch.full((10_000,), scale)
        EnhancedSGD([param], lr=1.0, **{**ALL_OFF, "noise_scale": 0.2}).step()
        assert float((-param.detach() - scale).norm() / param.grad.norm()) == pytest.approx(
            0.2, rel=0.05
        )


def test_bayesian_init_draws_from_the_documented_prior() -> None:
    model = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300))
    state = torch.get_rng_state()
    EnhancedSGD(model.parameters(), bayesian_init=True)
    assert torch.equal(torch.get_rng_state(), state)
    weight, bias, scale, _ = model.parameters()
    assert float(weight.detach().std()) == pytest.approx(400**-0.5, rel=0.02)
    assert float(weight.detach().mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(bias.detach().std()) == pytest.approx(0.01, rel=0.15)
    assert float(scale.detach().mean()) == pytest.approx(1.0, abs=2e-3)
    again = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300))
    EnhancedSGD(again.parameters(), bayesian_init=True, seed=1)
    assert not torch.equal(next(again.parameters()), weight)


def test_bayesian_init_leaves_frozen_parameters_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    EnhancedSGD(model.parameters(), bayesian_init=True)
    same = [bool((value == before[name]).all()) for name, value in model.state_dict().items()]
    assert same == [True, True, False, False]
