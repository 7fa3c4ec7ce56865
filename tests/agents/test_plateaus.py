"""A policy that reacts to plateaus goes where another one goes, and lower with every plateau of the held-out loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from deployed import acting, constant, naming, through_file
from torch import nn

from agents.plateaus import main, react_to_plateaus
from lr_gym.observation import PATIENCE
from lr_gym.optim import PolicyOptimizer
from lr_gym.policy import load_policy, save_policy
from lr_gym.rollout import controlled_env
from lr_gym.seen import Seen

NAMED = 0.01


def rates(optimizer, held_out):
    """The learning rate after each step of a training that is told these held-out losses, None for no loss."""
    found = []
    for loss in held_out:
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        assert optimizer.decides
        optimizer.observe(1.0, held_out=loss)
        optimizer.step()
        found.append(optimizer.metrics()["lr/layer0"])
    return found


def deployed(policy):
    """A decision a step."""
    return PolicyOptimizer([nn.Parameter(torch.ones(3, 2))], policy, lr=1e-3, total_steps=policy.spec.decisions)


@pytest.mark.parametrize("hidden", [0, 4])
def test_each_plateau_takes_off_as_much_as_it_is_told(hidden):
    """The loss stands still, falls once, and stands still again."""
    losses = [1.0] * 7 + [0.1] + [1.0] * 7
    lowest, stalled, plateaus, mean, expected = math.inf, 0, 0, 0.0, []
    for loss in losses:
        mean = math.log(loss) if lowest == math.inf else 0.5 * mean + 0.5 * math.log(loss)
        lowest, stalled = (mean, 0) if mean < lowest else (lowest, stalled + 1)
        if stalled == PATIENCE:
            plateaus, stalled = plateaus + 1, 0
        expected.append(NAMED * math.exp(0.5 - 0.2 * plateaus))
    assert plateaus == 4
    assert rates(deployed(react_to_plateaus(naming(NAMED, hidden), 0.2, 0.5)), losses) == pytest.approx(
        expected, rel=2e-3
    )


def test_without_a_held_out_loss_it_is_the_policy_that_it_was_made_of():
    assert rates(deployed(react_to_plateaus(naming(NAMED), 0.2, 0.5)), [None] * 12) == rates(
        deployed(naming(NAMED)), [None] * 12
    )


def test_while_the_held_out_loss_falls_it_stays_above():
    falling = [0.9**step for step in range(12)]
    expected = [NAMED * math.exp(0.5)] * 12
    assert rates(deployed(react_to_plateaus(naming(NAMED), 0.2, 0.5)), falling) == pytest.approx(expected, rel=2e-3)


def test_who_wants_a_held_out_loss_says_so():
    assert deployed(react_to_plateaus(naming(NAMED), 0.2)).wants_held_out
    assert not deployed(naming(NAMED)).wants_held_out


def test_plateaus_survive_a_file_and_older_states_know_none():
    policy = react_to_plateaus(naming(NAMED), 0.2)
    optimizer, loaded, older = deployed(policy), deployed(policy), deployed(policy)
    rates(optimizer, [1.0] * 5)
    optimizer.observe(held_out=1.0)
    state = through_file(optimizer.state_dict())
    loaded.load_state_dict(state)
    for per_tensor in state["state"].values():
        del per_tensor["held_out"]
    older.load_state_dict(state)
    then = rates(optimizer, [1.0] * 4)
    assert rates(loaded, [1.0] * 4) == then
    assert rates(older, [1.0] * 4)[-1] > then[-1]


def test_environment_and_optimizer_count_alike():
    """In the environment the runs of one task stall at their own decisions: some later, some never."""
    policy = react_to_plateaus(naming(0.3), 0.3)
    env = controlled_env(policy.spec, "quadratic", 6, (1e-3, 1e-2))
    observation, infos = env.reset(seed=3)
    shown = [infos["reward_loss"]]
    for _ in range(30):
        observation, _, _, _, infos = env.step(policy.predict(torch.from_numpy(observation))[0].numpy())
        shown.append(infos["reward_loss"])
    plateaus = env.runs.control.memory.plateaus
    assert plateaus.min() < plateaus.max()
    env.step(policy.predict(torch.from_numpy(observation))[0].numpy())
    np.testing.assert_allclose(env.runs.hyper.lr[:, 0], 0.3 * torch.exp(-0.3 * plateaus), rtol=1e-2)
    for run, count in enumerate(plateaus.tolist()):
        optimizer = deployed(policy)
        last = rates(optimizer, [losses[run] for losses in shown])[-1]
        assert last == pytest.approx(0.3 * math.exp(-0.3 * count), rel=1e-2)


def test_runs_whose_held_out_loss_is_hidden_do_not_react():
    policy = react_to_plateaus(naming(0.3), 0.3, 0.5)
    env = controlled_env(policy.spec, "quadratic", 6, 1e-2, mask_held_out=0.5)
    observation, _ = env.reset(seed=3)
    for _ in range(20):
        observation, *_ = env.step(policy.predict(torch.from_numpy(observation))[0].numpy())
    hidden = env.runs.held_out_known == 0
    assert 0 < hidden.sum() < 6
    assert (env.runs.control.memory.plateaus[hidden] == 0).all()
    np.testing.assert_allclose(env.runs.hyper.lr[hidden, 0], 0.3, rtol=1e-2)
    plateaus = env.runs.control.memory.plateaus[~hidden]
    np.testing.assert_allclose(env.runs.hyper.lr[~hidden, 0], 0.3 * torch.exp(0.5 - 0.3 * plateaus), rtol=1e-2)


def test_the_guard_trusts_all_that_it_may_be_shown():
    seen = Seen(torch.tensor([[-0.5], [0.5]]), torch.tensor([[-1.0], [1.0]]), torch.tensor([1e-4, 1e-2]))
    policy = naming(NAMED)
    object.__setattr__(policy, "seen", seen)
    reacting = react_to_plateaus(policy, 0.2)
    assert reacting.seen is not None
    assert reacting.seen.features.tolist() == [[-0.5, 0.0, 0.0], [0.5, 1.0, 1.0]]


@pytest.mark.parametrize("policy", [constant(), acting(), react_to_plateaus(naming(NAMED), 0.2)], ids=range(3))
def test_policies_of_other_kinds_are_refused(policy):
    with pytest.raises(ValueError, match="must be recursive, set lr alone, and see peak_lr"):
        react_to_plateaus(policy, 0.2)


@pytest.mark.parametrize("nats", [0.0, -0.1, math.nan])
def test_plateaus_take_something_off(nats):
    with pytest.raises(ValueError, match="nats must be above 0"):
        react_to_plateaus(naming(NAMED), nats)


def test_from_file_to_file(tmp_path, monkeypatch):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    policy = naming(NAMED)
    object.__setattr__(policy, "about", {"seed": 3, "certificate": {}})
    save_policy(policy, old)
    monkeypatch.setattr("sys.argv", ["plateaus", str(old), str(new), "--nats", "0.2", "--shift", "0.5"])
    main()
    loaded = load_policy(new)
    assert loaded.about == {"seed": 3, "plateaus": {"nats": 0.2, "shift": 0.5}}
    assert loaded.spec.features == ("peak_lr", "held_out_known", "plateaus")
