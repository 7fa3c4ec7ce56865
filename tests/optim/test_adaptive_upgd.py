"""AdaptiveUPGD and VGS against plain-Python twins, and the figures of their design note."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from optimizer_contract import assert_same, descend, make_params
from torch import Tensor

from lr_gym.optim import AdaptiveUPGD, VarianceGradientScaler
from lr_gym.optim.contrib.noise import gradient_sizes


class Twin:
    """The rule of the module's docstring, element by element in Python floats."""

    def __init__(self, params: list[Tensor], **options: Any) -> None:
        self.options = options
        self.params = [p.detach().flatten().tolist() for p in params]
        self.m, self.v, self.u = ([[0.0] * len(p) for p in self.params] for _ in range(3))
        self.size, self.step_count = [0.0] * len(params), 0

    def step(self, grads: list[Tensor], draws: list[Tensor]) -> None:
        o = self.options
        self.step_count += 1
        t, lists = self.step_count, [g.flatten().tolist() for g in grads]
        for k, grad in enumerate(lists):
            for i, g in enumerate(grad):
                self.m[k][i] = 0.9 * self.m[k][i] + 0.1 * g
                self.v[k][i] = 0.999 * self.v[k][i] + 0.001 * g * g
                self.u[k][i] = 0.999 * self.u[k][i] - 0.001 * g * self.params[k][i]
        largest = max(abs(u) for row in self.u for u in row)
        squares = [sum(g * g for g in grad) for grad in lists]
        for k, grad in enumerate(lists):
            square, count = (
                (sum(squares), sum(map(len, lists)))
                if o["noise_norm"] == "global"
                else (squares[k], len(grad))
            )
            size = math.sqrt(square / count if o["noise_scale"] == "rms" else square)
            self.size[k] = o["noise_beta"] * self.size[k] + (1 - o["noise_beta"]) * size
            std = max(o["sigma"] * self.size[k] / (1 - o["noise_beta"] ** t), o["min_noise_std"])
            for i, xi in enumerate(draws[k].flatten().tolist()):
                gate = 1 - 1 / (1 + math.exp(-self.u[k][i] / largest))
                m, v = self.m[k][i] / (1 - 0.9**t), self.v[k][i] / (1 - 0.999**t)
                noise = (
                    std * xi / (math.sqrt(v + std**2) + 1e-8)
                    if o["adaptive_noise"]
                    else o["sigma"] * xi
                )
                way = m / (math.sqrt(v) + 1e-8) + noise
                self.params[k][i] = (
                    self.params[k][i] * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * way * gate
                )


BASE = {
    "lr": 0.05,
    "sigma": 0.3,
    "weight_decay": 0.1,
    "adaptive_noise": True,
    "noise_beta": 0.0,
    "min_noise_std": 0.0,
    "noise_scale": "rms",
    "noise_norm": "parameter",
}
VARIANTS = {
    "relative": {},
    "fixed": {"adaptive_noise": False},
    "averaged": {"noise_beta": 0.7},
    "floored": {"min_noise_std": 0.4},
    "norm": {"noise_scale": "norm"},
    "global": {"noise_norm": "global"},
    "global_norm": {"noise_norm": "global", "noise_scale": "norm"},
    "silent": {"sigma": 0.0},
    "silent_floored": {"sigma": 0.0, "min_noise_std": 0.4},
}


