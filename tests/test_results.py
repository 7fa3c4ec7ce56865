"""The content of results.json against plain loops over the outcomes; what an evaluation cost."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from scipy import stats

from experiments import adaptive_lr
from lr_gym.analysis.intervals import mean_interval
from lr_gym.benchmark.contestants import DeployedPolicy, entrants, recipe_of
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.results import assemble
from lr_gym.benchmark.summary import costs
from lr_gym.policies.policy import load_policy
from lr_gym.tasks import find_task

TASKS, SEEDS = ("quadratic", "logistic"), 6
ROWS = [row for row in entrants(["adam", "sgd"], ["builtin:mnist1d"]) if "tuned" not in row.name]
STEPS = [0, 10, 20, 40]


def outcomes(seed: int) -> dict[tuple[str, str], list[Outcome]]:
    """Random curves that end at the test loss; every training takes 40 updates."""
    generator = np.random.default_rng(seed)
    table = {}
    for task in TASKS:
        for row in ROWS:
            group = []
            for _ in range(SEEDS):
                curve = (2.0 * np.exp(-generator.uniform(0.0, 2.0, len(STEPS)).cumsum())).tolist()
                seconds = float(generator.uniform(1.0, 2.0))
                rates = [[1e-3]] * len(STEPS)
                figures = (curve[-1] + 0.1, curve[-1], {}, STEPS, curve, rates, ["all"], 40, 9.0)
                group.append(Outcome(*figures, training=seconds))
            table[task, row.name] = group
    return table


def assembled(table, misset=None):
    lrs = dict.fromkeys(table, 0.001)
    return assemble(ROWS, TASKS, table, lrs, {}, misset or {}, [])


@pytest.mark.parametrize("task", TASKS)
def test_targets_and_seconds_to_them_against_plain_loops(task):
    table = outcomes(0)
    found = assembled(table)
    best = min(
        ("adam", "sgd"),
        key=lambda name: statistics.fmean(o.selection_loss for o in table[task, name]),
    )
    target = statistics.fmean(o.curve[-1] for o in table[task, best])
    assert found["tasks"][task]["target"] == {"set_by": best, "loss": pytest.approx(target)}
    for row in found["tasks"][task]["rows"]:
        group, reached = table[task, row["name"]], []
        for outcome in group:
            for step, loss in zip(outcome.steps, outcome.curve, strict=True):
                if loss <= target:
                    reached.append(step)
                    break
        assert sum(step is not None for step in row["steps_to_target"]) == len(reached)
        expected = statistics.median(reached) if reached else None
        assert row["updates_to_target"] == expected
        timing = found["timing"][task][row["name"]]
        assert timing["training"] == pytest.approx(statistics.fmean(o.training for o in group))
        assert timing["to_target"] == (
            expected and pytest.approx(expected * timing["training"] / 40)
        )


def test_where_the_best_baseline_diverged_there_is_nothing_to_reach():
    table = outcomes(1)
    for name in ("adam", "sgd"):
        broken = table["quadratic", name][0]._replace(test_loss=math.inf, selection_loss=math.inf)
        table["quadratic", name] = [broken, *table["quadratic", name][1:]]
    entry = assembled(table)["tasks"]["quadratic"]
    assert entry["target"]["loss"] is None
    for row in entry["rows"]:
        assert row["updates_to_target"] is None
        assert set(row["steps_to_target"]) == {None}


def test_differences_to_the_reference_are_paired():
    table = outcomes(2)
    for task, entry in assembled(table)["tasks"].items():
        adam = [o.test_loss for o in table[task, "adam"]]
        for row in entry["rows"]:
            mine = [o.test_loss for o in table[task, row["name"]]]
            gaps = [a - b for a, b in zip(mine, adam, strict=True)]
            assert row["minus_reference"]["mean"] == pytest.approx(statistics.fmean(gaps))


def test_misset_rates_are_scored_against_the_reference_at_its_own():
    right, off = outcomes(3), outcomes(4)
    table = assembled(right, {10.0: off})["misset"]
    for entry in table:
        (point,) = entry["points"]
        logs = sorted(
            math.log(a.test_loss / b.test_loss)
            for task in TASKS
            for a, b in zip(right[task, "adam"], off[task, entry["name"]], strict=True)
        )
        cut = len(logs) // 4
        assert point["score"]["mean"] == pytest.approx(statistics.fmean(logs[cut:-cut]), abs=1e-6)
        for task in TASKS:
            losses = [o.test_loss for o in off[task, entry["name"]]]
            assert point["test_loss"][task] == pytest.approx(statistics.fmean(losses))


def test_intervals_of_means_by_efrons_formulas():
    values, normal = np.random.default_rng(5).lognormal(size=10), stats.norm
    drawn = np.random.default_rng(6).choice(values, (40_000, 10)).mean(1)
    bias = normal.ppf((drawn < values.mean()).mean())
    gaps = values.mean() - np.array([np.delete(values, i).mean() for i in range(10)])
    acceleration = (gaps**3).sum() / (6.0 * (gaps**2).sum() ** 1.5)
    found = mean_interval(values)
    for bound, quantile in ((found.low, 0.025), (found.high, 0.975)):
        z = bias + normal.ppf(quantile)
        expected = np.quantile(drawn, normal.cdf(bias + z / (1.0 - acceleration * z)))
        assert bound == pytest.approx(expected, abs=0.05 * (found.high - found.low))


def test_costs_are_those_that_policies_tell():
    policies = {"builtin:default": load_policy("builtin:default").about, "mine": {}}
    tuning, default, mine = costs(policies, 13, 2)
    assert "26 trainings of each task" in tuning
    assert (
        default
        == "builtin:default was trained once: 14,848 trainings, about 45 minutes of two cores."
    )
    assert "not recorded" in mine


def test_adaptive_lr_scores_averages_where_the_policy_keeps_them():
    task, made = find_task("digits-mlp"), []

    recipe = recipe_of(DeployedPolicy("builtin:anytime"))

    def make(model, lr, length):
        made.append((model, recipe.make(model, lr, length)))
        return made[-1][1]

    run = adaptive_lr.train(task, recipe._replace(make=make), epochs=2, seed=0)
    model, optimizer = made[0]
    trained = adaptive_lr.score(task, model, task.data().test)["loss"]
    optimizer.eval()
    assert run.test["loss"] == pytest.approx(
        adaptive_lr.score(task, model, task.data().test)["loss"]
    )
    assert run.test["loss"] != pytest.approx(trained)
    assert torch.is_grad_enabled()
