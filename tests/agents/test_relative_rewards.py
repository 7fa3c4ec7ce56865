"""Rewards relative to the task's other trainings: every task counts alike, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from learners import make_learner

from agents.sb3.ppo import LIMIT, relative_rewards


@pytest.fixture
def rewards():
    return np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)


def test_against_a_naive_twin(rewards):
    sizes = [4, 8]
    found = relative_rewards(rewards, sizes)
    for first, size in ((0, 4), (4, 8)):
        task = rewards[:, first : first + size].astype(float)
        centred = np.array([[value - np.median(row) for value in row] for row in task])
        returns = [sum(centred[:, column]) for column in range(size)]
        middle = np.median(returns)
        spread = 1.4826 * np.median([abs(value - middle) for value in returns])
        expected = np.clip(centred / spread, -LIMIT, LIMIT)
        np.testing.assert_allclose(found[:, first : first + size], expected, rtol=1e-3)


def test_scale_and_level_of_a_task_do_not_matter(rewards):
    other = rewards.copy()
    other[:, 4:] = 100.0 * other[:, 4:] + 7.0
    np.testing.assert_allclose(relative_rewards(other, [4, 8]), relative_rewards(rewards, [4, 8]), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(relative_rewards(other, [4, 8])[:, :4], relative_rewards(rewards, [4, 8])[:, :4])


def test_equal_trainings_and_divergence_stay_finite(rewards):
    np.testing.assert_array_equal(relative_rewards(np.ones_like(rewards), [12]), 0.0)
    rewards[2, 3] = -1e9
    found = relative_rewards(rewards, [12])
    assert found[2, 3] == -LIMIT
    assert np.isfinite(found).all()


def test_ppo_learns_from_what_is_relative():
    learner = make_learner("ppo_relative", initial_lr=(1e-3, 1e-1))
    learner.update()
    buffer = learner.model.rollout_buffer
    for rows in np.split(np.arange(buffer.rewards.shape[1]), [4 * 2]):  # 4 runs and 2 runs of 2 layers
        np.testing.assert_allclose(np.median(buffer.rewards[:, rows], axis=1), 0.0, atol=1e-6)
    returns = buffer.returns.reshape(buffer.rewards.shape[1], -1).T  # flattened row by row for its minibatches
    np.testing.assert_allclose(returns, buffer.rewards[::-1].cumsum(0)[::-1], atol=1e-4)
