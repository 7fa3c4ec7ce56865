"""Branches say what each action was worth at a moment, and a network learns from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learners import BRANCHES, SETTING
from tiny import TINY

from agents.branches.learner import BranchLearner
from agents.branches.trials import (
    BEYOND,
    WORST,
    BranchConfig,
    copy_runs,
    play_branches,
    regret_curves,
    regret_of,
)
from lr_gym.envs.vector_env import LRControlVectorEnv

GLOBAL = {**SETTING, "granularity": "global"}


def test_regret_in_plain_python():
    rewards = [[0.0, 1.0, 3.0, 2.0], [5.0, -1e9, 4.0, -2.0]]
    got = regret_curves(torch.tensor(rewards), torch.tensor([4.0, 4.0]))
    for row, values in enumerate(rewards):
        regret = [min((max(values) - x) / 4.0, WORST) for x in values]
        smooth = [
            regret[0],
            0.25 * regret[0] + 0.5 * regret[1] + 0.25 * regret[2],
            0.25 * regret[1] + 0.5 * regret[2] + 0.25 * regret[3],
            regret[3],
        ]
        assert got[row].tolist() == pytest.approx([x - min(smooth) for x in smooth])


def test_regret_of_an_action_is_read_off_the_curve():
    curves = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    grid = BranchConfig(actions=5).grid
    for index, action in enumerate(grid):
        got = regret_of(action.expand(6), curves)
        torch.testing.assert_close(got, curves[:, index], atol=1e-3, rtol=0)
    middle = regret_of(((grid[1] + grid[2]) / 2).expand(6), curves)
    torch.testing.assert_close(middle, curves[:, 1:3].mean(1), atol=1e-3, rtol=0)
    beyond = regret_of(torch.full((6,), 2.0), curves)  # two steps of the grid beyond 1
    torch.testing.assert_close(beyond, curves[:, -1] + 2 * BEYOND, atol=1e-3, rtol=0)


def test_copies_go_on_as_the_run_that_they_are_copies_of():
    env = LRControlVectorEnv(TINY, num_envs=4, **SETTING)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
    observation = copy_runs(env, np.array([2, 2, 0, 2]))
    assert np.array_equal(observation[0], observation[3])
    assert not np.array_equal(observation[0], observation[2])
    action = np.full(env.action_space.shape, 0.3, dtype=np.float32)
    observation, rewards, _, _, infos = env.step(action)
    for values in (observation, rewards, infos["train_loss"], infos["run_seed"], infos["step"]):
        assert np.array_equal(values[0], values[1])
        assert np.array_equal(values[0], values[3])
    assert rewards[0] != rewards[2]
    action[1] = -1.0  # from here on each goes its own way
    _, rewards, _, _, _ = env.step(action)
    assert rewards[0] == rewards[3]
    assert rewards[0] != rewards[1]


def test_curves_are_the_trainings_with_each_action():
    """Each point of the first curves equals a training by itself, step by step."""
    act = lambda observation: 0.4 * observation[..., :1].tanh()
    config = BranchConfig(actions=3, follow=2)
    small = {**GLOBAL, "action_step": 0.2}  # so small that no regret is cut off
    env = LRControlVectorEnv(TINY, num_envs=6, **small)
    generator = np.random.default_rng(0)
    before = int(np.random.default_rng(0).integers(2))
    moments, figures = play_branches(env, act, config, 7, generator)
    assert figures["diverged"] == 0.0
    assert len(moments.curves) == 2 * ((4 - before) // 2)
    for group in range(2):
        sums = []
        for action in (-1.0, 0.0, 1.0):
            alone = LRControlVectorEnv(TINY, num_envs=1, **small)
            seen, _ = alone.reset(seed=7 + group)
            for _ in range(before):
                seen = alone.step(act(torch.from_numpy(seen)).numpy())[0]
            first = torch.from_numpy(seen[0, 0]).half()
            assert torch.equal(moments.observation[group], first)
            seen, reward, *_ = alone.step(np.full((1, 1, 1), action, dtype=np.float32))
            total = reward[0]
            total += alone.step(act(torch.from_numpy(seen)).numpy())[1][0]
            sums.append(total)
        own = regret_curves(torch.tensor([sums]), torch.ones(1))[0]
        # the curves count in units of what the training earned: their shape is what is compared
        ratio = own.max() / moments.curves[group].max()
        torch.testing.assert_close(moments.curves[group] * ratio, own.float(), atol=1e-4, rtol=1e-3)


def test_a_diverged_copy_is_bad_and_not_gone_on_from():
    env = LRControlVectorEnv(
        TINY, num_envs=3, base="sgd", action_step=20.0, initial_lr=(0.1, 0.1), **GLOBAL
    )
    act = lambda observation: torch.zeros(*observation.shape[:2], 1)
    config = BranchConfig(actions=3, follow=2, explore=1.0)
    moments, figures = play_branches(env, act, config, 0, np.random.default_rng(1))
    assert figures["diverged"] > 0.0
    assert (moments.curves[:, 2] > moments.curves[:, 1]).all()
    assert torch.isfinite(moments.curves).all()


def test_environments_that_cannot_be_learned_in():
    def learner(config=BRANCHES, runs=3, **options):
        env = LRControlVectorEnv(TINY, num_envs=runs, **{**GLOBAL, **options})
        return BranchLearner([env], [], config, threads=1, seed=0, updates=1)

    learner()
    for message, options in {
        "granularity='per_layer'": {"granularity": "per_layer"},
        "is no index": {"action": "discrete"},
        "no multiple": {"runs": 4},
        "follow=9": {"config": BranchConfig(actions=3, follow=9)},
    }.items():
        with pytest.raises(ValueError, match=message):
            learner(**options)
    for field, value in {"actions": 2, "explore": 1.5, "average": -1.0, "follow": 0}.items():
        with pytest.raises(ValueError, match=f"branches.{field}"):
            BranchConfig(**{field: value})


def test_the_policy_is_the_running_mean_of_the_network():
    env = LRControlVectorEnv(TINY, num_envs=3, **GLOBAL)
    config = BranchConfig(actions=3, follow=2, hidden=(4,), steps=5, average=0.5)
    learner = BranchLearner([env], [], config, threads=1, seed=0, updates=4)
    mean = None
    for _ in range(3):
        learner.update()
        network = learner.state_dict()["network"]
        weights = [network[name] for name in ("0.weight", "2.weight")]
        mean = (
            weights if mean is None else [0.5 * (a + b) for a, b in zip(mean, weights, strict=True)]
        )
        for got, expected in zip(learner.policy({}).weights, mean, strict=True):
            torch.testing.assert_close(got, expected)
