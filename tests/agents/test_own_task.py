"""A task of one's own: train_agent.py learns on it by its place, `module:TASK`."""

from __future__ import annotations

import json
import sys

import pytest

import train_agent
from lr_gym.policies.policy import load_policy

MODULE = """
import functools

import torch
from torch import nn

from lr_gym.tasks import Data, Split, Task

NOTHING = 3


@functools.cache
def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 4, generator=generator)
    targets = inputs.sum(1, keepdim=True)
    return Data(*(Split(inputs[i : i + 20], targets[i : i + 20]) for i in range(0, 80, 20)))


def loss(outputs, targets):
    return (outputs - targets).square().mean(1)


TASK = Task(
    name="sums",
    about="sums of four numbers",
    model=lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)),
    data=data,
    loss=loss,
    metrics={},
    batch_size=5,
    horizon=12,
)
"""
PLACE = "own_package.own_tasks:TASK"
OPTIONS = "--decisions 4 --num-envs 4 --selection-runs 2 --selection-every 1 --wandb disabled"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the user, who starts the script there."""
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "own_tasks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
        del sys.modules[name]


def train(folder, *words: str) -> None:
    """Train on the task, into an output folder."""
    command = ["--task", PLACE, *OPTIONS.split(), "--output-dir", str(folder / "run"), *words]
    train_agent.main(command)


def progress(folder) -> list[dict[str, float]]:
    """The figures of every update, without times."""
    rows = map(json.loads, (folder / "run" / "progress.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_it_is_learned_measured_and_certified(folder, capsys):
    train(folder, "--timesteps", "32", "--certificate-runs", "2", "--guard-runs", "2")
    policy = load_policy(folder / "run")
    assert policy.about["tasks"] == PLACE
    assert policy.about["selection_tasks"] == ["sums"]
    assert policy.about["certificate"]["task"] == "sums"
    assert policy.ranges is not None
    assert "replayed mean schedule" in capsys.readouterr().out
    assert (folder / "run" / "layer_lr.png").exists()
    assert json.loads((folder / "run" / "args.json").read_text())["task"] == PLACE


def test_it_resumes(folder, monkeypatch):
    """The run is stopped after its first update."""
    words = ["--timesteps", "48", "--certificate-runs", "0", "--guard-runs", "0"]
    train(folder, *words)
    whole = progress(folder)
    (folder / "run").rename(folder / "whole")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lr_gym.tracking.Tracker.log", stop)
        with pytest.raises(SystemExit, match="--resume"):
            train(folder, *words)
    train(folder, *words, "--resume")
    assert progress(folder) == whole[1:]
    assert len(whole) == 3


def test_processes_find_it(folder):
    """The agent sweep plays in processes of its own."""
    words = ["--agent", "sweep", "--timesteps", "96", "--sweep.rates", "4", "--workers", "2"]
    train(folder, *words, "--certificate-runs", "0", "--guard-runs", "0")
    assert load_policy(folder / "run").about["agent"] == "sweep"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("own_package.own_tasks:NOTHING", ["NOTHING", "Task", "TASK"]),
        ("own_package.own_tasks:MISSING", ["MISSING", "own_tasks.py"]),
        ("own_package.missing:TASK", ["own_package.missing"]),
        ("own_package/own_tasks.py:TASK", ["own_package/own_tasks.py:TASK", "module:TASK"]),
    ],
)
def test_a_wrong_place_is_named(folder, place, words):
    with pytest.raises(SystemExit) as error:
        train_agent.main(["--task", place, "--output-dir", str(folder / "run")])
    for word in words:
        assert word in str(error.value)
    assert not (folder / "run").exists()
