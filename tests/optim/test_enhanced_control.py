"""EnhancedSGD's Q-learning: rewards, actions, features, and what reaches the update."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from enhanced_runs import ALL_OFF, losses_of
from optimizer_contract import descend, make_params

from lr_gym.optim import EnhancedSGD, QLearningController
from lr_gym.optim.contrib.gradient_entropy import (
    MAX_ENTROPY,
)
from lr_gym.optim.contrib.lr_q_control import EDGES, LearnedScales, default_controller


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
