"""Rewards telescope, and nothing that survives returns less than what diverged."""

from __future__ import annotations

import math

import pytest
import torch

from lr_gym.envs.reward import diverged_return, loss_limit, potential

INITIAL = torch.tensor([1e-6, 0.5, 2.3, 40.0, 1e6], dtype=torch.float64)


def test_potential_is_the_log_of_the_distance_to_the_optimum():
    losses = [3.0, 1.0, 0.25]
    for optimum in (0.0, 0.2):
        got = potential(torch.tensor(losses, dtype=torch.float64), optimum)
        expected = [math.log(loss - optimum + 1e-8) for loss in losses]
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


def test_potential_is_finite_at_and_below_the_optimum():
    assert potential(torch.tensor([0.3, 0.2]), 0.3).tolist() == pytest.approx([math.log(1e-8)] * 2)


def test_rewards_telescope():
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    potentials = potential(losses, 0.0)
    rewards = [potentials[i] - potentials[i + 1] for i in range(49)]
    assert float(sum(rewards)) == pytest.approx(
        math.log((losses[0] + 1e-8) / (losses[-1] + 1e-8)), rel=1e-12
    )


@pytest.mark.parametrize("initial", [-5.0, 0.0, 0.1, 1.0, 2.3, 1e5])
def test_loss_limit_is_far_above_any_start(initial):
    assert loss_limit(torch.tensor(initial)).item() == pytest.approx(
        initial + 1000 * max(1, abs(initial))
    )


@pytest.mark.parametrize("optimum", [0.0, 1e-7])
def test_diverged_return_is_finite_and_below_every_survivor(optimum):
    """A survivor ends between the optimum and the limit."""
    floor = diverged_return(INITIAL, optimum)
    assert torch.isfinite(floor).all()
    for i, initial in enumerate(INITIAL):
        places = torch.linspace(0, 1, 50, dtype=torch.float64)
        ends = places * (loss_limit(initial) - optimum) + optimum
        returns = potential(initial, optimum) - potential(ends, optimum)
        assert floor[i] < returns.min() - 0.5
