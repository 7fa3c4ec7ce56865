"""The ranges that a policy has seen: saved in its file, checked, measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from deployed import assert_same, spec_of, train
from guarded import acting, everything, make, metric
from test_q_policy import trained as q_policy
from tiny import TINY, plain_run, random_policy

from lr_gym.analysis.measure_ranges import main, observed_range
from lr_gym.control.action import CONTROLLED
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import controlled_env
from lr_gym.policies.policy import PolicyFileError, load_policy, save_policy
from lr_gym.policies.ranges import ObservedRanges

# In the file


@pytest.mark.parametrize(
    "policy", [random_policy(ControlSpec(controls=CONTROLLED)), q_policy()], ids=["mlp", "q_table"]
)
def test_ranges_are_saved_with_the_policy(policy, tmp_path):
    ranges = everything(policy.spec)
    loaded = load_policy(
        save_policy(dataclasses.replace(policy, ranges=ranges), tmp_path / "a.safetensors")
    )
    assert loaded.ranges is not None
    assert all(torch.equal(a, b) for a, b in zip(loaded.ranges, ranges, strict=True))
    assert load_policy(save_policy(policy, tmp_path / "b.safetensors")).ranges is None


@pytest.mark.parametrize(
    "change",
    [
        {"features": torch.zeros(2, 3)},
        {"offsets": torch.zeros(1)},
        {"lr": torch.tensor([1.0, 0.1])},
        {"lr": torch.tensor([0.0, 0.1])},
        {"lr": torch.tensor([0.1, torch.inf])},
        {"lr": torch.tensor([0.1, 1.0]).double()},
    ],
)
@pytest.mark.parametrize(
    "policy", [random_policy(ControlSpec(controls=CONTROLLED)), q_policy()], ids=["mlp", "q_table"]
)
def test_wrong_ranges_are_refused(policy, change):
    with pytest.raises(ValueError, match=rf"ranges\.{next(iter(change))}"):
        dataclasses.replace(policy, ranges=everything(policy.spec)._replace(**change))


def test_a_part_of_the_ranges_is_refused(tmp_path, monkeypatch):
    policy = acting(everything)
    monkeypatch.setattr(ObservedRanges, "tensors", lambda self: {"ranges.lr": self.lr})
    with pytest.raises(PolicyFileError, match=r"ranges\.features"):
        load_policy(save_policy(policy, tmp_path / "a.safetensors"))


# Measured


def test_the_range_holds_what_a_training_shows_and_the_guard_lets_it_pass():
    """With its guard a deployed policy equals, to the bit, the one without a guard."""
    policy = random_policy(spec_of(base="sgd"), interval=1)
    env = controlled_env(policy.spec, TINY, 4, (0.01, 0.01))
    ranges = observed_range(policy, [env], seed=7)
    ranges.check(len(policy.spec.features), 1)
    assert ranges.lr.tolist() == pytest.approx([0.01, 0.01])
    env.reset(seed=7)
    traces = []
    for own in (None, ranges):
        model, loss_at = plain_run(TINY, int(env.runs.inner.run_seed[0]), torch.float32)
        options = {"total_steps": TINY.horizon, "base": "sgd", "weight_decay": 0.0}
        optimizer = make(model, dataclasses.replace(policy, ranges=own), **options)
        traces.append(train(optimizer, model, loss_at, range(TINY.horizon)))
    assert_same(*traces)
    assert metric(optimizer, "trust") == [1.0, 1.0]


def test_diverged_trainings_are_left_out():
    policy = random_policy(spec_of(base="sgd"), interval=1)
    sane = observed_range(policy, [controlled_env(policy.spec, TINY, 3, 0.01)])
    env = controlled_env(policy.spec, TINY, 3, 1e6)
    with pytest.raises(ValueError, match="diverged"):
        observed_range(policy, [env])
    both = observed_range(
        policy,
        [controlled_env(policy.spec, TINY, 3, 0.01), controlled_env(policy.spec, TINY, 3, 1e6)],
    )
    assert torch.equal(both.features, sane.features)


def test_a_policy_file_is_given_its_range(tmp_path):
    spec = ControlSpec(decisions=4)
    file = save_policy(
        dataclasses.replace(random_policy(spec), about={"initial_lr": [1e-3, 1e-2]}),
        tmp_path / "policy.safetensors",
    )
    main(str(tmp_path), "quadratic", "mnist1d-mlp")
    policy = load_policy(file)
    assert policy.ranges is not None
    units = [controlled_env(spec, name, 1, 1e-3).lr_units for name in ("quadratic", "mnist1d-mlp")]
    lowest, highest = min(map(min, units)), max(map(max, units))
    assert highest > lowest
    assert policy.ranges.lr.tolist() == pytest.approx([1e-3 / highest, 1e-2 / lowest])
    assert policy.about == {"initial_lr": [1e-3, 1e-2]}
    assert policy.ranges.features[:, spec.features.index("progress")].tolist() == [-1.0, 1.0]
