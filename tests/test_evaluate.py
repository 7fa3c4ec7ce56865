"""evaluate.py: the same results twice, after a kill too; errors that name value and fix."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import evaluate
from lr_gym.benchmark import store
from lr_gym.benchmark.command_line import command_of, parse
from lr_gym.benchmark.contestants import entrants
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.significance import Comparison, winner
from lr_gym.benchmark.summary import summarise
from lr_gym.benchmark.terminal import print_results
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import constant_policy, save_policy
from lr_gym.tasks import TASKS

ROOT = Path(__file__).parent.parent
GRID = shlex.split(
    "evaluate.py --policy builtin:mnist1d --optimizers adam,sgd,adam-cosine --task quadratic "
    "--task logistic --seeds 2 --budget 2 --tuning-seeds 1 --horizon 20 --misset --workers 1 "
    "--wandb disabled"
)
DIFFERS = ("timing", "command")


def cache_of(folder: Path) -> Path:
    return folder.parent / f"cache-{folder.name}"


def cells_of(folder: Path) -> dict[str, bytes]:
    """The stored cells of an evaluation by their keys."""
    return {file.stem: file.read_bytes() for file in cache_of(folder).glob("cells/*/*.json")}


def command(folder: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "COLUMNS": "200", "LR_GYM_CACHE": str(cache_of(folder))}
    return [sys.executable, *GRID, "--output-dir", str(folder), *more], environment


def run_here(folder: Path, *more: str) -> None:
    words, environment = command(folder, *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LR_GYM_CACHE", environment["LR_GYM_CACHE"])
        evaluate.main(parse(words[2:]))


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


def test_an_evaluation_goes_on_with_its_own_options(whole, capsys):
    words, _ = command(whole)
    asked = parse(words[2:])
    assert parse(shlex.split(command_of(asked))[2:]) == asked
    assert json.loads((whole / "results.json").read_text())["command"] == command_of(asked)
    folder = ["--resume", "--output-dir", str(whole)]
    again = dataclasses.replace(asked, resume=True)
    assert parse(folder) == parse([*words[2:], "--resume"]) == again
    assert parse([*folder, "--task", "logistic"]).task == ("logistic",)
    evaluate.main(parse(folder))
    assert "nothing was run again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was started with seeds=2, not 3"):
        evaluate.main(parse([*folder, "--seeds", "3"]))


def test_a_folder_of_something_else_is_not_resumed(tmp_path):
    (tmp_path / "args.json").write_text('{"agent": "ppo"}')
    with pytest.raises(ValueError, match=r"holds no evaluation .*agent"):
        parse(["--resume", "--output-dir", str(tmp_path)])


def test_the_help_lists_the_optimizers_and_has_no_empty_lines(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    for name, recipe in OPTIMIZERS.items():
        tuned = "lr tuned" if recipe.lr is None else "lr not tuned"
        assert re.search(rf"^  {name} +{re.escape(recipe.about)} \({tuned}\)$", shown, re.MULTILINE)
    assert not re.search(r"^│ *│$", shown, re.MULTILINE)


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
    deadline = time.monotonic() + 600
    while not cells_of(folder):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    kept = cells_of(folder)
    assert len(kept) < len(cells_of(whole))
    run_here(folder, "--resume")
    found = cells_of(folder)
    assert {key: found[key] for key in kept} == kept  # their seconds would differ if run again
    assert set(found) == set(cells_of(whole))
    assert results_of(folder) == results_of(whole)


def test_another_evaluation_runs_only_what_is_new(whole, tmp_path, monkeypatch):
    before = cells_of(whole)
    ran = []
    attempt = store.attempt
    monkeypatch.setattr(store, "attempt", lambda cell: ran.append(cell) or attempt(cell))
    monkeypatch.setenv("LR_GYM_CACHE", str(cache_of(whole)))
    options = {"optimizers": "adam,sgd,radam", "horizon": 20}
    evaluate.main(args(tmp_path / "another", **options))
    assert {str(cell.contestant) for cell in ran} == {"radam"}
    after = cells_of(whole)
    assert {key: after[key] for key in before} == before


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
    names = ("results.json", "report.html", "progress.jsonl")
    before = {name: (whole / name).read_bytes() for name in names}
    run_here(whole, "--resume")
    assert "nothing was run again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--resume"):
        run_here(whole)
    assert {name: (whole / name).read_bytes() for name in names} == before


def test_one_that_raises_or_diverges_stops_nobody(tmp_path, cache, monkeypatch):
    def broken(model, lr, length):
        raise RuntimeError("out of ideas")

    recipe = OPTIMIZERS["adam"]._replace(make=functools.partial(broken))
    monkeypatch.setitem(OPTIMIZERS, "broken", recipe)
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


def test_a_loss_below_the_optimum_is_named(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(TASKS, "quadratic", dataclasses.replace(TASKS["quadratic"], optimum=50.0))
    with pytest.raises(SystemExit, match=r"'quadratic' ends .* below its optimum 50: set Task.opt"):
        evaluate.main(args(tmp_path / "out"))


def test_the_ranking_says_whose_policy_an_entry_is(whole):
    results = json.loads((whole / "results.json").read_text())
    keys = {entry["name"]: entry["policy"] for entry in results["ranking"]}
    assert keys["policy mnist1d"] == keys["policy mnist1d (tuned lr)"] == "builtin:mnist1d"
    assert keys["adam"] is keys["sgd"] is None
    assert {key for key in keys.values() if key is not None} == set(results["policies"])


@pytest.mark.parametrize("tasks", [1, 2])
def test_names_are_printed_whole_where_there_is_no_terminal(whole, tasks, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    results = json.loads((whole / "results.json").read_text())
    results["tasks"] = dict(list(results["tasks"].items())[:tasks])
    long = "policy runs/a/very/long/path/to/a/folder/with/a/policy (tuned lr)"
    for rows in (results["ranking"], *(task["rows"] for task in results["tasks"].values())):
        for row in rows:
            row["name"] = {"sgd": long}.get(row["name"], row["name"])
    print_results(results)
    lines = capsys.readouterr().out.splitlines()
    for entry in results["ranking"]:
        (line,) = (line for line in lines if line.strip().startswith(f"{entry['name']}  "))
        assert f"{entry['score']['mean']:+.3f}" in line


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
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, words):
    with pytest.raises(SystemExit, match=words):
        evaluate.main(args(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_the_summary_names_losses_as_it_names_wins():
    rows = entrants(["adam", "sgd", "radam"], ["builtin:mnist1d"])[0:1] + entrants(
        ["adam", "sgd", "radam"], []
    )
    pairs = [
        Comparison("policy mnist1d", "adam", 0.5, 0.0, 0.001, "policy mnist1d"),
        Comparison("policy mnist1d", "sgd", -0.5, 0.0, 0.001, "sgd"),
        Comparison("policy mnist1d", "radam", 0.1, 0.5, 1.0, None),
        Comparison("adam", "sgd", -0.5, 0.0, 0.001, "sgd"),
    ]
    across = {"ranking": [{"name": "sgd"}], "winner": winner(pairs), "pairs": pairs}
    lines = summarise(rows, across, 2, 0, {})
    assert lines[0].startswith("No winner over 2 tasks: sgd ranks first")
    expected = "better than 1 (adam), worse than 1 (sgd), no difference shown to 1."
    assert lines[1] == f"policy mnist1d, of 3 baselines: {expected}"
    won = summarise(rows, {**across, "winner": "sgd"}, 1, 0, {})
    assert won[0] == "sgd is the winner on this task: better on average than every other entrant."
    split = summarise(rows, {**across, "winner": "adam"}, 1, 0, {})
    assert split[0].endswith(
        "than every other entrant, though sgd leads the ranking by interquartile means."
    )
    assert not any("guard" in line for line in lines)
    # On one task the losses are named; where nothing is shown, so is what could have been.
    losses = {"policy mnist1d": (2.0, 2.2), "sgd": (1.0, 1.2)}
    found = {
        ("quadratic", name): [Outcome(loss, loss, {}, [], [], [], []) for loss in pair]
        for name, pair in losses.items()
    }
    assert summarise(rows, across, 1, 0, found)[2] == (
        "policy mnist1d against the best baseline, sgd: mean test loss 2.1 against 1.1, worse."
    )
    equal = {**across, "pairs": [pair._replace(better=None) for pair in pairs]}
    assert summarise(rows, equal, 1, 0, found)[2].endswith(
        "no difference shown. With 2 seeds only losses that differ by a factor of 9.17 or more "
        "could have been told apart; give --seeds 10 or more."
    )
    one = summarise(
        rows, across, 1, 0, {("quadratic", "sgd"): [Outcome(1.0, 1.0, {}, [], [], [], [])]}
    )
    assert "of one seed, by which nothing can be tested" in one[0]
    free = Outcome(1.0, 1.0, {}, [], [], [], [])
    trained = {
        ("a", "policy mnist1d"): [free, free._replace(guarded=True)],
        ("b", "policy mnist1d"): [free],
    }
    (said,) = (line for line in summarise(rows, across, 2, 0, trained) if "guard" in line)
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
    plan = evaluate.make_plan(given)
    plan.folder.close()
    assert [row.name for row in plan.rows] == ["policy mnist1d", "adam", "sgd"]
