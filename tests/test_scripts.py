"""train_agent.py as a user runs it, at a small size."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import train_agent
from lr_gym.envs.rollout import DIVERGED
from lr_gym.envs.vector_env import INITIAL_LR
from lr_gym.policies.policy import load_policy

ROOT = Path(__file__).parent.parent
SMALL = "--horizon 20 --decisions 4 --num-envs 4 --selection-runs 2 --selection-every 2"
QUICK = "--certificate-runs 0 --guard-runs 0 --wandb disabled"
TRAIN = ["train_agent.py", *SMALL.split(), *QUICK.split()]
AGENTS = ("dqn", "q_learning", "es", "garo")  # besides PPO, which the fixture `trained` holds


class Done(NamedTuple):
    """Exit status and what was printed."""

    returncode: int
    stdout: str
    stderr: str


def run(*command: str, check: bool = True) -> Done:
    """Run train_agent.py in this process, which has imported everything already."""
    out = io.StringIO()
    err = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            train_agent.main(list(command[1:]))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):
                print(stop.code, file=err)
    assert not check or code == 0, err.getvalue()
    return Done(code, out.getvalue(), err.getvalue())


def process(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process of its own."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done


def curve(folder: Path) -> list[dict[str, float]]:
    """The figures of every update, without times."""
    rows = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "ppo"
    process(*TRAIN, "--output-dir", str(folder), "--timesteps", "96")
    return folder


def test_training_saves_a_policy_and_a_curve(trained):
    policy = load_policy(trained)
    assert policy.about["tasks"] == "mnist1d-mlp"
    assert policy.about["selection_tasks"] == ["mnist1d-mlp"]
    assert policy.about["cost"].endswith(" minutes, 2 workers")
    assert policy.about["selection_loss"] == min(
        r["selection_loss"] for r in curve(trained) if "selection_loss" in r
    )
    assert [row["step"] for row in curve(trained)] == [1, 2, 3, 4, 5, 6]


def test_same_seed_same_curve_whatever_the_number_of_workers(trained, tmp_path):
    run(*TRAIN, "--output-dir", str(tmp_path / "again"), "--timesteps", "96", "--workers", "4")
    assert curve(tmp_path / "again") == curve(trained)
    run(*TRAIN, "--output-dir", str(tmp_path / "other"), "--timesteps", "96", "--seed", "1")
    assert curve(tmp_path / "other") != curve(trained)


def kill_after(updates: int, command: list[str], folder: Path) -> None:
    """Start a training and kill it as soon as its log holds some updates."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    log = folder / "progress.jsonl"
    deadline = time.monotonic() + 600
    while not (log.exists() and log.read_text().count("\n") >= updates):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def saved_policy(folder):
    """The bytes of a policy file, but for the minutes that its training took."""
    return re.sub(rb"[0-9.]+ minutes", b"", (folder / "policy.safetensors").read_bytes())


def test_a_killed_training_resumes_bit_for_bit(trained, tmp_path):
    """The training is killed twice, at different points."""
    folder = tmp_path / "killed"
    command = [*TRAIN, "--output-dir", str(folder), "--timesteps", "96"]
    kill_after(1, command, folder)
    kill_after(4, [*command, "--resume"], folder)
    load_policy(folder)  # what was saved before can be read
    # The options that are not given are those of the run.
    done = run("train_agent.py", "--resume", "--output-dir", str(folder))
    assert "warning" not in done.stdout
    assert curve(folder) == curve(trained)
    assert saved_policy(folder) == saved_policy(trained)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_resumes_bit_for_bit(agent, tmp_path):
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    command = [*TRAIN, "--agent", agent, "--timesteps", "80"]
    run(*command, "--output-dir", str(whole))
    command += ["--output-dir", str(killed)]
    kill_after(2, command, killed)
    run(*command, "--resume")
    assert curve(killed) == curve(whole)
    assert len(curve(whole)) == 5
    assert saved_policy(killed) == saved_policy(whole)


