"""What evaluate.py logs to wandb: a run of its own, and one for each cell where it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
from lr_gym.benchmark.cell_runs import log_cells
from lr_gym.benchmark.contestants import Baseline
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.tracking import Tracker


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "cache"))


def args(folder: Path, **changes: object) -> evaluate.Args:
    """A small evaluation."""
    options = {
        "optimizers": "adam,sgd",
        "task": ("quadratic",),
        "seeds": 2,
        "budget": 1,
        "tuning_seeds": 1,
        "horizon": 10,
        "workers": 1,
        "wandb": "offline",
    }
    return evaluate.Args(folder, **{**options, **changes})


def wandb_records(folder: Path) -> list[str]:
    """What each offline run of a folder holds: its records, a JSON object a line."""
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json"]
    return [
        subprocess.run(
            [*inspect, str(run)], capture_output=True, text=True, check=True, timeout=600
        ).stdout
        for run in folder.glob("wandb/offline-run-*")
    ]


def run_of(text: str) -> dict[str, str]:
    """The record that describes a run."""
    records = [json.loads(line) for line in text.splitlines()]
    return next(record["run"] for record in records if "run" in record)


def test_the_evaluation_is_a_wandb_run_with_its_table_and_files(tmp_path, cache):
    evaluate.main(args(tmp_path / "out"))
    (text,) = wandb_records(tmp_path / "out")
    assert "score/sgd" in text
    (table,) = (tmp_path / "out").glob("wandb/offline-run-*/files/media/table/ranking*.json")
    ranking = json.loads((tmp_path / "out" / "results.json").read_text())["ranking"]
    assert [row[:2] for row in json.loads(table.read_text())["data"]] == [
        [entry["name"], entry["score"]["mean"]] for entry in ranking
    ]
    for kind in ("report", "results"):
        assert f'"type":"{kind}"' in text.replace(" ", "")


def test_cells_are_wandb_runs_beside_that_of_the_evaluation(tmp_path, cache):
    evaluate.main(args(tmp_path / "out", optimizers="adam", wandb_cells=True))
    runs = [run_of(text) for text in wandb_records(tmp_path / "out")]
    cells = [run for run in runs if run.get("run_group") == "out-quadratic"]
    (whole,) = (run for run in runs if run not in cells)
    assert len(cells) == 2
    assert whole["display_name"] == "evaluate-out"


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
    cell = Cell(Baseline("adam"), 1e-3, "quadratic", 3, test=True, horizon=10)
    outcome = run_cell(cell)
    log_cells(tmp_path, {cell: outcome}, "offline")
    (text,) = wandb_records(tmp_path)
    run = run_of(text)
    assert (run["run_group"], run["display_name"]) == (
        f"{tmp_path.name}-quadratic",
        "adam-lr0.001-seed3",
    )
    assert [
        json.dumps(outcome.test_loss) in line for line in text.splitlines() if '"history"' in line
    ][-1]
    assert "final_test_loss" in text
