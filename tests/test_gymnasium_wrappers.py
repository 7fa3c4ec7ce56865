"""Gymnasium's own wrappers and ways to make vector environments work over whole episodes."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from environments import random_actions
from gymnasium import wrappers
from gymnasium.wrappers import vector as vector_wrappers
from tiny import TINY

import lr_gym  # noqa: F401 - registers the environments

GENERIC = "lr_gym/LRControl-v0"
OPTIONS = {"task": TINY, "horizon": 12, "decisions": 4}
DECISIONS = 4
EPISODES = 3


@pytest.fixture(params=["vector_entry_point", "sync"])
def envs(request):
    made = gymnasium.make_vec(GENERIC, num_envs=3, vectorization_mode=request.param, **OPTIONS)
    yield made
    made.close()


def sums_of_episodes(rewards: np.ndarray) -> np.ndarray:
    """Returns (EPISODES, B) of rewards (steps, B), where a step that restarts follows each end."""
    return rewards.reshape(EPISODES, DECISIONS + 1, -1).sum(1)


def test_vector_statistics_are_the_sums_of_the_rewards(envs):
    wrapped = vector_wrappers.RecordEpisodeStatistics(envs)
    wrapped.reset(seed=0)
    actions = random_actions(wrapped)
    rewards = []
    recorded = []
    for step in range(EPISODES * (DECISIONS + 1)):
        _, reward, terminated, truncated, infos = wrapped.step(next(actions))
        rewards.append(reward)
        ended = step % (DECISIONS + 1) == DECISIONS - 1
        assert (terminated == ended).all()
        assert not truncated.any()
        assert ("episode" in infos) == ended
        if ended:
            assert infos["_episode"].all()
            assert (infos["episode"]["l"] == DECISIONS).all()
            recorded.append(infos["episode"]["r"])
    np.testing.assert_allclose(recorded, sums_of_episodes(np.array(rewards)), rtol=1e-5)


def test_vector_observations_are_normalised_by_all_that_was_seen(envs):
    wrapped = vector_wrappers.NormalizeObservation(vector_wrappers.RecordEpisodeStatistics(envs))
    plain = gymnasium.make_vec(GENERIC, num_envs=3, vectorization_mode="sync", **OPTIONS)
    shape = envs.observation_space.shape
    observation, _ = wrapped.reset(seed=0)
    seen = [plain.reset(seed=0)[0]]
    actions = random_actions(wrapped)
    for _ in range(EPISODES * (DECISIONS + 1)):
        action = next(actions)
        observation, *_ = wrapped.step(action)
        seen.append(plain.step(action.reshape(plain.action_space.shape))[0])
    examples = np.concatenate(seen).astype(np.float64)
    expected = (seen[-1] - examples.mean(0)) / np.sqrt(examples.var(0) + 1e-8)
    # the wrapper counts its initial guess as a small part of an example
    np.testing.assert_allclose(observation, expected.reshape(shape), atol=1e-2)
    plain.close()


def test_both_ways_of_making_give_the_same_trainings():
    first, second = (
        gymnasium.make_vec(GENERIC, num_envs=3, vectorization_mode=mode, **OPTIONS)
        for mode in ("vector_entry_point", "sync")
    )
    flat = second.action_space.shape
    a, _ = first.reset(seed=0)
    b, _ = second.reset(seed=0)
    np.testing.assert_allclose(a.reshape(b.shape), b, atol=1e-6)
    actions = random_actions(first)
    for _ in range(EPISODES * (DECISIONS + 1)):
        action = next(actions)
        a, *outcome_a, _ = first.step(action)
        b, *outcome_b, _ = second.step(action.reshape(flat))
        np.testing.assert_allclose(a.reshape(b.shape), b, atol=1e-5)
        for x, y in zip(outcome_a, outcome_b, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    second.close()


def test_wrappers_of_the_single_environment():
    env = wrappers.NormalizeObservation(
        wrappers.RecordEpisodeStatistics(gymnasium.make(GENERIC, **OPTIONS))
    )
    actions = random_actions(env)
    for seed in range(EPISODES):
        observation, _ = env.reset(seed=seed)
        total = 0.0
        ended = False
        count = 0
        while not ended:
            assert np.isfinite(observation).all()
            observation, reward, terminated, truncated, info = env.step(next(actions))
            total += float(reward)
            count += 1
            ended = terminated or truncated
        assert count == DECISIONS
        assert info["episode"]["l"] == DECISIONS
        assert float(info["episode"]["r"]) == pytest.approx(total, rel=1e-5)