def trained(options: dict[str, Any], steps: int = 8) -> tuple[list[Tensor], Twin]:
    params = make_params(torch.float64)
    twin, optimizer = Twin(params, **options), AdaptiveUPGD(params, **options)
    for step in range(steps):
        grads = [
            torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).double()
            for p in params
        ]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        draws = copy.deepcopy(optimizer.noise).normal(grads)
        optimizer.step()
        twin.step(grads, draws)
    return params, twin


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_twin(variant: str) -> None:
    params, twin = trained({**BASE, **VARIANTS[variant]})
    for p, expected in zip(params, twin.params, strict=True):
        torch.testing.assert_close(
            p.detach().flatten(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-7
        )


def test_every_option_changes_the_result() -> None:
    results = {
        name: torch.cat([p.detach().flatten() for p in trained({**BASE, **v})[0]])
        for name, v in VARIANTS.items()
    }
    for extra in (
        {"utility_beta": 0.5},
        {"betas": (0.5, 0.999)},
        {"betas": (0.9, 0.5)},
        {"eps": 0.1},
        {"seed": 1},
    ):
        params = make_params(torch.float64)
        descend(AdaptiveUPGD(params, **{**BASE, **extra}), params, 8)  # type: ignore[arg-type]
        results[str(extra)] = torch.cat([p.detach().flatten() for p in params])
    names = list(results)
    for i, first in enumerate(names):
        for second in names[:i]:
            assert not torch.allclose(results[first], results[second]), (first, second)


def test_global_size_is_that_of_all_groups() -> None:
    params = [torch.zeros(4, requires_grad=True), torch.zeros(12, requires_grad=True)]
    groups = [{"params": [p]} for p in params]
    optimizer = AdaptiveUPGD(groups, sigma=0.1, adaptive_noise=True, noise_norm="global")
    for p, size in zip(params, (3.0, 1.0), strict=True):
        p.grad = torch.full_like(p, size)
    optimizer.step()
    assert [float(optimizer._stds[p]) for p in params] == pytest.approx(
        [0.1 * math.sqrt((36 + 12) / 16)] * 2
    )


def test_useful_weights_move_less() -> None:
    params = [torch.tensor([5.0, 1e-3], requires_grad=True)]
    optimizer = AdaptiveUPGD(params, lr=0.1, sigma=0.0)
    params[0].grad = torch.tensor([-1.0, -1.0])
    optimizer.step()
    moved = params[0].detach() - torch.tensor([5.0, 1e-3])
    torch.testing.assert_close(
        moved, 0.1 * torch.tensor([1 - 1 / (1 + math.exp(-1)), 0.5]), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("utility", [1e-39, 1e-44, 0.0])
def test_utilities_too_small_to_divide_by_stay_finite(utility: float) -> None:
    param = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = AdaptiveUPGD([param], lr=0.1, sigma=0.0)
    param.grad = torch.tensor([utility, 1.0])
    optimizer.step()
    assert param.isfinite().all()


def realised_noise(optimizer: AdaptiveUPGD, grads: list[Tensor]) -> list[Tensor]:
    """Noise that the coming step adds to each gradient: replayed draws times the reported std."""
    draws = copy.deepcopy(optimizer.noise).normal(grads)
    optimizer.step()
    return [
        d * optimizer._stds[p]
        for d, p in zip(draws, optimizer.param_groups[0]["params"], strict=True)
    ]


@pytest.mark.parametrize("scale", [1.0, 0.62, 1e-3])
@pytest.mark.parametrize("n", [100, 10_000])
def test_relative_noise_holds_its_ratio_for_any_scale_and_size(scale: float, n: int) -> None:
    param = torch.zeros(n, requires_grad=True)
    optimizer = AdaptiveUPGD([param], sigma=0.05, adaptive_noise=True)
    for step in range(5):
        param.grad = scale**step * torch.randn(n, generator=torch.Generator().manual_seed(step))
        noise = realised_noise(optimizer, [param.grad])[0]
        std, size = float(optimizer._stds[param]), float(param.grad.norm()) / n**0.5
        assert std / size == pytest.approx(0.05, rel=0.01)
        assert float(noise.norm() / param.grad.norm()) == pytest.approx(
            0.05, rel=4 / math.sqrt(2 * n)
        )


@pytest.mark.parametrize("noise_scale", ["rms", "norm"])
def test_an_element_without_gradient_takes_no_leap(noise_scale: str) -> None:
    param = torch.zeros(1000, requires_grad=True)
    optimizer = AdaptiveUPGD(
        [param], lr=1e-3, sigma=0.05, adaptive_noise=True, noise_scale=noise_scale
    )
    for step in range(5):
        param.grad = torch.randn(1000, generator=torch.Generator().manual_seed(step))
        param.grad[:100] = 0.0
        optimizer.step()
    assert param[:100].detach().abs().max() < 5 * 5e-3


def test_figures_of_the_design_note() -> None:
    # gradient norm 0.20 and noise std 0.005 on one element: 2.5 %; scaled by 0.62, 1 / 0.62 times
    # that, 4 %
    ratios = []
    for factor in (1.0, 0.62):
        param = torch.zeros(1, requires_grad=True)
        param.grad = torch.full((1,), 0.20 * factor)
        optimizer = AdaptiveUPGD([param], sigma=0.005)
        optimizer.step()
        ratios.append(optimizer.metrics()["noise/gradient"])
    assert ratios[0] == pytest.approx(0.025, rel=1e-4)
    assert ratios[1] == pytest.approx(0.0403, rel=1e-2)
    assert ratios[1] / ratios[0] == pytest.approx(1 / 0.62, rel=1e-4)


def test_averaged_size_is_right_from_the_first_step() -> None:
    param = torch.zeros(100, requires_grad=True)
    optimizer = AdaptiveUPGD([param], sigma=0.1, adaptive_noise=True, noise_beta=0.999)
    for _ in range(3):
        param.grad = torch.full((100,), 1e-2)
        optimizer.step()
        assert float(optimizer._stds[param]) == pytest.approx(1e-3, rel=1e-3)


def test_averaged_size_resumes_right_from_a_checkpoint_without_it() -> None:
    param = torch.zeros(100, requires_grad=True)
    optimizer = AdaptiveUPGD([param], sigma=0.1, adaptive_noise=True, noise_beta=0.999)
    optimizer.state[param]["step"] = 500
    param.grad = torch.full((100,), 1e-2)
    optimizer.step()
    assert float(optimizer._stds[param]) == pytest.approx(1e-3, rel=1e-3)


def test_norm_scale_is_the_sources_and_sqrt_n_larger() -> None:
    grads = [torch.full((16,), 3.0), torch.full((100,), 3.0)]
    assert [float(s) for s in gradient_sizes(grads, "rms", "parameter")] == pytest.approx(
        [3.0, 3.0]
    )
    assert [float(s) for s in gradient_sizes(grads, "norm", "parameter")] == pytest.approx(
        [12.0, 30.0]
    )
    assert [float(s) for s in gradient_sizes(grads, "rms", "global")] == pytest.approx([3.0, 3.0])
    assert [float(s) for s in gradient_sizes(grads, "norm", "global")] == pytest.approx(
        [math.hypot(12, 30)] * 2
    )
    bad = [torch.full((4,), math.nan), *grads]
    assert [float(s) for s in gradient_sizes(bad, "rms", "global")] == pytest.approx([3.0] * 3)


@pytest.mark.parametrize(
    "options",
    [
        {"sigma": -1.0},
        {"noise_beta": 1.0},
        {"betas": (1.0, 0.9)},
        {"noise_scale": "l1"},
        {"noise_norm": "layer"},
    ],
)
def test_border(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).replace("betas", r"betas\[0\]")):
        AdaptiveUPGD(make_params(), **options)
    with pytest.raises(ValueError, match="must"):
        AdaptiveUPGD(make_params()).add_param_group({"params": make_params(seed=1), **options})


def vgs_by_hand(
    history: list[list[list[float]]], alpha: float, beta: float, quantile: float
) -> float:
    """Factor after a history of steps, each a list of gradients."""
    average = mass = 0.0
    for grads in history:
        votes = []
        for g in grads:
            mean, size = sum(g) / len(g), sum(map(abs, g)) / len(g)
            votes.append(sum((x - mean) ** 2 for x in g) / len(g) / size**2)
        votes.sort()
        position = quantile * (len(votes) - 1)
        low = int(position)
        high = min(low + 1, len(votes) - 1)
        vote = votes[low] + (position - low) * (votes[high] - votes[low])
        average, mass = beta * average + (1 - beta) * vote, beta * mass + 1 - beta
    return max(1 / (1 + alpha * average / mass), 1e-4)


def test_vgs_equals_its_twin() -> None:
    params = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (5, 9, 30)]
    scaler = VarianceGradientScaler(params, alpha=0.7, beta=0.8, warmup_steps=3)
    history: list[list[list[float]]] = []
    for step in range(7):
        grads = [
            torch.randn(len(p), generator=torch.Generator().manual_seed(step)).double() + 0.3
            for p in params
        ]
        history.append([g.tolist() for g in grads])
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        factor = float(scaler.step())
        expected = vgs_by_hand(history, 0.7, 0.8, 0.9) if step >= 3 else 1.0
        assert factor == pytest.approx(expected, rel=1e-5)
        assert scaler.metrics()["vgs/scaling_factor"] == factor
        for p, g in zip(params, grads, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, g * factor, rtol=1e-6, atol=1e-12)


