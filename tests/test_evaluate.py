"""evaluate.py: the same results twice, after a kill too; errors that name value and fix.

A report worth opening.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro

import evaluate
from lr_gym.benchmark.cell_runs import log_cells
from lr_gym.benchmark.contestants import OPTIMIZERS, entrants
from lr_gym.benchmark.results import summarise
from lr_gym.benchmark.run import Cell, Contestant, Outcome, run_cell
from lr_gym.benchmark.significance import Comparison, winner
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import constant_policy, save_policy
from lr_gym.tracking import Tracker

ROOT = Path(__file__).parent.parent
GRID = [
    *(
        "evaluate.py",
        "--policy",
        "builtin:mnist1d",
        "--optimizers",
        "adam,sgd,adam-cosine",
        "--task",
        "quadratic",
    ),
    *(
        "--task",
        "logistic",
        "--seeds",
        "2",
        "--budget",
        "2",
        "--tuning-seeds",
        "1",
        "--horizon",
        "20",
        "--misset",
    ),
    *("--workers", "1", "--wandb", "disabled"),
]
DIFFERS = ("timing", "command")


def command(folder: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    environment = {
        **os.environ,
        "COLUMNS": "200",
        "LR_GYM_CACHE": str(folder.parent / f"cache-{folder.name}"),
    }
    return [sys.executable, *GRID, "--output-dir", str(folder), *more], environment


def run_here(folder: Path, *more: str) -> None:
    words, environment = command(folder, *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LR_GYM_CACHE", environment["LR_GYM_CACHE"])
        evaluate.main(tyro.cli(evaluate.Args, args=words[2:]))


def results_of(folder: Path) -> dict[str, object]:
    return {
        k: v
        for k, v in json.loads((folder / "results.json").read_text()).items()
        if k not in DIFFERS
    }


def args(folder: Path, **changes: object) -> evaluate.Args:
    options = {
        "optimizers": "adam,sgd",
        "task": ("quadratic",),
        "seeds": 2,
        "budget": 2,
        "tuning_seeds": 1,
        "horizon": 10,
        "workers": 1,
        "wandb": "disabled",
    }
    return evaluate.Args(folder, **{**options, **changes})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "whole"
    run_here(folder)
    return folder


def test_results_hold_what_was_asked_for(whole):
    results = json.loads((whole / "results.json").read_text())
    assert list(results["tasks"]) == ["quadratic", "logistic"]
    names = {entry["name"] for entry in results["ranking"]}
    assert names == {"policy mnist1d", "policy mnist1d (tuned lr)", "adam", "sgd", "adam-cosine"}
    means = [entry["score"]["mean"] for entry in results["ranking"]]
    assert means == sorted(means, reverse=True)
    assert (
        next(entry for entry in results["ranking"] if entry["name"] == "adam")["score"]["mean"]
        == 0.0
    )
    for task in results["tasks"].values():
        assert set(task["tuning"]) == {"policy mnist1d (tuned lr)", "sgd", "adam-cosine"}
        for row in task["rows"]:
            assert len(row["test_losses"]) == 2
            if row["name"] in task["tuning"]:  # the best of its list by selection loss
                trials = [
                    (trial["loss"], trial["lr"])
                    for trial in task["tuning"][row["name"]]
                    if trial["loss"]
                ]
                assert row["lr"] == min(trials)[1]
    assert [point["factor"] for point in results["misset"][0]["points"]] == [
        0.01,
        0.1,
        1.0,
        10.0,
        100.0,
    ]
    right = next(entry for entry in results["misset"] if entry["name"] == "sgd")["points"][2][
        "test_loss"
    ]["logistic"]
    row = next(row for row in results["tasks"]["logistic"]["rows"] if row["name"] == "sgd")
    assert right == pytest.approx(row["test_loss"]["mean"])


def test_a_killed_evaluation_resumes_without_repeating_a_cell(whole, tmp_path):
    folder = tmp_path / "killed"
    words, environment = command(folder)
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    file, deadline = folder / "cells.jsonl", time.monotonic() + 600
    while not (file.exists() and file.read_bytes().count(b"\n")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    kept = file.read_bytes()[: file.read_bytes().rindex(b"\n") + 1]
    run_here(folder, "--resume")
    assert file.read_bytes().startswith(kept)
    keys = [json.loads(line)["key"] for line in file.read_text().splitlines()]
    assert len(keys) == len(set(keys))
    assert sorted(keys) == sorted(
        json.loads(line)["key"] for line in (whole / "cells.jsonl").read_text().splitlines()
    )
    assert results_of(folder) == results_of(whole)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(SystemExit, match=r"error: .*notes\.txt"):
        evaluate.main(args(file))
    assert file.read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_evaluation_that_stops_says_how_to_go_on(error, tmp_path, cache, monkeypatch):
    def stop(*rest: object) -> None:
        raise error

    monkeypatch.setattr(evaluate, "write_report", stop)
    with pytest.raises(SystemExit, match=r"continue with: python .* --resume"):
        evaluate.main(args(tmp_path / "out"))


def test_a_complete_evaluation_is_shown_and_never_overwritten(whole, capsys):
    names = ("results.json", "report.html", "cells.jsonl", "progress.jsonl")
    before = {name: (whole / name).read_bytes() for name in names}
    run_here(whole, "--resume")
    assert "nothing was run again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--resume"):
        run_here(whole)
    assert {name: (whole / name).read_bytes() for name in names} == before


def test_one_that_raises_or_diverges_stops_nobody(tmp_path, cache, monkeypatch):
    def broken(model, lr, horizon):
        raise RuntimeError("out of ideas")

    monkeypatch.setitem(OPTIMIZERS, "broken", OPTIMIZERS["adam"]._replace(make=broken))
    monkeypatch.setitem(OPTIMIZERS, "wild", OPTIMIZERS["sgd"]._replace(lr=1e9))
    folder = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"2 trainings raised an error.*out of ideas"):
        evaluate.main(args(folder, optimizers="adam,broken,wild,sgd"))
    results = json.loads((folder / "results.json").read_text())
    rows = {row["name"]: row for row in results["tasks"]["quadratic"]["rows"]}
    assert [
        (rows[name]["diverged"], rows[name]["raised"]) for name in ("adam", "broken", "wild", "sgd")
    ] == [
        (0, 0),
        (0, 2),
        (2, 0),
        (0, 0),
    ]
    assert rows["sgd"]["test_loss"]["mean"] is not None
    html = (folder / "report.html").read_text()
    assert "RuntimeError: out of ideas" in html
    assert "diverged" in html


def test_suites_say_what_is_left_out(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setattr(
        evaluate, "suite_tasks", lambda suite: (["quadratic"], {"imdb-bert": "no GPU is here"})
    )
    evaluate.main(args(tmp_path / "out", task=(), suite="test"))
    assert "skipped imdb-bert: no GPU is here" in capsys.readouterr().out
    assert "Left out: imdb-bert: no GPU is here" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizers": "adam,adamant"}, "adamant.*adam-cosine"),
        ({"optimizers": ""}, "nothing to compare.*--optimizers"),
        ({"policy": ("builtin:nobody",)}, "nobody.*default"),
        ({"policy": ("/nowhere/missing.safetensors",)}, "missing.safetensors"),
        ({"task": ("mnist2d",)}, "mnist2d.*mnist1d-mlp"),
        ({"suite": "test"}, "--task or --suite"),
        ({"seeds": 0}, "seeds.*at least 1.*0"),
        ({"budget": 0}, "budget"),
        ({"horizon": 0}, "horizon"),
        ({"reuse": ("/nowhere",)}, "--reuse /nowhere.*cells.jsonl"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, words):
    with pytest.raises(SystemExit, match=words):
        evaluate.main(args(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def wandb_records(folder: Path) -> str:
    """What the only offline run of a folder holds, a JSON object a line."""
    (run,) = folder.glob("wandb/offline-run-*")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    return subprocess.run(inspect, capture_output=True, text=True, check=True, timeout=600).stdout


def test_the_evaluation_is_a_wandb_run_with_its_table_and_files(tmp_path, cache):
    small = {
        "task": ("quadratic",),
        "policy": (),
        "optimizers": "adam,sgd",
        "misset": False,
        "budget": 1,
    }
    evaluate.main(args(tmp_path / "out", wandb="offline", **small))
    text = wandb_records(tmp_path / "out")
    assert "score/sgd" in text
    (table,) = (tmp_path / "out").glob("wandb/offline-run-*/files/media/table/ranking*.json")
    ranking = json.loads((tmp_path / "out" / "results.json").read_text())["ranking"]
    assert [row[:2] for row in json.loads(table.read_text())["data"]] == [
        [entry["name"], entry["score"]["mean"]] for entry in ranking
    ]
    for kind in ("report", "results"):
        assert f'"type":"{kind}"' in text.replace(" ", "")


def test_cells_are_wandb_runs_beside_that_of_the_evaluation(tmp_path, cache):
    small = {
        "task": ("quadratic",),
        "policy": (),
        "optimizers": "adam",
        "misset": False,
        "seeds": 2,
    }
    evaluate.main(args(tmp_path / "out", wandb="offline", wandb_cells=True, **small))
    runs = [file.read_bytes() for file in (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")]
    assert len(runs) == 1 + 2
    assert sum(b"evaluate-out" in run for run in runs) == 1
    assert sum(b"out-quadratic" in run for run in runs) == 2


@pytest.mark.parametrize(
    ("environment", "mode"), [("offline", "offline"), ("disabled", "disabled"), ("", "online")]
)
def test_the_users_wandb_mode_counts_where_none_is_asked_for(
    environment, mode, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setattr("wandb.init", lambda **options: asked.append(options["mode"]))
    Tracker(tmp_path, {}, wandb="auto", name="run").close()
    assert asked == [mode]


def test_each_cell_is_a_wandb_run_of_its_group(tmp_path):
    cell = Cell(Contestant("adam", 1e-3), "quadratic", 3, test=True, horizon=10)
    outcome = run_cell(cell)
    log_cells(tmp_path, {cell: outcome}, "offline")
    text = wandb_records(tmp_path)
    records = [json.loads(line) for line in text.splitlines()]
    run = next(record["run"] for record in records if "run" in record)
    assert (run["run_group"], run["display_name"]) == (
        f"{tmp_path.name}-quadratic",
        "adam-lr0.001-seed3",
    )
    assert [
        json.dumps(outcome.test_loss) in line for line in text.splitlines() if '"history"' in line
    ][-1]
    assert "final_test_loss" in text


def test_the_summary_names_losses_as_it_names_wins():
    rows = entrants(["adam", "sgd", "radam"], ["builtin:mnist1d"])[0:1] + entrants(
        ["adam", "sgd", "radam"], []
    )
    pairs = [
        Comparison("policy mnist1d", "adam", 0.5, 0.0, 0.001, "policy mnist1d"),
        Comparison("policy mnist1d", "sgd", -0.5, 0.0, 0.001, "sgd"),
        Comparison("policy mnist1d", "radam", 0.1, 0.5, 1.0, ""),
        Comparison("adam", "sgd", -0.5, 0.0, 0.001, "sgd"),
    ]
    across = {"ranking": [{"name": "sgd"}], "winner": winner(pairs), "pairs": pairs}
    lines = summarise(rows, across, 2, [], {})
    assert lines[0].startswith("No winner over 2 tasks: sgd ranks first")
    expected = "better than 1 (adam), worse than 1 (sgd), no difference shown to 1."
    assert lines[1] == f"policy mnist1d, of 3 baselines: {expected}"
    won = summarise(rows, {**across, "winner": "sgd"}, 1, [], {})
    assert won[0] == "sgd is the winner on this task: better on average than every other entrant."
    split = summarise(rows, {**across, "winner": "adam"}, 1, [], {})
    assert split[0].endswith(
        "than every other entrant, though sgd leads the ranking by interquartile means."
    )
    assert not any("guard" in line for line in lines)
    one = summarise(
        rows, across, 1, [], {("quadratic", "sgd"): [Outcome(1.0, 1.0, {}, [], [], [], [])]}
    )
    assert "of one seed, by which nothing can be tested" in one[0]
    free = Outcome(1.0, 1.0, {}, [], [], [], [])
    trained = {
        ("a", "policy mnist1d"): [free, free._replace(guarded=True)],
        ("b", "policy mnist1d"): [free],
    }
    (said,) = (line for line in summarise(rows, across, 2, [], trained) if "guard" in line)
    assert said.startswith("policy mnist1d: its guard acted in 1 of 3 trainings")


def test_a_certificate_is_printed(cache, tmp_path, capsys):
    gap = {"mean": -0.1, "low": -0.2, "high": -0.05}
    made = {
        "task": "quadratic",
        "seeds": 4,
        "differences": dict.fromkeys(("replay", "shuffled", "untrained"), gap),
    }
    policy = dataclasses.replace(constant_policy(ControlSpec(), 5), about={"certificate": made})
    file = save_policy(policy, tmp_path / "policy.safetensors")
    evaluate.main(args(tmp_path / "out", optimizers="adam", policy=(str(file),), seeds=1, budget=1))
    printed = capsys.readouterr().out
    assert "better than its own replayed mean schedule" in printed
    assert "It is feedback." in printed


def test_data_dir_is_where_data_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("LR_GYM_DATA", "elsewhere")  # restored afterwards

    def read(folder: Path) -> None:
        raise FileNotFoundError(f"looked in {folder}")  # spares a download

    monkeypatch.setattr("lr_gym.tasks.images.read_cifar10", read)
    with pytest.raises(SystemExit, match=f"looked in {tmp_path}"):
        evaluate.main(args(tmp_path / "out", task=("cifar10-resnet18",), data_dir=tmp_path))


def test_a_policy_may_be_entered_untuned_only(tmp_path):
    given = args(tmp_path / "out", policy=("builtin:mnist1d",), tune_policies=False)
    plan = evaluate.build(given)
    plan.folder.close()
    assert [row.name for row in plan.rows] == ["policy mnist1d", "adam", "sgd"]
