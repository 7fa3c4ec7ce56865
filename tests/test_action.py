"""What an action does: offset 0 is the base optimizer to the bit, and nothing leaves its bounds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lr_gym.control.action import (
    ACTIONS,
    CONTROLLED,
    FINISH,
    action_mode,
    action_table,
    check_controls,
    decode,
    move,
)
from lr_gym.types import Hyperparams

GRANULARITIES = [("lr",), ("lr", "momentum"), ("lr", "noise"), CONTROLLED]
BASE = Hyperparams(
    lr=torch.tensor([[1e-4, 3e-3], [0.1, 1.0]]),
    momentum=torch.tensor([[0.9, 0.0], [0.5, 0.99]]),
    noise=torch.zeros(2, 2),
    weight_decay=torch.full((2, 2), 0.01),
)


@pytest.mark.parametrize("controls", GRANULARITIES)
def test_offset_zero_is_exactly_the_base(controls):
    hyper = decode(controls, torch.zeros(2, 2, len(controls)), BASE)
    assert torch.equal(hyper.lr, BASE.lr)
    assert torch.equal(hyper.noise, BASE.noise)
    assert torch.equal(hyper.weight_decay, BASE.weight_decay)
    if "momentum" not in controls:
        assert torch.equal(hyper.momentum, BASE.momentum)


def test_offset_zero_leaves_every_momentum_to_the_bit():
    momentum = torch.arange(0, 999, dtype=torch.float32).unsqueeze(0) / 1000
    base = Hyperparams(
        torch.ones_like(momentum), momentum, torch.zeros_like(momentum), torch.zeros_like(momentum)
    )
    assert torch.equal(
        decode(CONTROLLED, torch.zeros(1, 999, len(CONTROLLED)), base).momentum, momentum
    )


@pytest.mark.parametrize("offset", [-6.9, -1.0, -0.2, 0.3, 1.0, 6.9])
def test_decode_equals_its_formulas(offset):
    hyper = decode(CONTROLLED, torch.full((2, 2, len(CONTROLLED)), offset), BASE)
    for row, layer in itertools.product(range(2), range(2)):
        lr, momentum = BASE.lr[row, layer].item(), BASE.momentum[row, layer].item()
        assert hyper.lr[row, layer].item() == pytest.approx(lr * math.exp(offset), rel=1e-5)
        expected = min(0.999, max(0.0, 1 - (1 - momentum) * math.exp(-offset)))
        assert hyper.momentum[row, layer].item() == pytest.approx(expected, abs=1e-6)
        assert hyper.noise[row, layer].item() == pytest.approx(
            min(1.0, max(0.0, 0.2 * offset)), abs=1e-6
        )


def test_each_control_moves_only_itself():
    for i, name in enumerate(CONTROLLED):
        offset = torch.zeros(2, 2, len(CONTROLLED))
        offset[..., i] = 1.0
        hyper = decode(CONTROLLED, offset, BASE)._asdict()
        changed = [
            key
            for key, value in hyper.items()
            if not torch.allclose(value, getattr(BASE, key), atol=1e-7)
        ]
        assert changed == ([] if name == FINISH else [name])


@pytest.mark.parametrize("name", ACTIONS)
def test_move_equals_a_loop_over_numbers(name):
    mode = ACTIONS[name]
    actions = (
        torch.rand(60, 2, 3, 1, generator=torch.Generator().manual_seed(0)) * 4 - 1
    )  # some above 1, drifting up
    offset, twin = torch.zeros(2, 3, 1), [0.0] * 6
    for action in actions:
        offset = move(mode, ("lr",), offset, action)
        for i, a in enumerate(action.flatten().tolist()):
            a = min(1.0, max(-1.0, a))
            twin[i] = a * mode.step + (twin[i] if mode.recursive else 0.0)
            twin[i] = min(mode.bound, max(-mode.bound, twin[i]))
        torch.testing.assert_close(offset.flatten(), torch.tensor(twin), atol=1e-4, rtol=1e-5)
    assert max(twin) == pytest.approx(mode.bound)


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("extreme", [1.0, -1.0, 1e30, -1e30])
def test_offset_never_leaves_its_bound(name, extreme):
    mode, offset = ACTIONS[name], torch.zeros(1, 1, 1)
    for _ in range(100):
        offset = move(mode, ("lr",), offset, torch.full((1, 1, 1), extreme))
    assert offset.abs().item() == pytest.approx(mode.bound)
    assert math.copysign(1, offset.item()) == math.copysign(1, extreme)


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_broken_action_counts_as_zero(name, broken):
    mode, offset = ACTIONS[name], torch.full((1, 1, 1), 0.5)
    zero, got = (
        move(mode, ("lr",), offset, torch.full((1, 1, 1), action)) for action in (0.0, broken)
    )
    assert torch.equal(got, zero)
    assert got.item() == (0.5 if mode.recursive else 0.0)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_offset_of_finish_is_the_last_action(name):
    offset = torch.zeros(1, 1, 2)
    for action in (0.7, -0.4, 2.0, 0.0):
        offset = move(ACTIONS[name], ("lr", FINISH), offset, torch.full((1, 1, 2), action))
        assert offset[0, 0, 1].item() == pytest.approx(min(action, 1.0))


def test_move_keeps_the_dtype_of_the_offset():
    offset = torch.zeros(1, 1, 1, dtype=torch.float64)
    assert move(ACTIONS["recursive"], ("lr",), offset, torch.ones(1, 1, 1)).dtype == torch.float64


@pytest.mark.parametrize("controls", GRANULARITIES)
def test_action_table_is_a_grid_within_bounds_that_holds_zero(controls):
    table = action_table(controls)
    levels = [{"lr": 7, FINISH: 2}.get(name, 3) for name in controls]
    assert table.shape == (math.prod(levels), len(controls))
    assert table.abs().max() <= 1
    assert len(table.unique(dim=0)) == len(table)
    assert (table == 0).all(1).sum() == 1
    factors = sorted({round(math.exp(a * math.log(2)), 5) for a in table[:, 0].tolist()})
    assert factors == pytest.approx([0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0], rel=1e-5)


@pytest.mark.parametrize(
    "controls",
    [
        (),
        ("momentum",),
        ("momentum", "lr"),
        ("lr", "lr"),
        ("noise", "momentum", "lr"),
        ("lr", "beta2"),
        "lr",
    ],
)
def test_wrong_controls_are_refused(controls):
    with pytest.raises(ValueError, match="control"):
        check_controls(controls)


def test_unknown_action_lists_the_valid_ones():
    with pytest.raises(ValueError, match="action") as error:
        action_mode("absolute")
    assert all(name in str(error.value) for name in ACTIONS)
