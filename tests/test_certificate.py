"""The certificate tells feedback from schedules, and replays what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from tiny import TINY, random_policy

from lr_gym.analysis.certificate import (
    COMPARED,
    certificate,
    certificate_losses,
    describe,
    mean_of_others,
)
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import play
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy, constant_policy

SPEC = ControlSpec(schedule="constant", decisions=4)


def schedule_policy() -> MLPPolicy:
    """A policy that looks at the progress of the training only."""
    weight = torch.zeros(1, len(SPEC.features))
    weight[0, SPEC.features.index("progress")] = 0.5
    policy = constant_policy(SPEC, 3)
    return dataclasses.replace(policy, weights=(weight,), biases=(torch.tensor([0.3]),))


def test_a_schedule_equals_its_replay_and_its_shuffle():
    losses = certificate_losses(schedule_policy(), TINY, runs=5, initial_lrs=(1e-3, 1e-1))
    assert losses["policy"].shape == (2, 5)
    np.testing.assert_allclose(losses["replay"], losses["policy"], rtol=1e-5)
    np.testing.assert_array_equal(losses["shuffled"], losses["policy"])
    assert (losses["untrained"] != losses["policy"]).all()


def test_runs_that_diverge_again_and_again_do_not_stop_the_others():
    setting = {
        "horizon": 24,
        "decisions": 24,
        "base": "sgd",
        "autoreset_mode": AutoresetMode.DISABLED,
    }
    env = LRControlVectorEnv(TINY, num_envs=6, **setting)
    resets, reset = [], env.reset

    def from_rates(seed=None, options=None):
        resets.append(options)
        return reset(seed=seed, options={**(options or {}), "initial_lr": [1e-2] * 3 + [1e6] * 3})

    env.reset = from_rates
    losses, offsets = play(
        env, range(6), lambda observation, _: torch.zeros(6, env.num_layers, 1), "selection"
    )
    assert np.isfinite(losses).tolist() == [True] * 3 + [False] * 3
    assert len(offsets) == 24
    assert len(resets) > 4  # they diverged more than once


def test_feedback_differs_from_its_replay():
    losses = certificate_losses(random_policy(SPEC), TINY, runs=5, initial_lrs=(1e-1,))
    for name in COMPARED:
        assert (np.abs(losses[name] - losses["policy"]) > 1e-6).any(), name


@pytest.mark.parametrize("action", ["recursive", "residual"])
def test_mean_of_others_against_a_loop(action):
    spec = dataclasses.replace(SPEC, action=action, action_step=None, action_bound=None)
    offsets = torch.randn(6, 4, 2, 1).cumsum(0) * 0.1
    valid = torch.tensor([True, False, True, True])
    actions = mean_of_others(offsets, spec, valid)
    reached = actions.cumsum(0) if action == "recursive" else actions
    for i in range(4):
        others = [j for j in range(4) if j != i and valid[j]]
        expected = torch.stack([offsets[:, j] for j in others]).mean(0)
        torch.testing.assert_close(reached[:, i] * spec.mode.step, expected, rtol=1e-4, atol=1e-5)


def test_plain_values_and_words():
    result = certificate(schedule_policy(), TINY, runs=4, initial_lrs=(1e-2,))
    assert set(result["differences"]) == set(COMPARED)
    assert result["seeds"] == 4
    losses = certificate_losses(schedule_policy(), TINY, runs=4, initial_lrs=(1e-2,))
    expected = float((np.log(losses["policy"]) - np.log(losses["untrained"])).mean())
    assert result["differences"]["untrained"]["mean"] == pytest.approx(expected)
    lines = describe(result)
    assert len(lines) == 4
    assert "below 0 the policy has the lower loss" in lines[0]
    assert "not shown to be more than a schedule" in lines[-1]
    feedback = {
        **result,
        "differences": {name: {"mean": -1, "low": -2, "high": -0.5} for name in COMPARED},
    }
    assert describe(feedback)[-1] == "It is feedback."
    assert "better than" in describe(feedback)[0]


def test_one_run_has_no_others():
    with pytest.raises(ValueError, match="got 1"):
        certificate(schedule_policy(), TINY, runs=1)
