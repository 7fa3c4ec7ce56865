"""Q-tables and GARO weights on disk: written atomically, refused if damaged or not finite."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lr_gym.control.spec import ControlSpec
from lr_gym.optim import QLearningController
from lr_gym.optim.contrib.garo_weights import initial_weights, load_weights, save_weights
from lr_gym.optim.contrib.lr_q_control import default_controller
from lr_gym.policies.policy import PolicyFileError, constant_policy, save_policy
from lr_gym.policies.tensor_file import digest


class Kind(NamedTuple):
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    tensor: str


KINDS = {
    "q_table": Kind(default_controller().save, QLearningController.load, "q"),
    "garo": Kind(
        lambda path: save_weights(initial_weights(8, torch.Generator().manual_seed(0)), path),
        load_weights,
        "head",
    ),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request: Any) -> Kind:
    return request.param


@pytest.fixture
def path(kind: Kind, tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "a.safetensors"
    assert kind.write(path) == path
    return path


def parts(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["lr_gym"]), tensors


def refused(kind: Kind, path: Path, reason: str | None = None) -> None:
    with pytest.raises(PolicyFileError, match=reason) as error:
        kind.read(path)
    assert path.name in str(error.value)


def test_truncated_file(kind: Kind, path: Path) -> None:
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(kind, path)


def test_edited_tensor_or_text(kind: Kind, path: Path) -> None:
    content, tensors = parts(path)
    tensors[kind.tensor].add_(1.0)
    save_file(tensors, path, {"lr_gym": json.dumps(content)})
    refused(kind, path, "checksum")
    tensors[kind.tensor].sub_(1.0)
    save_file(tensors, path, {"lr_gym": json.dumps({**content, "more": 1})})
    refused(kind, path, "checksum")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(kind: Kind, path: Path, bad: float) -> None:
    content, tensors = parts(path)
    tensors[kind.tensor].view(-1)[0] = bad
    del content["sha256"]
    save_file(
        tensors, path, {"lr_gym": json.dumps({**content, "sha256": digest(content, tensors)})}
    )
    refused(kind, path, "finite")


def test_wrong_shape(kind: Kind, path: Path) -> None:
    content, tensors = parts(path)
    tensors[kind.tensor] = tensors[kind.tensor][:-1].contiguous()
    del content["sha256"]
    save_file(
        tensors, path, {"lr_gym": json.dumps({**content, "sha256": digest(content, tensors)})}
    )
    refused(kind, path, "shape")


def test_missing_foreign_and_other_kinds(kind: Kind, tmp_path: Path) -> None:
    refused(kind, tmp_path / "none.safetensors", "no policy file")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    refused(kind, tmp_path / "foreign.safetensors", "missing")
    save_policy(constant_policy(ControlSpec(), 3), tmp_path / "policy.safetensors")
    refused(kind, tmp_path / "policy.safetensors", "kind 'mlp'")


def test_failed_save_leaves_the_old_file(
    kind: Kind, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is full")

    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        kind.write(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_ending(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        kind.write(tmp_path / "table.bin")
