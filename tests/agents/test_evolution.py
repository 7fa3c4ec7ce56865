"""The gradient of the strategy is unbiased, over whole trainings and in windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.evolution import EvolutionConfig, Strategy, pair_utilities
from agents.evolved_policy import initial_theta, unflatten


class Accumulator:
    """A stand-in for a training of 4 decisions: s += w . c_t; the gain is the fall of (s - 1)^2.

    What happens in a window depends on what happened before it.
    """

    decisions = 4
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-0.5, 0.5]])

    def __init__(self, pairs: int) -> None:
        self.groups, self.starts = np.zeros(pairs, dtype=np.int64), []
        self.sum, self.t = torch.zeros(2 * pairs), 0

    def start(self, row_seeds):
        self.starts.append(list(row_seeds))
        self.sum, self.t = torch.zeros_like(self.sum), 0

    def play(self, weights, decisions):
        before = (self.sum - 1).square()
        for _ in range(decisions):
            self.sum = self.sum + weights @ self.directions[self.t]
            self.t += 1
        return before - (self.sum - 1).square()

    def figures(self):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def total_gain(theta: torch.Tensor) -> torch.Tensor:
    return 1 - ((Accumulator.directions @ theta).sum() - 1).square()


@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_gradient_points_where_the_gain_grows(window, monkeypatch):
    """Summed over a training, the estimate is the gradient of the whole gain, for every window."""
    monkeypatch.setattr("agents.evolution.pair_utilities", lambda gains, groups: gains)
    population = Accumulator(100_000)
    theta = torch.tensor([0.1, -0.2])
    strategy = Strategy(
        population,
        theta,
        EvolutionConfig(sigma=0.05, window=window, learning_rate=0.0),
        seed=0,
        updates=9,
    )
    total = torch.zeros(2)
    for _ in range(-(-4 // (window or 4))):
        strategy.update()
        total -= strategy.theta.grad
    (expected,) = torch.autograd.grad(total_gain(theta.requires_grad_()), theta)
    torch.testing.assert_close(total, expected, atol=0.05, rtol=0.03)


def test_it_climbs_and_starts_pairs_on_equal_seeds():
    population = Accumulator(8)
    strategy = Strategy(population, torch.zeros(2), EvolutionConfig(), seed=3, updates=40)
    for _ in range(40):
        strategy.update()
    assert total_gain(strategy.theta) > 0.9
    assert population.starts[0] == [(3 << 20) + i // 2 for i in range(16)]
    assert population.starts[1] == [(3 << 20) + 8 + i // 2 for i in range(16)]


def test_utilities_are_robust_and_compare_within_a_task():
    gains = torch.tensor([3.0, 1.0, 1.0, 2.0, -1e6, 5.0, 2e3, 0.0, 0.0, 1e3])
    groups = np.array([0, 0, 0, 1, 1])
    expected = []
    for group in (0, 1):
        pairs = [j for j in range(5) if groups[j] == group]
        differences = [float(gains[2 * j] - gains[2 * j + 1]) for j in pairs]
        unit = 1.4826 * float(torch.tensor(differences).abs().median())
        for difference in differences:
            u = max(-3.0, min(3.0, difference / unit))
            expected += [u / 2, -u / 2]
    torch.testing.assert_close(
        pair_utilities(gains, groups), torch.tensor(expected), rtol=1e-5, atol=0
    )
    assert not pair_utilities(torch.ones(4), np.zeros(2, dtype=np.int64)).any()


def test_flat_weights_are_those_of_a_module():
    widths = (3, 5, 2)
    theta = torch.randn(7, 3 * 5 + 5 + 5 * 2 + 2)
    weights, biases = unflatten(theta, widths)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    x = torch.randn(3)
    for i in range(7):
        torch.nn.utils.vector_to_parameters(theta[i], model.parameters())
        ours = weights[1][i] @ torch.tanh(weights[0][i] @ x + biases[0][i]) + biases[1][i]
        torch.testing.assert_close(ours, model(x))
    assert not unflatten(initial_theta(widths, 0), widths)[0][-1].any()
