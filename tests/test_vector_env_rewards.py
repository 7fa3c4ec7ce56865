"""Rewards and divergence."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from environments import SHORT, play, random_actions, tiny
from gymnasium.vector import AutoresetMode
from tiny import TINY

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.envs.reward import REWARDS, diverged_return
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks.losses import cross_entropy


@pytest.mark.parametrize("reward", REWARDS)
def test_return_is_the_decrease_of_the_log_loss(reward):
    env = tiny(reward=reward, autoreset_mode=AutoresetMode.DISABLED, dtype=torch.float64)
    _, start = env.reset(seed=2)
    steps = play(env, 4, random_actions(env))
    rewards = np.stack([step[1] for step in steps])
    expected = np.log(start["reward_loss"]) - np.log(steps[-1][4]["reward_loss"])
    if REWARDS[reward].paired:
        adam = {
            "base": "adam",
            "initial_lr": (1e-3, 1e-3),
            "action": "residual",
            "granularity": "global",
        }
        twin = tiny(**adam, autoreset_mode=AutoresetMode.DISABLED, dtype=torch.float64)
        twin.reset(seed=2)
        end = [twin.step(np.zeros((3, 1, 1))) for _ in range(4)][-1][4]["reward_loss"]
        expected -= np.log(start["reward_loss"]) - np.log(end)
    np.testing.assert_allclose(rewards.sum(0), expected, rtol=1e-6)
    assert (rewards[:-1] != 0).all() == REWARDS[reward].dense
    assert steps[-1][4]["reward_loss"] == pytest.approx(env.evaluate("reward"))


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(
    ("base", "reason"),
    [("adamw", "loss_above_limit"), ("adam", "loss_above_limit"), ("sgd", "non_finite_loss")],
)
def test_divergence_ends_the_run_with_the_documented_return(base, reason, reward):
    env = LRControlVectorEnv(
        "mnist1d-mlp", 3, base=base, reward=reward, initial_lr=(1e3, 1e3), **SHORT
    )
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
    expected = diverged_return(torch.from_numpy(start["reward_loss"]), 0.0, REWARDS[reward])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert not info["diverged"].any()  # training went on with the next episode
    assert np.isfinite(info["train_loss"]).all()
    env.step(next(actions))


@pytest.mark.parametrize("reward", REWARDS)
def test_late_divergence_has_the_same_return(reward):
    """What a run collected before it diverged is taken back."""
    env = tiny(40, base="sgd", reward=reward, initial_lr=(0.1, 1e3), decisions=12)
    _, start = env.reset(seed=0)
    total, running = np.zeros(40), np.ones(40, dtype=bool)
    expected = diverged_return(torch.from_numpy(start["reward_loss"]), 0.0, REWARDS[reward]).numpy()
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
        LRControlVectorEnv(task, 2).reset(seed=0)
    LRControlVectorEnv(dataclasses.replace(task, optimum=-100.0), 2).reset(seed=0)


def test_a_reference_that_breaks_spoils_no_reward(monkeypatch):
    """The reference, Adam at 1e-3, reaches a loss of NaN; the compared run has a finite reward."""
    env = LRControlVectorEnv(TINY, 2, reward="paired", horizon=12, decisions=3)
    env.reset(seed=0)
    evaluate = env._reference_loop.evaluate
    monkeypatch.setattr(
        env._reference_loop,
        "evaluate",
        lambda *rest: evaluate(*rest) * torch.tensor([1.0, math.nan]),
    )
    for _ in range(2):
        _, reward, terminated, _, _ = env.step(np.zeros(env.action_space.shape, np.float32))
        assert np.isfinite(reward).all()
        assert not terminated.any()
