"""The example `examples/ppo_continuous.py` learns, and estimates advantages right."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from tiny import TINY

from examples.ppo_continuous import Agent, Args, Rollout, advantages_of, collect, main, update
from lr_gym.envs.rollout import controlled_env, play
from lr_gym.policies.policy import load_policy

# Eight decisions of five steps; the rates start anywhere in 3e-5..1e-1, so there is much to learn.
SMALL = Args(
    env_id="lr_gym/Logistic-v0",
    horizon=40,
    decisions=8,
    num_envs=32,
    total_timesteps=20 * 32 * 8,
    evaluation_runs=32,
)


def made(task, envs=3, **options):
    """A vector environment of the example's kind, and an agent for it."""
    vector = gymnasium.make_vec("lr_gym/LRControl-v0", envs, task=task, **options)
    spec = vector.unwrapped.control_spec
    generator = torch.Generator().manual_seed(0)
    agent = Agent(len(spec.features), len(spec.controls), generator)
    return RecordEpisodeStatistics(vector), agent, generator


def collected(task, steps, **options):
    """A rollout from the start of every episode, with the returns of those that have ended."""
    envs, agent, generator = made(task, **options)
    start = (envs.reset(seed=0)[0], np.zeros(3, dtype=bool))
    rollout, _, returns = collect(agent, envs, start, steps, generator)
    return rollout, returns


def test_it_learns(tmp_path, capsys):
    """It beats its own untrained self and a random policy, in trainings that it has not seen."""
    file = tmp_path / "policy.safetensors"
    found = main(dataclasses.replace(SMALL, output=file))
    assert found["trained policy"] < 0.85 * found["untrained policy"]
    policy = load_policy(file)
    env = controlled_env(policy.spec, "logistic", 32, (3e-5, 1e-1), horizon=40)
    draw = torch.Generator().manual_seed(0)
    shape = (32, env.num_layers, 1)
    by_chance, _ = play(
        env,
        range(1 << 40, (1 << 40) + 32),
        lambda *_: 2.0 * torch.rand(shape, generator=draw) - 1.0,
        "selection",
    )
    assert found["trained policy"] < 0.85 * np.mean(np.minimum(by_chance, 1e3))
    printed = capsys.readouterr().out
    assert "update 20/20  return " in printed
    assert f"trained policy     {found['trained policy']:.4f}" in printed
    assert "fixed rate 0.001" in printed


def test_an_update_moves_all_parameters_and_keeps_them_finite():
    envs, agent, generator = made(TINY, horizon=12, decisions=4)
    start = (envs.reset(seed=0)[0], np.zeros(3, dtype=bool))
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    for _ in range(3):
        rollout, start, returns = collect(agent, envs, start, 5, generator)
        assert np.isfinite(returns).all()
        update(agent, optimizer, rollout, SMALL, generator)
    for name, value in agent.state_dict().items():
        assert value.isfinite().all(), name
        assert not torch.equal(value, before[name]), name


def test_a_rollout_tells_decisions_from_restarts():
    """Episodes of 4 decisions and a step that starts the next one, three times and a bit."""
    rollout, returns = collected(TINY, 17, horizon=12, decisions=4)
    numbers = torch.arange(17) % 5
    assert torch.equal(rollout.valid, (numbers != 4).unsqueeze(1).expand(17, 3))
    assert torch.equal(rollout.terminated, (numbers == 3).unsqueeze(1).expand(17, 3))
    assert not rollout.truncated.any()
    assert (rollout.rewards[numbers == 4] == 0.0).all()
    episodes = rollout.rewards[:15].unflatten(0, (3, 5)).sum(1)
    np.testing.assert_allclose(episodes.flatten().numpy(), returns, rtol=1e-5)


def test_streams_are_truncated():
    rollout, _ = collected("stream-values-4", 5, horizon=12, decisions=4)
    assert rollout.truncated[3].all()
    assert not rollout.terminated.any()


def naive_advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> np.ndarray:
    """Sums of discounted errors, written out for each step."""
    steps, runs = rollout.rewards.shape
    found = np.zeros((steps, runs))
    for run in range(runs):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                after = 0.0 if rollout.terminated[k, run] else float(rollout.values[k + 1, run])
                error = float(rollout.rewards[k, run]) + gamma * after
                found[t, run] += weight * (error - float(rollout.values[k, run]))
                if rollout.terminated[k, run] or rollout.truncated[k, run]:
                    break
                weight *= gamma * gae_lambda
    return found


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (0.97, 0.9)])
def test_advantages_are_the_sums_that_the_paper_writes(gamma, gae_lambda):
    generator = torch.Generator().manual_seed(1)
    rollout, _ = collected(TINY, 12, horizon=12, decisions=4)
    draw = torch.rand(12, 3, generator=generator)
    rollout = rollout._replace(
        rewards=torch.randn(12, 3, generator=generator),
        values=torch.randn(13, 3, generator=generator),
        terminated=draw < 0.2,
        truncated=draw > 0.85,
    )
    found = advantages_of(rollout, gamma, gae_lambda)
    expected = naive_advantages(rollout, gamma, gae_lambda)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_without_discount_and_critic_an_advantage_is_the_rest_of_the_return():
    rollout, returns = collected(TINY, 4, horizon=12, decisions=4)
    rollout = rollout._replace(values=torch.zeros_like(rollout.values))
    advantages = advantages_of(rollout, 1.0, 1.0)
    np.testing.assert_allclose(advantages[0].numpy(), returns, rtol=1e-5)
