"""An agent that learns what an oracle does, which is told when the data of a stream change."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from learners import assert_equal_states
from tiny import TINY

from agents.imitation import ImitationConfig, ImitationLearner, oracle_action, oracle_rate
from lr_gym.envs.vector_env import LRControlVectorEnv

STREAM = {"granularity": "global", "schedule": "constant", "decisions": 6, "horizon": 24}
CONFIG = ImitationConfig(hidden=(8,), steps=40, learning_rate=0.02)


def stream_env(**options) -> LRControlVectorEnv:
    return LRControlVectorEnv("stream-values-4", num_envs=4, **{**STREAM, **options})


def make(config: ImitationConfig = CONFIG, seed: int = 0) -> ImitationLearner:
    return ImitationLearner([stream_env()], [], config, threads=1, seed=seed, updates=4)


def test_the_oracle_in_plain_python():
    config = ImitationConfig(low=1e-3, boost=5.0, decay=100.0)
    rates = oracle_rate(config, np.array([0.0, 100.0, 1e9]))
    assert rates == pytest.approx([5e-3, 3e-3, 1e-3])
    env = stream_env(initial_lr=(1e-3, 1e-3))
    env.reset(seed=0)
    # four steps of an interval: 2 steps after the start stand for them
    wanted = 1e-3 * (1.0 + 4.0 / (1.0 + 2.0 / 100.0))
    expected = np.log(wanted / 1e-3) / env.control_spec.mode.step
    assert expected > 1.0  # so it does as much as one action can
    assert oracle_action(env, config) == pytest.approx([1.0] * 4)
    slow = ImitationConfig(low=1e-3, boost=2.0, decay=100.0)
    expected = np.log(1.0 + 1.0 / 1.02) / env.control_spec.mode.step
    assert oracle_action(env, slow) == pytest.approx([expected] * 4, rel=1e-5)


def test_following_the_oracle_plays_its_rate():
    config = ImitationConfig(low=2e-3, boost=3.0, decay=10.0)
    env = stream_env(initial_lr=(1e-4, 1e-4))
    env.reset(seed=1)
    for _ in range(4):
        since = env.runs.inner.stream.since.numpy() + 2.0
        action = oracle_action(env, config).astype(np.float32)[:, None, None]
        _, _, _, _, infos = env.step(action)
    assert infos["lr"][:, 0] == pytest.approx(oracle_rate(config, since), rel=1e-5)


def test_it_comes_near_to_the_oracle():
    """In the trainings that the network drives, its actions are nearly the oracle's."""
    config = ImitationConfig(hidden=(8,), steps=200, learning_rate=0.02)
    env = stream_env()
    env.reset(seed=0)
    idle = float(np.abs(oracle_action(env, config)).mean())
    learner = ImitationLearner([env], [], config, threads=1, seed=0, updates=8)
    errors = [learner.update()["error"] for _ in range(8)]
    assert errors[-1] < 0.15 < 0.45 < idle


def test_continues_bit_for_bit():
    learner = make()
    learner.update()
    buffer = io.BytesIO()
    torch.save(learner.state_dict(), buffer)
    expected = [learner.update() for _ in range(2)]
    other = make(seed=3)
    other.update()
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert [other.update() for _ in range(2)] == expected
    assert_equal_states(other.state_dict(), learner.state_dict())


def test_what_it_cannot_learn_in():
    def learner(env):
        return ImitationLearner([env], [], CONFIG, threads=1, seed=0, updates=1)

    for message, env in {
        "tiny is none": LRControlVectorEnv(TINY, num_envs=2, granularity="global"),
        "got 'per_layer'": stream_env(granularity="per_layer"),
        "action='residual'": stream_env(action="residual"),
    }.items():
        with pytest.raises(ValueError, match=message):
            learner(env)
    for field in ("low", "boost", "decay", "steps"):
        with pytest.raises(ValueError, match=f"imitation.{field}"):
            ImitationConfig(**{field: 0})
