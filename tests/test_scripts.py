"""train_agent.py as a user runs it: in processes of its own, at a small size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lr_gym.policy import load_policy

ROOT = Path(__file__).parent.parent
TRAIN = [
    *("train_agent.py", "--agent", "ppo", "--task", "mnist1d-mlp", "--horizon", "20", "--decisions", "4"),
    *("--num-envs", "4", "--selection-runs", "2", "--selection-every", "2", "--wandb", "disabled"),
]


def run(*command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def curve(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "ppo"
    run(*TRAIN, "--output-dir", str(folder), "--timesteps", "96")
    return folder


def test_training_saves_a_policy_and_a_curve(trained):
    policy = load_policy(trained)
    assert policy.about["tasks"] == ["mnist1d-mlp"]
    assert policy.about["selection_loss"] == min(r["selection_loss"] for r in curve(trained) if "selection_loss" in r)
    assert [row["step"] for row in curve(trained)] == [1, 2, 3, 4, 5, 6]


def test_same_seed_same_curve_whatever_the_number_of_workers(trained, tmp_path):
    run(*TRAIN, "--output-dir", str(tmp_path / "again"), "--timesteps", "96", "--workers", "4")
    assert curve(tmp_path / "again") == curve(trained)
    run(*TRAIN, "--output-dir", str(tmp_path / "other"), "--timesteps", "96", "--seed", "1")
    assert curve(tmp_path / "other") != curve(trained)


def test_a_killed_training_resumes_bit_for_bit(trained, tmp_path):
    folder = tmp_path / "killed"
    command = [*TRAIN, "--output-dir", str(folder), "--timesteps", "96"]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    log = folder / "progress.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    load_policy(folder)  # what was saved before can be read
    run(*command, "--resume")
    assert curve(folder) == curve(trained)
    assert (folder / "policy.safetensors").read_bytes() == (trained / "policy.safetensors").read_bytes()


def test_a_folder_with_a_run_is_never_overwritten(trained):
    before = {file: file.read_bytes() for file in trained.iterdir() if file.is_file()}
    again = run(*TRAIN, "--output-dir", str(trained), check=False)
    assert again.returncode != 0
    assert "--resume" in again.stderr
    changed = run(*TRAIN, "--output-dir", str(trained), "--resume", "--seed", "5", check=False)
    assert changed.returncode != 0
    assert "seed=0" in changed.stderr
    assert {file: file.read_bytes() for file in trained.iterdir() if file.is_file()} == before


def test_nothing_to_resume(tmp_path):
    done = run(*TRAIN, "--output-dir", str(tmp_path / "none"), "--resume", check=False)
    assert done.returncode != 0
    assert "no run to resume" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "mnist2d"], ["mnist2d", "mnist1d-mlp"]),
        (["--agent", "sarsa"], ["sarsa", "ppo"]),
        (["--initial-lr", "0", "1"], ["initial_lr"]),
        (["--num-envs", "3", "--workers", "2"], ["num_envs=3", "workers=2"]),
        (["--timesteps", "0"], ["timesteps"]),
        (["--reward", "gold"], ["gold", "log_loss"]),
    ],
)
def test_bad_arguments_are_named(arguments, words, tmp_path):
    done = run(*TRAIN, "--output-dir", str(tmp_path / "bad"), *arguments, check=False)
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_wandb_runs_offline_where_nobody_is_logged_in(tmp_path):
    folder = tmp_path / "ppo"
    command = [part for part in TRAIN if part not in ("--wandb", "disabled")]
    clean = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_API_KEY": ""}
    run(*command, "--output-dir", str(folder), "--timesteps", "16", **clean)
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
