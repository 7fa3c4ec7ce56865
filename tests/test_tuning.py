"""Tuning: the same seeded trials for everybody, paid once."""

from __future__ import annotations

import functools
import math
from collections import Counter

import pytest
from test_cell_store import CELLS, Counting, timeless

from lr_gym.benchmark.contestants import entrants
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.run import attempt
from lr_gym.benchmark.store import complete
from lr_gym.benchmark.tuning import best_trial, learning_rates, tuning_cells
from lr_gym.engine import local_engine, run_here


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "cache"))


def test_the_list_of_learning_rates_is_seeded_nested_and_spread():
    long = learning_rates((1e-4, 1.0), 16)
    assert learning_rates((1e-4, 1.0), 5) == long[:5]
    assert all(1e-4 <= lr <= 1.0 for lr in long)
    quarters = Counter(int(4 * (math.log10(lr) + 4)) // 1 for lr in long)  # of a decade
    assert quarters.most_common(1)[0][1] <= 2


def tuned(engine, budget, name="adam-constant"):
    """What is found, and the outcomes of its cells."""
    rows = entrants([name], [])
    trials = tuning_cells(rows, ["quadratic"], budget=budget, seeds=2, horizon=20)
    cells = [cell for trial in trials["quadratic", name] for cell in trial]
    outcomes = complete(cells, engine)
    return best_trial(trials["quadratic", name], outcomes), outcomes


def test_tuning_takes_the_best_by_selection_loss_and_is_paid_once():
    engine = Counting()
    found, outcomes = tuned(engine, 4)
    assert len(engine.cells) == len(outcomes) == 8
    assert not any(cell.test for cell in outcomes)
    for trial in found.trials:
        losses = [o.selection_loss for cell, o in outcomes.items() if cell.lr == trial.lr]
        assert trial.loss == pytest.approx(sum(losses) / 2)
    assert found.lr == min(found.trials, key=lambda t: t.loss).lr
    again, _ = tuned(engine, 4)
    assert again == found
    assert len(engine.cells) == 8
    more, _ = tuned(engine, 6)
    assert more.trials[:4] == found.trials
    assert len(engine.cells) == 12


def test_only_entrants_without_a_learning_rate_are_tuned():
    rows = entrants(["adam", "sgd"], ["builtin:default"])
    trials = tuning_cells(rows, ["quadratic", "logistic"], budget=3, seeds=2)
    names = ["policy default (tuned lr)", "sgd"]
    assert list(trials) == [(task, name) for task in ("quadratic", "logistic") for name in names]
    assert {(len(group), *map(len, group)) for group in trials.values()} == {(3, 2, 2, 2)}


def test_processes_find_the_same(tmp_path, monkeypatch):
    alone, _ = tuned(run_here, 3)
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "other"))
    with local_engine(2) as engine:
        cells = dict(engine(attempt, CELLS))
        apart, outcomes = tuned(engine, 3)
    assert timeless(cells) == timeless(dict(run_here(attempt, CELLS)))
    assert len(outcomes) == 6
    assert apart == alone


def test_trials_that_raised_are_not_kept(monkeypatch):
    def broken(model, lr, length):
        raise RuntimeError("out of ideas")

    recipe = OPTIMIZERS["adamw"]._replace(make=functools.partial(broken))
    monkeypatch.setitem(OPTIMIZERS, "broken", recipe)
    engine = Counting()
    found, outcomes = tuned(engine, 2, "broken")
    assert all(trial.loss == math.inf for trial in found.trials)
    assert all(o.error for o in outcomes.values())
    tuned(engine, 2, "broken")
    assert len(engine.cells) == 8
