"""Policy files: what is saved comes back, and nothing but an intact file is ever accepted."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from tiny import random_policy

from lr_gym.control.action import ACTIONS, CONTROLLED, action_table
from lr_gym.control.observation import FEATURES
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
from lr_gym.policies.tensor_file import MAX_BYTES, digest
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


@pytest.fixture
def path(tmp_path):
    return save_policy(
        dataclasses.replace(random_policy(SPEC), about={"tasks": ["tiny"]}),
        tmp_path / "a.safetensors",
    )


def parts(path):
    """JSON, checksum and tensors of a policy file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    content = json.loads(metadata["lr_gym"])
    return content, content.pop("sha256"), tensors


def write(path, content, checksum, tensors):
    """Write a file of these parts, right or wrong."""
    text = json.dumps({**content, "sha256": checksum} if isinstance(content, dict) else content)
    save_file(tensors, path, {"lr_gym": text})


def forge(path, content, tensors):
    """Write a file whose checksum is right, whatever it holds."""
    write(path, content, digest(content, tensors), tensors)


def assert_refused(path, reason=None):
    with pytest.raises(PolicyFileError, match=reason) as error:
        load_policy(path)
    assert path.name in str(error.value)


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
    assert action.shape == (9, 3)
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


def test_loaded_policy_does_not_depend_on_the_file_any_more(path):
    policy = load_policy(path)
    before = {name: tensor.clone() for name, tensor in policy.tensors().items()}
    with path.open("r+b") as file:  # in place, as cp does; a memory-mapped tensor would follow
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.tensors().items())


# Damage


def test_every_truncation_is_refused(path):
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_refused(path)
    path.write_bytes(whole + b"\0")
    assert_refused(path)


def test_every_flipped_bit_is_refused(path):
    """About 400 places, spread over header, metadata and weights."""
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 400)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert_refused(path)
    path.write_bytes(whole)
    load_policy(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("adamw", "adamx"), ("constant", "cosine__"), ("tiny", "tidy"), ("interval", "intervax")],
)
def test_edited_metadata_is_refused(path, old, new):
    whole = path.read_bytes()
    spec = load_policy(path).spec
    old = spec.schedule if old == "constant" else old
    new = new[: len(old)].ljust(len(old), "_")
    assert old.encode() in whole
    path.write_bytes(whole.replace(old.encode(), new.encode()))
    assert_refused(path)


# Files with a right checksum and wrong content


def test_forging_itself_works(path):
    content, checksum, tensors = parts(path)
    assert checksum == digest(content, tensors)
    forge(path, content, tensors)
    load_policy(path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("schema_version", 0, "schema version 0"),
        ("schema_version", 2, "schema version 2"),
        ("schema_version", "1", "schema version '1'"),
        ("kind", "transformer", "transformer"),
        ("kind", ["mlp"], None),
        ("interval", 0, "interval"),
        ("interval", -3, "interval"),
        ("interval", "3", "interval"),
        ("interval", 2.5, "interval"),
        ("interval", None, "interval"),
        ("about", "me", "about"),
        ("about", None, "about"),
        ("spec", {}, "spec"),
        ("spec", None, None),
        ("spec", [], None),
    ],
)
def test_wrong_metadata_is_refused(path, key, value, reason):
    content, _, tensors = parts(path)
    forge(path, {**content, key: value}, tensors)
    assert_refused(path, reason)
    del content[key]
    forge(path, content, tensors)
    assert_refused(path, key)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base", "lion"), ("schedule", "step"), ("granularity", "tensor"), ("controls", ["beta2"]), ("controls", 3),
        ("action", "absolute"), ("action", ["recursive"]), ("decisions", 0), ("decisions", "50"), ("decisions", True),
        ("features", ["depth", "smell"]), ("features", [["depth"]]), ("features", None), ("extra", 1),
    ],
)  # fmt: skip
def test_wrong_spec_is_refused(path, field, value):
    content, _, tensors = parts(path)
    content["spec"][field] = value
    forge(path, content, tensors)
    assert_refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"weight.0": t["weight.0"].fill_(math.nan)},
        lambda t: t | {"bias.1": t["bias.1"].fill_(math.inf)},
        lambda t: t | {"normaliser.std": t["normaliser.std"].zero_()},
        lambda t: t | {"normaliser.mean": t["normaliser.mean"].repeat(2)},
        lambda t: t | {"weight.0": t["weight.0"][:, :-1].contiguous()},
        lambda t: t | {"weight.0": t["weight.0"].flatten()},
        lambda t: t | {"weight.1": torch.ones(2, 8), "bias.1": torch.ones(2)},
        lambda t: t | {"weight.1": torch.ones(0, 8), "bias.1": torch.ones(0)},
        lambda t: t | {"weight.2": torch.ones(1, 1)},
        lambda t: t | {"extra": torch.ones(1)},
        lambda t: {k: v for k, v in t.items() if k != "bias.0"},
        lambda t: t | {"weight.0": t["weight.0"].double()},
        lambda t: t | {"weight.0": t["weight.0"].half()},
        lambda t: t | {"weight.0": t["weight.0"].int()},
        lambda t: {},
    ],
)
def test_wrong_tensors_are_refused(path, change):
    content, _, tensors = parts(path)
    forge(path, content, change(tensors))
    assert_refused(path)


def test_bfloat16_weights_are_refused(path):
    content, checksum, tensors = parts(path)
    tensors["weight.0"] = tensors["weight.0"].bfloat16()
    write(path, content, checksum, tensors)
    assert_refused(path)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "3", "{" * 10, "[" * 100_000, "9" * 10_000]
)
def test_metadata_that_is_no_policy_is_refused(path, text):
    _, _, tensors = parts(path)
    save_file(tensors, path, {"lr_gym": text})
    assert_refused(path)


def test_other_files_are_refused(path):
    _, _, tensors = parts(path)
    contents = {
        "plain safetensors": save(tensors),
        "text": b"not a policy at all",
        "zeros": bytes(1000),
        "pickle": pickle.dumps({"weight.0": [1.0]}),
        "huge header": (2**62).to_bytes(8, "little") + b"{}",
    }
    for content in contents.values():
        path.write_bytes(content)
        assert_refused(path)
    torch.save(tensors, path)
    assert_refused(path)


def test_pickle_is_never_run(path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(path) + ".pwned",)

    path.write_bytes(pickle.dumps(Payload()))
    assert_refused(path)
    torch.save(Payload(), path)
    assert_refused(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_oversized_file_is_refused_unread(path):
    with path.open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    assert_refused(path, "more than")


# Saving is atomic


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_failed_save_leaves_the_old_file(path, monkeypatch, broken):
    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    before = path.read_bytes()
    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk is full"):
        save_policy(random_policy(SPEC, seed=1), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [
        path.name
    ]  # no temporary file is left behind


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(path):
    before = path.read_bytes()
    for about in ({"loss": math.nan}, {"path": path}):
        with pytest.raises((ValueError, TypeError)):
            save_policy(dataclasses.replace(random_policy(SPEC), about=about), path)
    assert path.read_bytes() == before


def test_save_replaces_the_old_file(path):
    save_policy(random_policy(SPEC, seed=9, interval=11), path)
    assert load_policy(path).interval == 11


def test_every_kind_has_its_tests():
    """A new kind must join these tests, or have its own.

    Those of QTablePolicy are in test_q_policy.py.
    """
    from lr_gym.policies.policy import KINDS, QTablePolicy

    assert list(KINDS.values()) == [MLPPolicy, QTablePolicy]
