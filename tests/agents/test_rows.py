"""LayerRowsVecEnv: one row per (run, layer)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import TINY

from agents.sb3 import LayerRowsVecEnv
from lr_gym.control.action import ACTIONS
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.layers import GRANULARITIES


def make_env(*runs: int, **options) -> LayerRowsVecEnv:
    """One environment for each number of runs."""
    options = {"horizon": 12, "decisions": 4, "schedule": "constant", **options}
    return LayerRowsVecEnv([LRControlVectorEnv(TINY, num_envs=n, **options) for n in runs])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_rows_are_the_layers_of_the_runs(granularity):
    """Against the environment itself, over a restart."""
    env, plain = make_env(3, granularity=granularity), LRControlVectorEnv(
        TINY, num_envs=3, horizon=12, decisions=4, schedule="constant", granularity=granularity
    )  # fmt: skip
    layers = plain.num_layers
    assert env.num_envs == 3 * layers
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), plain.reset(seed=7)[0].reshape(3 * layers, -1))
    rng = np.random.default_rng(0)
    returns = np.zeros(3)
    for step in range(1, 7):
        action = rng.uniform(-1, 1, (3 * layers, 1)).astype(np.float32)
        observation, rewards, dones, infos = env.step(action)
        expected = plain.step(action.reshape(3, layers, 1))
        returns += expected[1]
        np.testing.assert_array_equal(observation, expected[0].reshape(3 * layers, -1))
        np.testing.assert_array_equal(rewards, np.repeat(expected[1], layers).astype(np.float32))
        np.testing.assert_array_equal(dones, np.repeat(expected[2], layers))
        for row, info in enumerate(infos):
            run, layer = divmod(row, layers)
            assert ("terminal_observation" in info) == (step == 4)
            assert ("episode" in info) == (step == 4 and layer == 0)
            if step == 4:
                np.testing.assert_array_equal(
                    info["terminal_observation"], expected[4]["final_obs"][run][layer]
                )
                assert info["TimeLimit.truncated"] is False
            if "episode" in info:
                assert info["episode"]["l"] == 4
                assert info["episode"]["r"] == pytest.approx(returns[run])
    assert [episode["return"] for episode in env.episodes] == pytest.approx(
        list(returns_after(plain, 7)), abs=1e-6
    )
    env.close()


def returns_after(plain, seed):
    """Returns of the first episode, from initial and final loss."""
    rng = np.random.default_rng(0)
    _, info = plain.reset(seed=seed)
    start = info["reward_loss"]
    for _ in range(4):
        info = plain.step(
            rng.uniform(-1, 1, (3 * plain.num_layers, 1)).astype(np.float32).reshape(3, -1, 1)
        )[4]
    return np.log(start) - np.log(info["final_info"]["reward_loss"])


def test_runs_of_rows_and_seeds_of_runs():
    env = make_env(2, 1)
    layers = env.envs[0].num_layers
    np.testing.assert_array_equal(env.run_of_row, np.repeat([0, 1, 2], layers))
    assert (env.num_runs, env.decisions, env.interval) == (3, 4, 3)
    observation = env.reset_to([5, 9, 5])
    np.testing.assert_array_equal(
        observation[env.run_of_row == 0], observation[env.run_of_row == 2]
    )
    assert (observation[env.run_of_row == 0] != observation[env.run_of_row == 1]).any()


def test_figures_are_means_over_the_trainings_that_ended():
    env = make_env(2)
    env.seed(0)
    env.reset()
    assert env.figures() == {}
    for _ in range(4):
        env.decide(np.zeros((env.num_envs, 1), dtype=np.float32))
    losses = [episode["reward_loss"] for episode in env.episodes]
    assert len(losses) == 2
    assert env.figures()["reward_loss"] == pytest.approx(np.mean(losses))
    assert env.figures() == {}


def test_state_continues_bit_for_bit():
    env, other = make_env(2, 1), make_env(2, 1)
    env.seed(3)
    env.reset()
    other.seed(8)
    other.reset()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (9, env.num_envs, 1)).astype(np.float32)
    for action in actions[:2]:
        env.decide(action)
    other.load_state_dict(env.state_dict())
    for action in actions[2:]:
        for a, b in zip(env.decide(action), other.decide(action), strict=True):
            np.testing.assert_array_equal(a, b)
    assert env.figures() == other.figures()
    assert all(
        torch.equal(a, b)
        for a, b in zip(*(e.state_dict()["returns"] for e in (env, other)), strict=True)
    )


@pytest.mark.parametrize("action", [name for name in ACTIONS if ACTIONS[name].discrete])
def test_discrete_rows_choose_an_index(action):
    env = make_env(2, action=action)
    env.seed(0)
    env.reset()
    assert env.action_space.n == 7
    observation, *_ = env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
    assert observation.shape == (4, len(env.envs[0].control_spec.features))


def test_wrong_environments_are_refused():
    with pytest.raises(ValueError, match="empty"):
        LayerRowsVecEnv([])
    envs = [
        LRControlVectorEnv(TINY, num_envs=1, action=action) for action in ("recursive", "residual")
    ]
    with pytest.raises(ValueError, match="control spec"):
        LayerRowsVecEnv(envs)
