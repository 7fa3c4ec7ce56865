"""The SB3 adapter: one row per (run, layer), exported policies that act as SB3 does, exact resume."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from tiny import TINY

from agents.sb3 import LayerRowsVecEnv, PPOConfig, export_policy, load_ppo_state, make_ppo, ppo_state
from lr_gym.action import ACTIONS, CONTROLLED
from lr_gym.layers import CONTROLS
from lr_gym.policy import load_policy, save_policy
from lr_gym.vector_env import LRControlVectorEnv

SMALL = PPOConfig(hidden=(16, 16), n_epochs=2, minibatches=2)


def make_env(*runs: int, **options) -> LayerRowsVecEnv:
    """One environment for each number of runs."""
    options = {"horizon": 12, "decisions": 4, "schedule": "constant", **options}
    return LayerRowsVecEnv([LRControlVectorEnv(TINY, n, **options) for n in runs])


def trained(updates: int = 3, **options):
    """A PPO model after some updates; a large learning rate, so that it differs from where it began."""
    env = make_env(3, **options)
    env.seed(0)
    model = make_ppo(env, PPOConfig(hidden=(16, 16), learning_rate=0.02), seed=0)
    return model.learn(updates * 4 * env.num_envs)


@pytest.mark.parametrize("control", CONTROLS)
def test_rows_are_the_layers_of_the_runs(control):
    """Against the environment itself, over a restart."""
    env, plain = make_env(3, control=control), LRControlVectorEnv(
        TINY, 3, horizon=12, decisions=4, schedule="constant", control=control
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
                np.testing.assert_array_equal(info["terminal_observation"], expected[4]["final_obs"][run][layer])
                assert info["TimeLimit.truncated"] is False
            if "episode" in info:
                assert info["episode"]["l"] == 4
                assert info["episode"]["r"] == pytest.approx(returns[run])
    assert [episode["return"] for episode in env.episodes] == pytest.approx(list(returns_after(plain, 7)), abs=1e-6)
    env.close()


def returns_after(plain, seed):
    """Returns of the first episode, from initial and final loss."""
    rng = np.random.default_rng(0)
    _, info = plain.reset(seed=seed)
    start = info["reward_loss"]
    for _ in range(4):
        info = plain.step(rng.uniform(-1, 1, (3 * plain.num_layers, 1)).astype(np.float32).reshape(3, -1, 1))[4]
    return np.log(start) - np.log(info["final_info"]["reward_loss"])


@pytest.mark.parametrize("split", [(6,), (4, 2), (2, 2, 2), (1, 5)])
def test_result_does_not_depend_on_how_runs_are_shared_out(split):
    """Contract: rows do not touch each other, so the trained weights are equal to the bit."""
    results = []
    for runs in ((6,), split):
        env = make_env(*runs)
        env.seed(0)
        model = make_ppo(env, SMALL, seed=0).learn(3 * 4 * env.num_envs)
        results.append(model.policy.state_dict())
        env.close()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("controls", [("lr",), CONTROLLED])
def test_exported_policy_equals_sb3_predict(controls, scale, tmp_path):
    """Contract (e), through the file; weights times 100 make most actions clip."""
    model = trained(controls=controls)
    with torch.no_grad():
        for param in model.policy.action_net.parameters():
            param.mul_(scale)
    spec = model.env.envs[0].control_spec
    file = save_policy(export_policy(model, spec, 3, {"seed": 0}), tmp_path / "policy.safetensors")
    observation = np.random.default_rng(0).uniform(-1, 1, (200, len(spec.features))).astype(np.float32)
    expected, _ = model.predict(observation, deterministic=True)
    action, _ = load_policy(file).predict(torch.from_numpy(observation))
    np.testing.assert_allclose(action.numpy(), expected, rtol=0, atol=1e-6)
    assert expected.std() > 1e-3
    if scale > 1:
        assert (np.abs(expected) == 1).mean() > 0.2


def test_exported_policy_is_a_copy():
    model = trained(1)
    policy = export_policy(model, model.env.envs[0].control_spec, 3, {})
    before = copy.deepcopy(policy.tensors())
    model.learn(2 * 4 * model.n_envs)
    assert all(torch.equal(value, before[name]) for name, value in policy.tensors().items())


def test_untrained_actor_is_the_base_optimizer():
    model = make_ppo(make_env(2), SMALL, seed=0)
    action, _ = model.predict(np.random.default_rng(0).uniform(-1, 1, (9, 15)).astype(np.float32), deterministic=True)
    assert not action.any()


def test_ppo_continues_bit_for_bit():
    """Updates in one go equal updates, state through a file, the rest in another model; runs diverge meanwhile."""
    options = {"base": "sgd", "initial_lr": (1e-2, 1e4)}

    def fresh(seed):
        env = make_env(3, 2, **options)
        env.seed(seed)
        model = make_ppo(env, SMALL, seed=seed)
        return model, 4 * env.num_envs

    def continue_(model, rollout, updates):
        model.env.episodes.clear()
        model.learn(updates * rollout, reset_num_timesteps=False)

    model, rollout = fresh(0)
    model.learn(2 * rollout)
    buffer = io.BytesIO()
    torch.save(ppo_state(model), buffer)
    continue_(model, rollout, 3)
    expected = model.policy.state_dict()

    other, _ = fresh(1)
    other.learn(rollout)
    buffer.seek(0)
    load_ppo_state(other, torch.load(buffer, weights_only=True))
    continue_(other, rollout, 3)
    assert other.num_timesteps == model.num_timesteps
    for name, value in other.policy.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert len(model.env.episodes) > 15
    assert other.env.episodes == model.env.episodes


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
    envs = [LRControlVectorEnv(TINY, 1, action=action) for action in ("recursive", "residual")]
    with pytest.raises(ValueError, match="control spec"):
        LayerRowsVecEnv(envs)
