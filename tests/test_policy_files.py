"""Policy files: saving is atomic, and nothing but an intact file is ever accepted."""

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

from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import (
    PolicyFileError,
    load_policy,
    save_policy,
)
from lr_gym.policies.tensor_file import MAX_BYTES, digest

SPEC = ControlSpec()


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


def test_loaded_policy_does_not_depend_on_the_file_any_more(path):
    policy = load_policy(path)
    before = {name: tensor.clone() for name, tensor in policy.tensors().items()}
    # The file is overwritten in place, as cp does; a memory-mapped tensor would change with it.
    with path.open("r+b") as file:
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
        ("base", "lion"), ("schedule", "step"), ("granularity", "tensor"),
        ("controls", ["beta2"]), ("controls", 3), ("action", "absolute"), ("action", ["recursive"]),
        ("decisions", 0), ("decisions", "50"), ("decisions", True), ("extra", 1),
        ("features", ["depth", "smell"]), ("features", [["depth"]]), ("features", None),
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
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(path):
    before = path.read_bytes()
    for about in ({"loss": math.nan}, {"path": path}):
        with pytest.raises((ValueError, TypeError)):
            save_policy(dataclasses.replace(random_policy(SPEC), about=about), path)
    assert path.read_bytes() == before


def test_only_policies_of_known_classes_are_saved(path):
    with pytest.raises(TypeError, match="got object: give the object itself to PolicyOptimizer"):
        save_policy(object(), path.parent / "other.safetensors")
    assert not (path.parent / "other.safetensors").exists()


def test_save_replaces_the_old_file(path):
    save_policy(random_policy(SPEC, seed=9, interval=11), path)
    assert load_policy(path).interval == 11
