"""A policy that reacts to plateaus goes where another one goes, and lower with every plateau of the loss."""

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


def rates(optimizer, losses):
    """The learning rate after each step of a training that is told these losses."""
    found = []
    for loss in losses:
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.observe(loss)
        optimizer.step()
        found.append(optimizer.metrics()["lr/layer0"])
    return found


def deployed(policy):
    return PolicyOptimizer([nn.Parameter(torch.ones(3, 2))], policy, lr=1e-3, total_steps=policy.spec.decisions)


@pytest.mark.parametrize("hidden", [0, 4])
def test_each_plateau_takes_off_as_much_as_it_is_told(hidden):
    """A decision a step: the loss stands still, falls once, and stands still again."""
    losses = [1.0] * 7 + [0.1] + [1.0] * 7
    lowest, stalled, plateaus, mean, expected = math.inf, 0, 0, 0.0, []
    for loss in losses:
        mean = math.log(loss) if lowest == math.inf else 0.5 * mean + 0.5 * math.log(loss)
        lowest, stalled = (mean, 0) if mean < lowest else (lowest, stalled + 1)
        if stalled == PATIENCE:
            plateaus, stalled = plateaus + 1, 0
        expected.append(0.01 * math.exp(0.5 - 0.2 * plateaus))
    assert plateaus == 4
    assert rates(deployed(react_to_plateaus(naming(0.01, hidden), 0.2, 0.5)), losses) == pytest.approx(
        expected, rel=2e-3
    )


def test_without_plateaus_nothing_changes():
    losses = [0.9**step for step in range(12)]
    assert rates(deployed(react_to_plateaus(naming(0.01), 0.2)), losses) == rates(deployed(naming(0.01)), losses)


def test_a_loss_that_nobody_shows_is_no_plateau():
    optimizer = deployed(react_to_plateaus(naming(0.01), 0.2))
    for _ in range(12):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(3, 2)
        optimizer.step()
    assert optimizer.metrics()["lr/layer0"] == pytest.approx(0.01, rel=2e-3)


def test_plateaus_survive_a_file_and_older_states_know_none():
    policy = react_to_plateaus(naming(0.01), 0.2)
    optimizer, loaded, older = deployed(policy), deployed(policy), deployed(policy)
    rates(optimizer, [1.0] * 5)
    state = through_file(optimizer.state_dict())
    loaded.load_state_dict(state)
    for per_tensor in state["state"].values():
        del per_tensor["plateaus"]
    older.load_state_dict(state)
    then = rates(optimizer, [1.0] * 4)
    assert rates(loaded, [1.0] * 4) == then
    assert rates(older, [1.0] * 4)[-1] > then[-1]


def test_environment_and_optimizer_count_alike():
    """In the environment the runs of one task stall at their own decisions: some later, some never."""
    policy = react_to_plateaus(naming(0.3), 0.3)
    env = controlled_env(policy.spec, "quadratic", 6, (1e-3, 1e-2))
    observation, _ = env.reset(seed=3)
    for _ in range(30):
        observation, *_ = env.step(policy.predict(torch.from_numpy(observation))[0].numpy())
    plateaus = env.runs.control.memory.plateaus
    assert plateaus.min() < plateaus.max()
    named = 0.3 * torch.exp(-0.3 * plateaus)
    env.step(policy.predict(torch.from_numpy(observation))[0].numpy())
    np.testing.assert_allclose(env.runs.hyper.lr[:, 0], named, rtol=1e-2)


def test_the_guard_trusts_any_count():
    seen = Seen(torch.tensor([[-0.5], [0.5]]), torch.tensor([[-1.0], [1.0]]), torch.tensor([1e-4, 1e-2]))
    policy = naming(0.01)
    object.__setattr__(policy, "seen", seen)
    reacting = react_to_plateaus(policy, 0.2)
    assert reacting.seen is not None
    assert reacting.seen.features.tolist() == [[-0.5, 0.0], [0.5, 1.0]]


@pytest.mark.parametrize("policy", [constant(), acting(), react_to_plateaus(naming(0.01), 0.2)], ids=range(3))
def test_policies_of_other_kinds_are_refused(policy):
    with pytest.raises(ValueError, match="must be recursive, set lr alone, and see peak_lr"):
        react_to_plateaus(policy, 0.2)


def test_from_file_to_file(tmp_path, monkeypatch):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    policy = naming(0.01)
    object.__setattr__(policy, "about", {"seed": 3, "certificate": {}})
    save_policy(policy, old)
    monkeypatch.setattr("sys.argv", ["plateaus", str(old), str(new), "--nats", "0.2", "--shift", "0.5"])
    main()
    loaded = load_policy(new)
    assert loaded.about == {"seed": 3, "plateaus": {"nats": 0.2, "shift": 0.5}}
    assert loaded.spec.features == ("peak_lr", "plateaus")
