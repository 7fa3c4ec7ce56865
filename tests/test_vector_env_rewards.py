"""Rewards and divergence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from environments import SHORT, play, random_actions, tiny
from gymnasium.vector import AutoresetMode
from tiny import TINY

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.envs.reward import diverged_return
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks.losses import cross_entropy


def test_return_is_the_decrease_of_the_log_loss():
    env = tiny(autoreset_mode=AutoresetMode.DISABLED, dtype=torch.float64)
    _, start = env.reset(seed=2)
    steps = play(env, 4, random_actions(env))
    rewards = np.stack([step[1] for step in steps])
    expected = np.log(start["reward_loss"]) - np.log(steps[-1][4]["reward_loss"])
    np.testing.assert_allclose(rewards.sum(0), expected, rtol=1e-6)
    assert (rewards[:-1] != 0).all()
    assert steps[-1][4]["reward_loss"] == pytest.approx(env.evaluate("reward"))


@pytest.mark.parametrize(
    ("base", "reason"),
    [("adamw", "loss_above_limit"), ("adam", "loss_above_limit"), ("sgd", "non_finite_loss")],
)
def test_divergence_ends_the_run_with_the_documented_return(base, reason):
    env = LRControlVectorEnv("mnist1d-mlp", num_envs=3, base=base, initial_lr=(1e3, 1e3), **SHORT)
    _, start = env.reset(seed=0)
    total, actions = np.zeros(3), random_actions(env)
    for _ in range(4):
        observation, rewards, terminated, _, info = env.step(next(actions))
        assert np.isfinite(rewards).all()
        assert env.observation_space.contains(observation)
        total += rewards
        if terminated.any():
            break
    final = info["final_info"]
    assert terminated.all()
    assert final["diverged"].all()
    assert set(final["divergence"]) <= {"loss_above_limit", "non_finite_loss"}
    assert reason in final["divergence"]
    assert (final["step"] < 12).all()
    expected = diverged_return(torch.from_numpy(start["reward_loss"]), 0.0)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert not info["diverged"].any()  # training went on with the next episode
    assert np.isfinite(info["train_loss"]).all()
    env.step(next(actions))


def test_late_divergence_has_the_same_return():
    """What a run collected before it diverged is taken back."""
    env = tiny(40, base="sgd", initial_lr=(0.1, 1e3), decisions=12)
    _, start = env.reset(seed=0)
    total, running = np.zeros(40), np.ones(40, dtype=bool)
    expected = diverged_return(torch.from_numpy(start["reward_loss"]), 0.0).numpy()
    late = 0
    for step in range(12):
        _, rewards, terminated, _, info = env.step(np.ones((40, 2, 1)))
        total += rewards * running
        if terminated.any():
            diverged = running & terminated & info["final_info"]["diverged"]
            np.testing.assert_allclose(total[diverged], expected[diverged], rtol=1e-5)
            late += diverged.sum() * (step > 2)
        running &= ~terminated
    assert late > 3


def test_a_loss_below_the_optimum_is_named():
    task = dataclasses.replace(
        TINY, loss=lambda outputs, targets: cross_entropy(outputs, targets) - 100.0
    )
    with pytest.raises(
        ValueError, match=r"'tiny' starts with a loss of -9.*optimum 0.*Task.optimum"
    ):
        LRControlVectorEnv(task, num_envs=2).reset(seed=0)
    LRControlVectorEnv(dataclasses.replace(task, optimum=-100.0), num_envs=2).reset(seed=0)
