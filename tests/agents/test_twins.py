"""Twins differ only in what the agent does, and are rewarded relative to one another."""

from __future__ import annotations

import numpy as np
import pytest
from learners import make_learner
from tiny import TINY

from agents.command_line import parse
from agents.sb3 import LayerRowsVecEnv
from agents.sb3.ppo import LIMIT, relative_rewards
from agents.sb3.state import rows_of
from agents.table import build_learner
from lr_gym.envs.vector_env import LRControlVectorEnv

LAYERS = [2, 2, 2, 2, 3, 3, 3, 3]  # two pairs of runs of two layers, two pairs of runs of three


@pytest.fixture
def rewards():
    return np.random.default_rng(0).normal(size=(5, sum(LAYERS))).astype(np.float32)


def together(rewards):
    """No row has begun another training."""
    return np.zeros_like(rewards[1:], dtype=bool)


def test_a_training_after_a_divergence_is_compared_with_none(rewards):
    """One of three twins restarts. From then on, the others are judged as if there were two."""
    rewards = rewards[:, :6]
    restarted = together(rewards)
    restarted[1:, 4:] = True
    found = relative_rewards(rewards, [2, 2, 2], 3, restarted)
    assert (found[2:, 4:] == 0.0).all()
    assert (found[:2, 4:] != 0.0).any()
    medians = np.median(found[2:, :4], axis=1)
    np.testing.assert_allclose(medians, 0.0, atol=0.05 * np.abs(found).max())
    changed = rewards.copy()
    changed[2:, 4:] = 99.0
    np.testing.assert_array_equal(relative_rewards(changed, [2, 2, 2], 3, restarted), found)
    restarted[2:] = True
    assert (relative_rewards(rewards, [2, 2, 2], 3, restarted)[3:] == 0.0).all()
    assert relative_rewards(rewards[:1], [2, 2, 2], 3, restarted[:0]).shape == (1, 6)


def test_against_a_naive_twin(rewards):
    found = relative_rewards(rewards, LAYERS, 2, together(rewards))
    for first, size in ((0, 4), (4, 4), (8, 6), (14, 6)):
        task = rewards[:, first : first + size].astype(float)
        centred = np.array([[value - np.median(row) for value in row] for row in task])
        returns = [sum(centred[:, column]) for column in range(size)]
        middle = np.median(returns)
        spread = 1.4826 * np.median([abs(value - middle) for value in returns])
        expected = np.clip(centred / spread, -LIMIT, LIMIT)
        np.testing.assert_allclose(found[:, first : first + size], expected, rtol=1e-3)


def test_scale_and_level_of_a_task_do_not_matter(rewards):
    other = rewards.copy()
    other[:, 8:] = 100.0 * other[:, 8:] + 7.0
    found, expected = (relative_rewards(r, LAYERS, 4, together(r)) for r in (other, rewards))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found[:, :8], expected[:, :8])


def test_equal_trainings_and_divergence_stay_finite(rewards):
    np.testing.assert_array_equal(
        relative_rewards(np.ones_like(rewards), LAYERS, 2, together(rewards)), 0.0
    )
    rewards[2, 3] = -1e9
    found = relative_rewards(rewards, LAYERS, 2, together(rewards))
    assert found[2, 3] == -LIMIT
    assert np.isfinite(found).all()


def test_twins_start_alike_and_others_do_not():
    env = LayerRowsVecEnv([LRControlVectorEnv(TINY, num_envs=4, horizon=12, decisions=4)], twins=2)
    first = env.reset().reshape(4, -1)
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[2], first[3])
    assert not np.array_equal(first[0], first[2])
    with pytest.raises(ValueError, match="twins=3"):
        LayerRowsVecEnv([LRControlVectorEnv(TINY, num_envs=4)], twins=3)


def test_ppo_learns_from_what_is_relative():
    learner = make_learner("ppo_twins", initial_lr=(1e-3, 1e-1))
    learner.update()
    buffer = learner.model.rollout_buffer
    for rows in np.split(np.arange(buffer.rewards.shape[1]), [4, 8]):  # pairs of runs of 2 layers
        np.testing.assert_allclose(np.median(buffer.rewards[:, rows], axis=1), 0.0, atol=1e-6)
    returns = buffer.returns.reshape(
        buffer.rewards.shape[1], -1
    ).T  # flattened row by row for its minibatches
    np.testing.assert_allclose(returns, buffer.rewards[::-1].cumsum(0)[::-1], atol=1e-4)


def test_twins_of_a_suite_that_stays_start_from_new_seeds_at_every_update(tmp_path):
    """The environments are kept, so nothing is loaded or compiled again."""
    options = "--task quadratic --horizon 8 --decisions 4 --num-envs 4 --workers 1 --timesteps 64"
    args = parse([*options.split(), "--ppo.twins", "2", "--output-dir", str(tmp_path)])
    learner, updates = build_learner(args)
    rows = rows_of(learner.model)
    kept, seeds = list(rows.envs), []
    for _ in range(2):
        learner.update()
        seeds.append(rows.envs[0].state_dict()["host.row_seed"].tolist())
    assert updates == 4
    assert all(env is other for env, other in zip(rows.envs, kept, strict=True))
    assert all(pair[0] == pair[1] and pair[2] == pair[3] for pair in seeds)
    assert len({seed for pair in seeds for seed in pair}) == 4
    other, _ = build_learner(args)
    other.load_state_dict(learner.state_dict())
    learner.update(), other.update()
    np.testing.assert_array_equal(
        rows_of(other.model).envs[0].state_dict()["host.row_seed"],
        rows.envs[0].state_dict()["host.row_seed"],
    )
