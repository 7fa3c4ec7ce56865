"""train_agent.py --agent sweep gives the same policy on every engine, and resumes on any."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import train_agent
from agents.sweep import SweepLearner
from lr_gym.engine import run_here
from lr_gym.policies.policy import POLICY_FILE

ROOT = Path(__file__).parents[2]
TRAIN = shlex.split(
    "--agent sweep --task quadratic --suite None --horizon 8 --decisions 4 --sweep.rates 4 "
    "--timesteps 48 --selection-runs 2 --selection-every 1 --certificate-runs 0 --guard-runs 0 "
    "--wandb disabled"
)


def train(folder: Path, *more: str) -> tuple[bytes, list[dict[str, float]]]:
    """Train in this process and return the result."""
    train_agent.main([*TRAIN, "--output-dir", str(folder), *more])
    return result_of(folder)


def result_of(folder: Path) -> tuple[bytes, list[dict[str, float]]]:
    """The policy's tensors and the figures of every update, without times."""
    rows = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return tensors_of(folder / POLICY_FILE), rows


def tensors_of(file: Path) -> bytes:
    """The tensors of a policy file: what follows its header, which tells how long it took."""
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("sweep") / "whole", "--workers", "1")


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> Path:
    """A training for two workers that was stopped after the first of three updates."""
    update = SweepLearner.update

    def stop_later(learner: SweepLearner) -> dict[str, float]:
        if learner._done == 1:
            raise KeyboardInterrupt
        return update(learner)

    with monkeypatch.context() as patch:
        patch.setattr(train_agent, "open_engine", lambda *_: contextlib.nullcontext(run_here))
        patch.setattr(SweepLearner, "update", stop_later)
        with pytest.raises(SystemExit, match="--resume"):
            train(tmp_path / "stopped", "--workers", "2")
    return tmp_path / "stopped"


def test_it_resumes_bit_for_bit(whole, stopped, monkeypatch):
    assert len(whole[1]) == 3
    monkeypatch.setattr(train_agent, "open_engine", lambda *_: contextlib.nullcontext(run_here))
    assert train(stopped, "--workers", "2", "--resume") == whole


def test_on_ray_it_resumes_bit_for_bit_too(whole, stopped):
    """The figures and the policy are those of one process."""
    pytest.importorskip("ray")
    options = ["--workers", "2", "--engine", "ray", "--resume", "--output-dir", str(stopped)]
    # in a process of its own, since Ray leaves files and processes open that pytest warns of
    subprocess.run([sys.executable, "train_agent.py", *options], cwd=ROOT, check=True)
    assert result_of(stopped) == whole


def test_other_agents_have_no_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(train_agent, "open_engine", lambda *_: contextlib.nullcontext(run_here))
    with pytest.raises(SystemExit, match="--engine ray is for the agent sweep; got es"):
        train(tmp_path / "es", "--agent", "es", "--engine", "ray")
