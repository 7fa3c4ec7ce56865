"""EnhancedSGD.

Every feature against a slow twin of its own, and every switch against the run without it.
"""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from optimizer_contract import assert_same, descend, make_params
from torch import Tensor, nn

from lr_gym.optim import EnhancedSGD, QLearningController
from lr_gym.optim.contrib.gradient_entropy import (
    BINS,
    MAX_ENTROPY,
    gradient_samples,
    histogram_entropy,
)
from lr_gym.optim.contrib.lr_q_control import EDGES, LearnedScales, default_controller
from lr_gym.optim.contrib.running_moments import (
    clip_factor,
    corrected_for_spike,
    observe,
    running_moments,
)

ALL_OFF: dict[str, Any] = {
    "q_learning": False,
    "entropy_adjustment": False,
    "gradient_buffer_size": 0,
    "lookahead_k": 0,
    "gradient_clipping": False,
    "loss_correction_factor": 1.0,
}


def losses_of(
    optimizer: EnhancedSGD, params: list[Tensor], losses: list[float], start: int = 0
) -> None:
    """Steps on the gradients of `descend`, each with the loss of a closure.

    Gradient 25 is an outlier.
    """
    for step, loss in enumerate(losses, start):
        for p in params:
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            p.grad = (p.detach() - 1 + 0.1 * noise) * (20 if step == 25 else 1)
        optimizer.step(closure=lambda loss=loss: torch.tensor(loss), current_epoch=step // 5)  # type: ignore[misc]


@pytest.mark.parametrize("momentum", [0.0, 0.8, 0.995])
def test_with_everything_off_it_is_torch_sgd(momentum: float) -> None:
    params, others = make_params(), make_params()
    for group, make in ((params, EnhancedSGD), (others, torch.optim.SGD)):
        options = ALL_OFF if make is EnhancedSGD else {}
        descend(make(group, lr=0.05, momentum=momentum, weight_decay=0.1, **options), group, 15)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


SWITCHES: dict[str, dict[str, Any]] = {
    "q_learning": {"q_learning": True, "decision_interval": 2},
    "entropy_adjustment": {"entropy_adjustment": True},
    "gradient_buffer_size": {"gradient_buffer_size": 3},
    "lookahead": {"lookahead_k": 3},
    "gradient_clipping": {"gradient_clipping": True},
    "loss_correction_factor": {"loss_correction_factor": 0.5},
    "noise_scale": {"noise_scale": 0.1},
    "gradient_centering": {"gradient_centering": True},
    "bayesian_init": {"bayesian_init": True},
    "weight_decay": {"weight_decay": 0.1},
}
FINER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adaptive_momentum": (SWITCHES["q_learning"], {"adaptive_momentum": False}),
    "decision_interval": (SWITCHES["q_learning"], {"decision_interval": 3}),
    "entropy_weight": ({"q_learning": True, "decision_interval": 1}, {"entropy_weight": 50.0}),
    "seed": (SWITCHES["q_learning"], {"seed": 1}),
    "smoothing_factor": (SWITCHES["entropy_adjustment"], {"smoothing_factor": 0.9}),
    "lookahead_alpha": (SWITCHES["lookahead"], {"lookahead_alpha": 0.1}),
    "buffer_size": (SWITCHES["gradient_buffer_size"], {"gradient_buffer_size": 9}),
    "factor": (SWITCHES["loss_correction_factor"], {"loss_correction_factor": 0.9}),
}
LOSSES = [1.0 + 0.01 * (-1) ** i for i in range(20)] + [5.0] + [1.0] * 20


@pytest.mark.parametrize(
    ("base", "change"),
    [(ALL_OFF, change) for change in SWITCHES.values()]
    + [({**ALL_OFF, **b}, c) for b, c in FINER.values()],
    ids=[*SWITCHES, *FINER],
)
def test_every_switch_changes_the_run(base: dict[str, Any], change: dict[str, Any]) -> None:
    results = []
    for options in (base, {**base, **change}):
        params = make_params()
        optimizer = EnhancedSGD(params, lr=0.02, **options)
        losses_of(optimizer, params, LOSSES)
        losses_of(optimizer, params, [1.0], start=1000)
        results.append(params)
    assert any(not torch.equal(a, b) for a, b in zip(*results, strict=True))


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


def test_controller_is_rewarded_for_the_loss_and_the_entropy() -> None:
    table, scales = default_controller(), LearnedScales(2)
    flat = torch.tensor([2.0, 2.0])
    options = {"lossless": False, "entropy_weight": 0.5, "epoch": None}
    scales.decide(table, 1.0, flat, flat, **options)  # type: ignore[arg-type]
    states, actions = scales._states.clone(), scales._chosen.clone()
    scales.decide(table, 0.8, torch.tensor([2.0, 3.0]), flat, **options)  # type: ignore[arg-type]
    for row, extra in ((0, 0.0), (1, 0.5 / MAX_ENTROPY)):
        assert float(table.q[states[row], actions[row]]) == pytest.approx(
            0.1 * (0.2 + extra), rel=1e-4
        )
    assert table.visits.sum() == 2
    scales.decide(table, math.nan, flat, flat, **options)  # type: ignore[arg-type]
    assert scales.rewards[-1] == pytest.approx(-1.0 - 0.25 / MAX_ENTROPY, rel=1e-3)
    scales.decide(table, 0.5, flat, flat, **{**options, "lossless": True})  # type: ignore[arg-type]
    assert math.isnan(scales.rewards[-1])
    assert table.q.isfinite().all()


