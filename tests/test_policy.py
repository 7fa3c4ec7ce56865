"""Policies: what they compute, and that what is saved comes back."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny import random_policy

from lr_gym.control.action import ACTIONS, CONTROLLED, action_table
from lr_gym.control.features import FEATURES
from lr_gym.control.spec import ControlSpec
from lr_gym.layers import GRANULARITIES
from lr_gym.policies.policy import (
    POLICY_FILE,
    MLPPolicy,
    PolicyFileError,
    builtin_policies,
    constant_policy,
    load_policy,
    save_policy,
)
from lr_gym.updates.rules import RULES
from lr_gym.updates.schedules import SCHEDULES

SPEC = ControlSpec()
SPECS = [
    *(ControlSpec(action=action) for action in ACTIONS),
    *(ControlSpec(base=base) for base in RULES),
    *(ControlSpec(schedule=schedule) for schedule in SCHEDULES),
    *(ControlSpec(granularity=name) for name in GRANULARITIES),
    ControlSpec(controls=CONTROLLED, features=tuple(FEATURES), decisions=7),
]


# Round trip


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_round_trip(spec, tmp_path):
    outputs = (
        len(action_table(spec.controls)) if ACTIONS[spec.action].discrete else len(spec.controls)
    )
    policy = random_policy(spec, interval=5, outputs=outputs)
    mean, std = torch.full_like(policy.mean, 0.1), torch.full_like(policy.std, 2.0)
    policy = dataclasses.replace(
        policy, mean=mean, std=std, about={"tasks": ["tiny"], "cost": 1.5, "é": None}
    )
    loaded = load_policy(save_policy(policy, tmp_path / "new" / "p.safetensors"))
    assert (loaded.spec, loaded.interval, loaded.about) == (policy.spec, 5, policy.about)
    observation = torch.rand(20, len(spec.features)) * 2 - 1
    assert torch.equal(loaded.predict(observation)[0], policy.predict(observation)[0])
    for name, tensor in policy.tensors().items():
        assert torch.equal(loaded.tensors()[name], tensor)


def test_folder_of_a_training_names_its_policy(tmp_path):
    save_policy(random_policy(SPEC), tmp_path / POLICY_FILE)
    assert load_policy(tmp_path).spec == load_policy(str(tmp_path / POLICY_FILE)).spec == SPEC


@pytest.mark.parametrize("name", builtin_policies())
def test_builtin_policies_load(name):
    assert load_policy(f"builtin:{name}").spec.features


# What a policy computes


def test_predict_equals_a_torch_module():
    policy = random_policy(SPEC, scale=2.0)
    policy = dataclasses.replace(policy, mean=policy.mean + 0.3, std=policy.std * 0.5)
    first, last = torch.nn.Linear(len(SPEC.features), 8), torch.nn.Linear(8, 1)
    network = torch.nn.Sequential(first, torch.nn.Tanh(), last, torch.nn.Hardtanh())
    with torch.no_grad():
        for module, weight, bias in zip((first, last), policy.weights, policy.biases, strict=True):
            module.weight.copy_(weight), module.bias.copy_(bias)
    observation = (
        torch.rand(50, len(SPEC.features), generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    action, state = policy.predict(observation, "kept")
    torch.testing.assert_close(action, network((observation - 0.3) / 0.5).detach())
    assert state == "kept"
    assert (action.abs() == 1).any()
    assert (action.abs() < 1).any()


def test_discrete_policy_takes_the_largest_output():
    spec = ControlSpec(action="discrete", controls=("lr", "momentum"))
    table = action_table(spec.controls)
    policy = random_policy(spec, outputs=len(table))
    observation = torch.rand(30, len(spec.features), generator=torch.Generator().manual_seed(0))
    hidden = (observation @ policy.weights[0].T + policy.biases[0]).tanh()
    best = (hidden @ policy.weights[1].T + policy.biases[1]).argmax(1)
    assert torch.equal(policy.predict(observation)[0], table[best])
    assert len(best.unique()) > 1


def test_constant_policy_never_acts():
    spec = ControlSpec(controls=CONTROLLED)
    action, _ = constant_policy(spec, 5).predict(torch.rand(9, len(spec.features)))
    assert action.shape == (9, len(CONTROLLED))
    assert not action.any()


@pytest.mark.parametrize(
    "change",
    [
        {"interval": 0},
        {"weights": ()},
        {"biases": ()},
        {"mean": torch.zeros(3)},
        {"std": torch.zeros(len(SPEC.features))},
        {"std": torch.full((len(SPEC.features),), math.nan)},
        {"mean": torch.full((len(SPEC.features),), math.inf)},
        {"weights": (torch.ones(1, 3),), "biases": (torch.ones(1),)},
        {"weights": (torch.ones(2, len(SPEC.features)),), "biases": (torch.ones(2),)},
        {"weights": (torch.ones(1, len(SPEC.features)).double(),), "biases": (torch.ones(1),)},
        {"weights": (torch.ones(1, len(SPEC.features)).int(),), "biases": (torch.ones(1),)},
    ],
    ids=str,
)
def test_network_that_does_not_fit_is_refused(change):
    with pytest.raises(ValueError, match=r"interval|network|mean|std|layer|weight"):
        dataclasses.replace(random_policy(SPEC), **change)


# Names and paths


def test_unknown_builtin_lists_what_there_is():
    for name in ("builtin:nonsense", "builtin:../policy", "builtin:"):
        with pytest.raises(PolicyFileError, match="built-in") as error:
            load_policy(name)
        assert all(known in str(error.value) for known in builtin_policies())


def test_missing_file_is_named(tmp_path):
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(PolicyFileError, match=str(tmp_path)):
            load_policy(missing)


def test_other_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors"):
        save_policy(random_policy(SPEC), tmp_path / "policy.pt")


def test_every_kind_has_its_tests():
    """A new kind must join these tests or have its own, as QTablePolicy in test_q_policy.py."""
    from lr_gym.policies.policy import KINDS, QTablePolicy

    assert list(KINDS.values()) == [MLPPolicy, QTablePolicy]