def test_two_processes_on_one_folder_one_wins(tmp_path):
    folder = tmp_path / "shared"
    command = [*TRAIN, "--output-dir", str(folder), "--timesteps", "4000"]
    first = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not (folder / "args.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = run(*command, "--resume", check=False)
        assert second.returncode != 0
        assert "in use by another process" in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_a_full_disk_leaves_the_last_checkpoint(trained, tmp_path):
    """A limit on the size of files stands for a full disk: resumed with it, then without it."""
    folder = tmp_path / "full"
    command = [*TRAIN, "--output-dir", str(folder), "--timesteps", "96"]
    kill_after(2, command, folder)
    before = (folder / "checkpoint.pt").read_bytes()
    limited = f"ulimit -f 8; exec {shlex.join([sys.executable, *command, '--resume'])}"
    done = subprocess.run(
        ["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 1
    assert "--resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "checkpoint.pt").read_bytes() == before
    run(*command, "--resume")
    assert curve(folder) == curve(trained)


def test_a_suite_is_learned_at_once(tmp_path):
    folder = tmp_path / "suite"
    options = "--suite train --num-envs 28 --selection-runs 14 --timesteps 112"
    run(*TRAIN, *options.split(), "--output-dir", str(folder))
    about = load_policy(folder).about
    assert about["tasks"] == "train"
    assert {"quadratic", "random-0"} <= set(about["selection_tasks"])


def test_random_tasks_resume_bit_for_bit(tmp_path):
    """The tasks are new at every update; the policy is selected by tasks that stay."""
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    options = "--agent es --suite random --slots 2 --selection-suite validation"
    command = [*TRAIN, *options.split(), "--selection-runs", "3", "--timesteps", "64"]
    run(*command, "--output-dir", str(whole))
    command += ["--output-dir", str(killed)]
    kill_after(2, command, killed)
    run(*command, "--resume")
    assert curve(killed) == curve(whole)
    assert len(curve(whole)) == 4
    alone = run(*TRAIN, "--suite", "random", "--output-dir", str(tmp_path / "alone"), check=False)
    assert "--selection-suite" in alone.stderr


def test_a_look_at_the_policy(tmp_path):
    folder = tmp_path / "look"
    options = "--timesteps 16 --certificate-runs 2 --tensorboard"
    done = run(*TRAIN, *options.split(), "--output-dir", str(folder))
    assert "warning: --timesteps 16 makes only 1 update, too few to learn from" in done.stdout
    assert "This tests whether the policy needs what it observes" in done.stdout
    assert "replayed mean schedule" in done.stdout
    assert set(load_policy(folder).about["certificate"]["differences"]) == {
        "replay",
        "shuffled",
        "untrained",
    }
    assert (folder / "layer_lr.png").stat().st_size > 1000
    assert (folder / "episode.gif").stat().st_size > 1000
    assert list((folder / "tensorboard").glob("events.*"))


def test_what_the_policy_saw_is_saved_with_it(tmp_path):
    run(*TRAIN, "--output-dir", str(tmp_path / "guard"), "--timesteps", "16", "--guard-runs", "2")
    policy = load_policy(tmp_path / "guard")
    assert policy.ranges is not None
    unit = math.sqrt(64 / 100)  # of the layers of mnist1d-mlp with 100 inputs; the first has 1
    low, high = INITIAL_LR
    assert policy.ranges.lr.tolist() == pytest.approx([low, high / unit])
    assert (policy.ranges.features[0] <= policy.ranges.features[1]).all()
    assert "selection_loss" in policy.about


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
        (["--preset", "best"], ["best", "default", "source"]),
        (["--suite", "test"], ["test", "train", "random"]),
        (["--suite", "train", "--task", "mnist1d-cnn"], ["mnist1d-cnn", "train", "--suite None"]),
        (
            ["--agent", "garo", "--suite", "random", "--selection-suite", "train"],
            ["garo", "random"],
        ),
        (["--config", "missing.yml"], ["missing.yml"]),
        (["--agent", "dqn", "--action", "recursive"], ["discrete", "recursive"]),
        (["--agent", "q_learning", "--action", "discrete"], ["continuous", "discrete"]),
        (["--agent", "es", "--evolution.window", "9"], ["window", "9"]),
        (["--timesteps", "0"], ["timesteps"]),
        (["--decisions", "0"], ["decisions", "0"]),
        (["--horizon", "0"], ["horizon", "0"]),
        (["--ppo.minibatches", "0"], ["ppo.minibatches", "0"]),
        (["--ppo.twins", "3"], ["no multiple of twins=3"]),
        (["--guard-runs", "-1"], ["guard_runs", "-1"]),
        (["--agent", "es", "--init", "builtin:default"], ["--init", "ppo", "es"]),
        (["--init", "builtin:nobody"], ["built-in", "nobody"]),
        (["--base", "lion"], ["base", "lion", "adamw"]),
        (["--output-dir", __file__], [__file__]),
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
    options = ["--certificate-runs", "2", "--timesteps", "16", "--output-dir", str(folder)]
    process(*command, *options, **clean)
    (run_folder,) = folder.glob("wandb/offline-run-*")
    assert list(run_folder.glob("*.wandb"))
    assert list(run_folder.glob("files/media/images/layer_lr*.png"))
    assert list(run_folder.glob("files/media/videos/episode*.gif"))


def test_a_wandb_that_cannot_be_reached_or_imported_stops_nothing(trained, tmp_path):
    """The curves are those of a training without wandb."""
    command = [part for part in TRAIN if part != "disabled"]
    nobody = {
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_INIT_TIMEOUT": "1",
    }
    done = process(
        *command, "online", "--output-dir", str(tmp_path / "down"), "--timesteps", "96", **nobody
    )
    assert "wandb could not start" in done.stdout
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "wandb.py").write_text("raise ImportError('no wandb here')")
    absent = {"PYTHONPATH": str(tmp_path / "empty")}
    done = process(
        *command, "online", "--output-dir", str(tmp_path / "absent"), "--timesteps", "96", **absent
    )
    assert "no wandb here" in done.stdout
    assert curve(tmp_path / "down") == curve(tmp_path / "absent") == curve(trained)


class Judged:
    """A learner that only has selection losses."""

    def __init__(self, losses):
        self.losses = np.array(losses)

    def selection_losses(self, seeds):
        return self.losses[:, : len(seeds)]


def test_selection_on_one_task_is_the_mean_loss():
    before = np.ones((1, 2))
    assert train_agent.select(Judged([[1.0, 3.0]]), before) == 2.0
    assert train_agent.select(Judged([[1.0, np.inf]]), before) == (1.0 + DIVERGED) / 2


def test_where_losses_are_large_a_divergence_is_worse_than_they_are():
    before = np.array([[1e4, 3e4]])
    other = np.array([[1e4, 3e4], [1.0, 1.0]])
    assert train_agent.select(Judged([[2e4, np.inf]]), before) == (2e4 + 2e5) / 2
    assert train_agent.select(Judged([[np.inf] * 2]), before) > train_agent.select(
        Judged([[5e4] * 2]), before
    )
    assert train_agent.select(Judged([[np.inf] * 2, [1.0] * 2]), other) > 1.0
    assert train_agent.select(Judged([[np.inf] * 2]), np.full((1, 2), np.inf)) == DIVERGED


def test_selection_on_several_tasks_is_what_the_benchmark_ranks_by():
    before = np.array([[2.0, 2.0, 1e3, 2.0], [1.0, 1e-3, 2.0, 1.0]])

    def judge(losses):
        return train_agent.select(Judged(losses), before)

    assert judge([[2.0] * 4, [1.0] * 4]) == pytest.approx(1.0)
    assert judge([[1.8] * 4, [0.9] * 4]) == pytest.approx(0.9)
    # both tasks count the same
    assert judge([[1.8] * 4, [1.0] * 4]) == pytest.approx(0.9**0.5)
    # extremes do not decide
    assert judge([[2.0, 2.0, 2.0, np.inf], [1e-9, 1.0, 1.0, 1.0]]) == pytest.approx(1.0)