def test_actions_multiply_or_add_and_stay_bounded() -> None:
    for mix, lr, gap in ((1.0, math.exp(0.2), math.exp(-0.2)), (0.0, 1.05, 0.95)):
        table = QLearningController(list(EDGES.values()), [[1.0, 1.0]], initial_mix_prob=mix)
        scales = LearnedScales(1)
        scales.decide(
            table, 1.0, torch.ones(1), torch.ones(1), lossless=False, entropy_weight=0.0, epoch=0
        )
        assert (float(scales.lr), float(scales.gap)) == pytest.approx((lr, gap), rel=1e-6)
        for _ in range(300):
            scales.decide(
                table,
                1.0,
                torch.ones(1),
                torch.ones(1),
                lossless=False,
                entropy_weight=0.0,
                epoch=0,
            )
        assert (float(scales.lr), float(scales.gap)) == pytest.approx((10.0, 0.2))


def test_features_fall_into_the_right_bins() -> None:
    scales = LearnedScales(3)
    scales.decisions, scales._loss, scales._log_variance = 20, 1.0, torch.tensor([0.0, 0.0, 0.0])
    features = scales.features(
        0.9, torch.tensor([0.1, 0.6, 0.9]) * MAX_ENTROPY, torch.tensor([-1.0, 0.0, 1.0])
    )
    expected = torch.tensor(
        [[-0.1, -1.0, 0.1, 0.0, 1.322], [-0.1, 0.0, 0.6, 0.5, 1.322], [-0.1, 1.0, 0.9, 1.0, 1.322]]
    )
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
    states = default_controller().state_index(features)
    assert states.tolist() == [
        0 * 81 + 0 * 27 + 0 * 9 + 0 * 3 + 1,
        0 + 27 + 9 + 3 + 1,
        0 + 54 + 18 + 6 + 1,
    ]


def test_learned_momentum_and_lr_reach_the_update() -> None:
    table = QLearningController(list(EDGES.values()), [[1.0, 1.0]], initial_mix_prob=1.0)
    param = torch.zeros(4, requires_grad=True)
    optimizer = EnhancedSGD(
        [param], lr=0.1, q_controller=table, decision_interval=2, **{**ALL_OFF, "q_learning": True}
    )
    expected, buffer = torch.zeros(4), torch.zeros(4)
    for lr, momentum in ((0.1, 0.9), (0.1 * math.exp(0.2), 1 - 0.1 * math.exp(-0.2))):
        param.grad = torch.ones(4)
        optimizer.step(closure=lambda: 1.0)
        buffer = momentum * buffer + 1
        expected = expected - lr * buffer
    torch.testing.assert_close(param.detach(), expected)
    assert optimizer.metrics()["lr"] == pytest.approx(0.1 * math.exp(0.2))
    assert optimizer.metrics()["momentum"] == pytest.approx(1 - 0.1 * math.exp(-0.2))


def test_plain_step_learns_from_the_gradients_norm_and_epochs_reach_the_controller() -> None:
    params = make_params()
    optimizer = EnhancedSGD(params, lr=0.05, decision_interval=2)
    descend(optimizer, params, 12)
    assert optimizer.q_controller.visits.sum() > 0
    assert optimizer.q_controller.q.abs().max() > 0
    losses_of(optimizer, params, [1.0, 0.9] * 10)
    assert optimizer.q_controller.epoch > 0
    assert optimizer.q_controller.mix_prob < optimizer.q_controller.initial_mix_prob


def test_saved_table_is_taken_up_by_another_run(tmp_path: Any) -> None:
    params = make_params()
    first = EnhancedSGD(params, decision_interval=1)
    losses_of(first, params, [1.0 / (i + 1) for i in range(30)])
    first.q_controller.save(tmp_path / "q.safetensors")
    second = EnhancedSGD(
        make_params(), q_controller=QLearningController.load(tmp_path / "q.safetensors")
    )
    assert torch.equal(second.q_controller.q, first.q_controller.q)
    assert second.q_controller.q.abs().max() > 0


def test_closure_never_triggers_backward() -> None:
    params = make_params()
    optimizer = EnhancedSGD(params)
    loss = torch.stack([p.square().sum() for p in params]).sum()
    loss.backward(retain_graph=True)
    grads = [copy.deepcopy(p.grad) for p in params]
    assert optimizer.step(closure=lambda: loss) is loss
    assert_same([g for g in grads if g is not None], [p.grad for p in params if p.grad is not None])


@pytest.mark.parametrize(
    "options",
    [
        {"smoothing_factor": 0.0},
        {"decision_interval": 0},
        {"lookahead_alpha": 2.0},
        {"loss_correction_factor": 1.5},
        {"momentum": 1.0},
        {"noise_scale": -1.0},
    ],
)
def test_border(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must lie in"):
        EnhancedSGD(make_params(), **options)
