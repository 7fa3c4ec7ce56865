"""The guard's functions: trust, drift, and what happens to offsets outside the known ranges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from guarded import LR, ranges_of

from lr_gym.control.action import ACTIONS
from lr_gym.optim.guard import (
    MARGIN,
    GuardState,
    alien_layers,
    distance_outside,
    lr_in_range,
    next_state,
    restrain,
    trust_in,
)
from lr_gym.optim.guard_message import guard_message
from lr_gym.policies.ranges import ObservedRanges

# Trust


@pytest.mark.parametrize(
    ("value", "trust"),
    [
        (0.1, 1.0),
        (-0.2, 1.0),
        (0.5, 1.0),
        (0.5 + 0.08 * MARGIN, 1 - 0.08**2),
        (0.5 + MARGIN, 0.0),
        (-1.0, 0.0),
        (0.5 + MARGIN / 2, 0.75),
    ],
)
def test_trust_falls_with_the_distance_from_the_range(value, trust):
    ranges = ranges_of([-0.2, -1.0], [0.5, 1.0])
    assert trust_in(ranges, torch.tensor([[[value, 0.9]]])).item() == pytest.approx(trust, abs=1e-5)


def test_the_feature_furthest_out_decides():
    ranges, far = ranges_of([-0.2, -0.2], [0.5, 0.5]), 0.5 + MARGIN / 2
    assert trust_in(ranges, torch.tensor([[[0.51, far], [far, 0.51]]]))[0].tolist() == [0.75, 0.75]


def test_a_masked_feature_is_in_range():
    # A masked feature shows 0, which is in neither range.
    ranges = ranges_of([0.4, -0.9], [0.9, -0.6])
    assert trust_in(ranges, torch.zeros(1, 3, 2)).eq(1.0).all()


def test_a_feature_that_was_constant_has_a_margin_too():
    ranges = ranges_of([-1.0], [-1.0])
    assert trust_in(ranges, torch.tensor([[[-1.0], [0.08 * MARGIN], [1.0]]]))[
        0
    ].tolist() == pytest.approx([1.0, 0.9936, 0.0])


def test_outside_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    bounds = (torch.rand(2, 5, generator=generator) * 2 - 1).sort(0).values
    observation = torch.rand(3, 4, 5, generator=generator) * 2 - 1
    ranges = ObservedRanges(bounds, torch.zeros(2, 1), torch.tensor(LR))
    for b, i, j in itertools.product(range(3), range(4), range(5)):
        value, low, high = (
            observation[b, i, j].item(),
            min(bounds[0, j].item(), 0),
            max(bounds[1, j].item(), 0),
        )
        expected = low - value if value < low else value - high if value > high else 0.0
        assert distance_outside(ranges, observation)[b, i, j].item() == pytest.approx(expected)


def test_the_edges_of_the_lr_range_are_inside():
    ranges = ranges_of([0.0], [0.0], lr=(3e-5, 1e-1))
    lr = torch.tensor([[2e-5, 3e-5, 1e-3, 1e-1, 0.2]], dtype=torch.float64)
    assert lr_in_range(ranges, lr).tolist() == [[False, True, True, True, False]]


# Drift


def watched(values, state=None, alive=True):
    ranges = ranges_of([-0.5], [0.5])
    state = GuardState(torch.ones(1, 1), torch.zeros(1, 1)) if state is None else state
    for value in values:
        state = next_state(ranges, state, torch.tensor([[[value]]]), torch.tensor([[alive]]))
    return state


def test_a_single_spike_costs_one_decision():
    state = watched([1.0])
    assert state.trust.item() == 0.0
    state = watched([0.0], state)
    assert state.trust.item() == pytest.approx(1 - state.drift.item())
    assert state.trust.item() > 0.9


def test_fluctuations_at_the_edge_add_up_to_nothing():
    assert watched([0.0, 0.52, 0.55, 0.0, 0.6] * 50).drift.item() == 0.0


def test_staying_a_little_outside_is_noticed():
    """Half a margin out is three quarters of trust each time, and none in the long run."""
    far = 0.5 + MARGIN / 2
    assert watched([far]).trust.item() == pytest.approx(0.75)
    state = watched([far] * 300)
    assert state.trust.item() == pytest.approx(0.0, abs=1e-3)
    assert watched([0.0] * 60, state).trust.item() == 1.0


def test_a_layer_without_gradient_is_not_judged():
    assert watched([1.0] * 20, alive=False).trust.item() == 1.0


# What happens to the offsets


# Base learning rates: KNOWN is inside LR, the others are a factor of 10 away from its ends.
KNOWN = 1e-2
SMALL = 1e-4
LARGE = 1.0


def restrained(
    trust, lr, before, wanted, action="recursive", offsets=((-2.0,), (2.0,)), alien=False
):
    row = lambda value: torch.full((1, 1, 1), value)
    mode, ranges, alien = ACTIONS[action], ranges_of([0.0], [0.0], offsets), torch.tensor([[alien]])
    return restrain(
        mode, ranges, torch.tensor([[trust]]), torch.tensor([[lr]]), row(before), row(wanted), alien
    ).item()


@pytest.mark.parametrize("lr", [KNOWN, SMALL, LARGE, 0.0])
@pytest.mark.parametrize("action", ["recursive", "residual"])
def test_trusted_offsets_stay_to_the_bit(action, lr):
    generator = torch.Generator().manual_seed(0)
    before, change = torch.rand(2, 50, 3, 1, generator=generator) * 2 - 1
    wanted = before + change if action == "recursive" else change
    ones, ranges = torch.ones(50, 3), ranges_of([0.0], [0.0])
    result = restrain(ACTIONS[action], ranges, ones, torch.full((50, 3), lr), before, wanted)
    assert torch.equal(result, wanted)


def test_a_full_action_is_no_faster_than_itself():
    before = torch.linspace(-1, 1, 99).reshape(1, 99, 1)
    for action, lr in itertools.product((-1.0, 1.0), (KNOWN, SMALL, LARGE)):
        mode = ACTIONS["recursive"]
        wanted = before + action * mode.step
        result = restrain(
            mode,
            ranges_of([0.0], [0.0]),
            torch.ones(1, 99),
            torch.full((1, 99), lr),
            before,
            wanted,
        )
        assert torch.equal(result, wanted)


def test_without_trust_a_known_base_lr_is_faded_to():
    assert restrained(0.0, KNOWN, 1.0, 2.0) == 0.0
    assert restrained(0.5, KNOWN, 1.0, 2.0) == 1.0
    assert restrained(0.0, KNOWN, 0.5, 1.0, "residual") == 0.0


def test_fading_is_no_faster_than_the_policy_may_be():
    step = ACTIONS["recursive"].step
    assert restrained(0.0, KNOWN, 5.0, 4.0, offsets=((-6.0,), (6.0,))) == pytest.approx(5.0 - step)
    offset = 5.0
    for _ in range(4):
        offset = restrained(0.0, KNOWN, offset, offset + 1.0, offsets=((-6.0,), (6.0,)))
    assert offset == 0.0


@pytest.mark.parametrize("action", ["recursive", "residual"])
def test_without_trust_an_unknown_base_lr_keeps_its_last_known_effective_one(action):
    tenfold = np.log(10.0)
    assert restrained(0.0, SMALL, tenfold + 0.5, tenfold + 1.5, action) == pytest.approx(
        tenfold + 0.5
    )
    assert restrained(0.0, SMALL, tenfold + 0.5, tenfold - 0.5, action) == pytest.approx(
        tenfold + 0.5
    )
    assert restrained(0.5, SMALL, tenfold + 0.5, tenfold - 0.5, action) == pytest.approx(tenfold)
    assert restrained(0.0, LARGE, -tenfold - 0.5, -tenfold, action) == pytest.approx(-tenfold - 0.5)


def test_without_trust_the_policy_may_lead_to_the_nearest_known_lr_and_no_further():
    tenfold = np.log(10.0)
    assert restrained(0.0, SMALL, 0.0, 1.0) == 1.0
    assert restrained(0.0, SMALL, 2.0, 3.0) == pytest.approx(tenfold)
    assert restrained(0.0, SMALL, 0.0, -1.0) == 0.0
    assert restrained(0.0, LARGE, 0.0, -1.0) == -1.0
    assert restrained(0.0, LARGE, -2.0, -3.0) == pytest.approx(-tenfold)
    assert restrained(0.0, LARGE, 0.0, 1.0) == 0.0


@pytest.mark.parametrize("lr", [KNOWN, SMALL, LARGE])
def test_an_alien_training_has_the_users_rate_whichever_that_is(lr):
    assert restrained(0.0, lr, 0.0, 1.0, alien=True) == 0.0
    assert restrained(0.0, lr, 0.0, -1.0, alien=True) == 0.0
    assert restrained(0.25, lr, 0.5, 1.0, alien=True) == 0.25
    assert restrained(1.0, lr, 0.5, 1.0, alien=True) == 1.0


def test_alien_is_what_is_given_from_the_start_and_far_outside():
    names, ranges = (
        ("cosine", "model_size", "horizon"),
        ranges_of([0.0, -0.5, -0.5], [0.0, 0.5, 0.5]),
    )
    observations = torch.tensor(
        [[[1.0, 0.5, 0.5]], [[0.0, 0.9, 0.0]], [[0.0, 0.0, -0.9]], [[0.0, 0.8, 0.8]]]
    )
    assert alien_layers(ranges, names, observations).tolist() == [[False], [True], [True], [False]]
    assert not alien_layers(ranges_of([0.0], [0.0]), ("cosine",), observations[..., :1]).any()


def test_an_unknown_base_lr_keeps_the_other_controls():
    ranges = ranges_of([0.0], [0.0], ((-2.0, -2.0), (2.0, 2.0)))
    before, wanted = torch.tensor([[[0.0, 0.5]]]), torch.tensor([[[1.0, 1.5]]])
    offsets = restrain(
        ACTIONS["recursive"], ranges, torch.zeros(1, 1), torch.tensor([[SMALL]]), before, wanted
    )
    assert offsets.tolist() == [[[1.0, 0.5]]]


def test_offsets_stay_within_an_action_of_those_reached():
    step = ACTIONS["recursive"].step
    assert restrained(1.0, KNOWN, 3.3, 4.0) == pytest.approx(2.0 + step)
    assert restrained(1.0, KNOWN, -3.3, -4.0) == pytest.approx(-2.0 - step)
    # All trainings start with offsets of 0, so a step away from 0 is always allowed.
    assert restrained(1.0, KNOWN, 0.0, -1.0, offsets=((3.0,), (4.0,))) == -1.0


def test_the_message_names_the_layer_of_a_learning_rate():
    """Layers are often called 0, 1, ...; that is no part of the rate."""
    ranges = ObservedRanges(
        torch.tensor([[-0.5714], [0.5714]]), torch.zeros(2, 1), torch.tensor([1e-5, 0.1])
    )
    arguments = (["peak_lr"], ["0"], torch.tensor([True]))
    text = guard_message(ranges, *arguments, torch.tensor([[-1.0]]), torch.tensor([[0.43]]))
    assert "learning rate of layer 0: 3.16e-07, and the policy knows 1e-05 to 0.1. So" in text
