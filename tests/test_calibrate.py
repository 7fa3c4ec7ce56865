"""Calibrated opponents: one learning rate for all tasks, chosen as policies are selected."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from lr_gym.benchmark import calibrate as calibrate_module
from lr_gym.benchmark.calibrate import RATES, Args, calibrate, score_rates
from lr_gym.benchmark.calibrated import calibrated_recipes, read_calibrated
from lr_gym.benchmark.command_line import parse
from lr_gym.benchmark.contestants import Baseline
from lr_gym.benchmark.fingerprint import fingerprint
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.benchmark.tuning import TUNING_SEED

TASKS = ("quadratic", "logistic")


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "calibrated.json"
    return Args("nadamw-wsd,muon-wsd", output=output, task=TASKS, horizon=4, workers=1)


def test_scores_by_hand():
    """Four tasks, two rates, one seed: the mean of the two middle log ratios."""
    reference = np.array([[1.0, 1.0, 4.0, 9.0], [3.0, 1.0, 4.0, math.inf]])[:, :, None]
    losses = np.array([[1.0, 2.0, 2.0, 1.0], [4.0, 1.0, math.inf, math.inf]])[:, :, None]
    # medians of the reference: 2, 1, 4, and the middle of 9 and the loss of a diverged training
    middle = [2.0, 1.0, 4.0, (9.0 + 1e3) / 2]
    expected = []
    for row in losses[:, :, 0]:
        ratios = sorted(math.log(min(a, 1e3) / b) for a, b in zip(row, middle, strict=True))
        expected.append(math.exp(sum(ratios[1:3]) / 2))
    assert score_rates(losses, reference) == pytest.approx(expected, rel=1e-6)
    assert expected[0] < 1.0 < expected[1]


def test_rates_are_log_spaced_by_about_1_6():
    assert len(RATES) == 11
    assert RATES[0] == 5e-4
    assert RATES[-1] == 5e-2
    assert np.diff(np.log(RATES)) == pytest.approx(math.log(1.585), abs=1e-3)


def test_the_command_writes_the_best_rate_and_continues(args, capsys, monkeypatch):
    args.output.write_text(json.dumps({"adam-wsd": {"lr": 5e-3}}))
    entries = calibrate(args)
    assert entries == read_calibrated(args.output)
    assert list(entries) == ["adam-wsd", "nadamw-wsd", "muon-wsd"]  # what was there stays
    reference = losses("adamw-wsd")
    for name in ("nadamw-wsd", "muon-wsd"):
        entry = entries[name]
        scores = score_rates(losses(name), reference)
        assert entry["scores"] == pytest.approx(scores, abs=1e-6)
        assert entry["lr"] == RATES[int(np.argmin(scores))]
        assert entry["tasks"] == list(TASKS)
        assert "--optimizers nadamw-wsd,muon-wsd --seeds 1" in entry["command"]
    table = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| 0.") for line in table) == len(RATES)
    monkeypatch.setattr("lr_gym.benchmark.store.attempt", None)  # nothing is trained again
    assert calibrate(args) == entries


def losses(name: str) -> np.ndarray:
    """Selection losses (R, T, 1), each of a training of its own."""
    found = [
        [[run_cell(Cell(Baseline(name), lr, task, TUNING_SEED, horizon=4)).selection_loss]]
        for lr in RATES
        for task in TASKS
    ]
    return np.array(found).reshape(len(RATES), len(TASKS), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizers": "adam"}, "adam has the fixed learning rate 0.001"),
        ({"optimizers": "adamant"}, "adamant"),
        ({"optimizers": ""}, "nothing to calibrate.*--optimizers"),
        ({"output": calibrate_module.CALIBRATED_FILE}, "--output"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_what_is_wrong_is_named(changes, words, args):
    with pytest.raises(ValueError, match=words):
        calibrate(dataclasses.replace(args, **changes))


def test_no_rate_is_written_where_a_training_raised(args, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of ideas")

    monkeypatch.setattr("lr_gym.benchmark.run.run_cell", broken)
    with pytest.raises(RuntimeError, match=r"nadamw-wsd at lr 0.0005 .*out of ideas"):
        calibrate(args)
    assert not args.output.exists()


def test_a_calibrated_row_is_its_optimizer_at_that_rate(monkeypatch):
    entries = {"nadamw-wsd": {"lr": RATES[3]}, "schedule-free": {"lr": RATES[5]}}
    rows = calibrated_recipes(OPTIMIZERS, entries)
    assert list(rows) == ["nadamw-wsd-calibrated", "schedule-free-calibrated"]
    for name, entry in entries.items():
        row = rows[f"{name}-calibrated"]
        assert row == OPTIMIZERS[name]._replace(lr=entry["lr"], about=row.about)
        assert f"lr {entry['lr']:g} for all tasks" in row.about
        monkeypatch.setitem(OPTIMIZERS, f"{name}-calibrated", row)
        keys = [
            fingerprint(Cell(Baseline(optimizer), entry["lr"], "quadratic", 0))
            for optimizer in (name, f"{name}-calibrated")
        ]
        assert keys[0] == keys[1]  # so nothing is trained twice
    with pytest.raises(ValueError, match=r"calibrated.json has an entry 'adamant'"):
        calibrated_recipes(OPTIMIZERS, {"adamant": {"lr": 1.0}})


def test_every_entry_of_the_package_is_a_row_at_a_rate_of_its_grid(tmp_path):
    entries = read_calibrated()
    calibrated = {name for name in OPTIMIZERS if name.endswith("-calibrated")}
    assert calibrated == {f"{name}-calibrated" for name in entries}
    for name, entry in entries.items():
        assert OPTIMIZERS[f"{name}-calibrated"].lr == entry["lr"]
        assert entry["lr"] in RATES
        assert entry["lr"] == entry["rates"][int(np.argmin(entry["scores"]))]
        assert entry["horizon"] is None
    default = parse(["--output-dir", str(tmp_path)]).optimizers.split(",")
    assert ("adamw-wsd-calibrated" in default) == ("adamw-wsd" in entries)