def test_vgs_state_alpha_floor_and_bad_gradients() -> None:
    def advance(scaler: VarianceGradientScaler, params: list[Tensor], steps: range) -> list[float]:
        factors = []
        for step in steps:
            for p in params:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            factors.append(float(scaler.step()))
        return factors

    params = make_params()
    scaler = VarianceGradientScaler(params, warmup_steps=2)
    advance(scaler, params, range(5))
    resumed = VarianceGradientScaler(params, warmup_steps=2)
    resumed.load_state_dict(scaler.state_dict())
    assert advance(scaler, params, range(5, 9)) == advance(resumed, params, range(5, 9))

    before = scaler.metrics()["vgs/normalized_variance"]
    for p in params:
        p.grad = torch.full_like(p, math.nan)
    scaler.step()
    assert scaler.metrics()["vgs/normalized_variance"] == pytest.approx(before)
    assert advance(VarianceGradientScaler(params, alpha=0.0, warmup_steps=0), params, range(2)) == [
        1.0,
        1.0,
    ]
    assert advance(VarianceGradientScaler(params, alpha=1e9, warmup_steps=0), params, range(1))[
        0
    ] == pytest.approx(1e-4)
    low, high = (
        advance(VarianceGradientScaler(params, warmup_steps=0, quantile=q), params, range(1))[0]
        for q in (1.0, 0.0)
    )
    assert low < high
    with pytest.raises(ValueError, match="quantile must lie"):
        VarianceGradientScaler(params, quantile=1.5)
    with pytest.raises(ValueError, match="non-empty list of tensors"):
        VarianceGradientScaler([])


def test_vgs_cancels_in_relative_but_not_in_fixed_noise() -> None:
    def final(adaptive: bool, vgs: bool) -> float:
        params = make_params()
        optimizer = AdaptiveUPGD(params, sigma=0.05, adaptive_noise=adaptive)
        scaler = VarianceGradientScaler(params, alpha=0.5, warmup_steps=0)
        descend(optimizer, params, 3)
        if vgs:
            scaler.step()
        optimizer.step()
        return optimizer.metrics()["noise/gradient"]

    assert (
        final(True, True)
        == pytest.approx(final(True, False), rel=0.01)
        == pytest.approx(0.05, rel=0.01)
    )
    assert final(False, True) > 1.1 * final(False, False)


def test_same_seed_same_noise_in_any_memory_layout() -> None:
    flat, turned = torch.zeros(3, 4), torch.zeros(4, 3).t()
    first, second = (AdaptiveUPGD(make_params()).noise.normal([x])[0] for x in (flat, turned))
    assert_same([first], [second])
