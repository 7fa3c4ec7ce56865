"""Contestants that are shown a held-out loss, against loops written by hand."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re

import pytest
import torch
from tiny import TINY, plain_run, random_policy, tiny_data
from torch.optim.lr_scheduler import ReduceLROnPlateau

from experiments import held_out_rules
from lr_gym.benchmark import held_out, loop
from lr_gym.benchmark.contestants import Baseline, entrants
from lr_gym.benchmark.fingerprint import fingerprint
from lr_gym.benchmark.held_out import HeldOutUse
from lr_gym.benchmark.loop import Outcome, evaluation_seed, train
from lr_gym.benchmark.markdown import tables
from lr_gym.benchmark.one_run import ended_view
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.policy_recipe import policy_recipe
from lr_gym.benchmark.report import write_report
from lr_gym.benchmark.results import assemble
from lr_gym.benchmark.run import Cell
from lr_gym.benchmark.stopping import Plateau, plateau_recipe, rule_recipe
from lr_gym.benchmark.terminal import ranking_table
from lr_gym.benchmark.training_data import score
from lr_gym.control.patience import PatienceRule
from lr_gym.control.spec import ControlSpec
from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.policy import constant_policy, save_policy
from lr_gym.tasks import find_task
from lr_gym.tasks.task import Split

ADAMW = (OPTIMIZERS["adamw"].make.func, torch.optim.AdamW)
BEST = HeldOutUse(best=True)


def noisy_data():
    """Tiny data whose labels are wrong in part, so that its held-out loss rises again."""
    data = tiny_data()
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (40,), generator=generator)
    wrong = torch.rand(40, generator=generator) < 0.5
    noisy = torch.where(wrong, labels, data.gradient.targets)
    half = [Split(*(part[k::2] for part in data.reward)) for k in (0, 1)]
    gradient = data.gradient._replace(targets=noisy)
    return data._replace(gradient=gradient, reward=half[0], monitor=half[1])


TASK = dataclasses.replace(TINY, name="noisy", data=functools.cache(noisy_data), horizon=400)
EVERY = 8  # a 50th of the horizon


class Plain:
    """The same training as that of `train`, by hand."""

    def __init__(self, task, seed=0):
        self.task = task
        self.model, self.loss_at = plain_run(task, int(evaluation_seed(seed)), torch.float32)

    def step(self, optimizer, step):
        loss = self.loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def loss(self, split):
        return score(self.task, self.model, getattr(self.task.data(), split))[0]


def timeless(outcome):
    return outcome._replace(seconds=0.0, training=0.0)


@pytest.mark.parametrize("patience", [None, 5])
def test_the_best_weights_are_judged_and_a_training_ends_early(patience):
    plain = Plain(TASK)
    optimizer = torch.optim.AdamW(plain.model.parameters(), 0.03)
    best = (math.inf, None)
    since = 0
    for step in range(TASK.horizon):
        plain.step(optimizer, step)
        if (step + 1) % EVERY == 0:
            loss = plain.loss("monitor")
            since += 1
            if loss < best[0]:
                best = (loss, copy.deepcopy(plain.model.state_dict()))
                since = 0
            if since == patience:
                break
    last = plain.loss("selection")
    plain.model.load_state_dict(best[1])
    recipe = OPTIMIZERS["adamw"]._replace(held_out=HeldOutUse(best=True, patience=patience))
    outcome = train(recipe, 0.03, TASK, 0, test=True)
    assert outcome.updates == step + 1
    assert (outcome.updates < TASK.horizon) == (patience is not None)
    assert outcome.selection_loss == plain.loss("selection") != last
    assert outcome.test_loss == outcome.curve[-1] == plain.loss("test")
    assert train(recipe, 0.03, TASK, 0).selection_loss == outcome.selection_loss


def test_buffers_belong_to_the_best_weights():
    """The best weights of a network with batch norm, also where the optimizer averages."""
    task = find_task("digits-cnn")
    for name in ("adamw", "schedule-free"):
        kept = OPTIMIZERS[name]._replace(held_out=HeldOutUse(best=True, patience=1))
        outcome = train(kept, 0.1, task, 0, horizon=150)
        assert outcome.updates < 150
        if name == "adamw":  # its training up to there does not depend on the horizon
            until = train(OPTIMIZERS[name], 0.1, task, 0, horizon=outcome.updates - 3)
            assert outcome.selection_loss == until.selection_loss
        assert math.isfinite(outcome.selection_loss)


def test_the_curve_of_a_training_that_ended_stays_where_it_was():
    recipe = OPTIMIZERS["adamw-wsd"]._replace(held_out=HeldOutUse(best=True, patience=5))
    whole = train(OPTIMIZERS["adamw-wsd"], 0.03, TASK, 0, test=True)
    outcome = train(recipe, 0.03, TASK, 0, test=True)
    assert outcome.steps == whole.steps
    assert len(outcome.curve) == len(outcome.lr) == len(outcome.steps)
    made = sum(step <= outcome.updates for step in outcome.steps)
    assert outcome.curve[:made] == whole.curve[:made]
    assert set(outcome.curve[made:]) == {outcome.test_loss}


def test_plateaus_are_those_of_the_held_out_loss():
    plain = Plain(TASK)
    optimizer = torch.optim.AdamW(plain.model.parameters(), 0.03)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    rates = []
    for step in range(TASK.horizon):
        if step in range(0, TASK.horizon, TASK.horizon // 25):
            rates.append(optimizer.param_groups[0]["lr"])
        plain.step(optimizer, step)
        if (step + 1) % EVERY == 0:
            scheduler.step(plain.loss("monitor"))
    recipe = plateau_recipe(Plateau(0.5, 2))._replace(held_out=HeldOutUse(tell=True))
    outcome = train(recipe, 0.03, TASK, 0, test=True)
    assert outcome.selection_loss == plain.loss("selection")
    assert [lr for (lr,) in outcome.lr[:-1]] == rates
    assert len(set(rates)) > 2
    stopped = train(plateau_recipe(Plateau(0.5, 2), 3), 0.03, TASK, 0)
    assert stopped.updates < outcome.updates == TASK.horizon


def test_the_rule_against_a_loop_by_hand():
    """A running mean of the held-out loss; then a rate that falls over a quarter of the steps."""
    plain = Plain(TASK)
    optimizer = torch.optim.AdamW(plain.model.parameters(), 0.03)
    means = []
    best = math.inf
    since = 0
    decided = None
    for step in range(TASK.horizon):
        if decided is not None:
            length = max(decided // 4, TASK.horizon // 10)
            if step == decided + length:
                break
            optimizer.param_groups[0]["lr"] = 0.03 * (1.0 - (step - decided) / length)
        plain.step(optimizer, step)
        if (step + 1) % EVERY == 0 and decided is None:
            loss = plain.loss("monitor")
            means.append(loss if not means else 0.5 * means[-1] + 0.5 * loss)
            since += best < means[0]
            if means[-1] < 0.99 * best:
                best = means[-1]
                since = 0
            if since >= 3 and len(means) >= 5:
                decided = step + 1
    recipe = rule_recipe("AdamW", ADAMW, 0.03, PatienceRule(3, min_improvement=0.01))
    recipe = recipe._replace(held_out=HeldOutUse(tell=True))
    outcome = train(recipe, 0.03, TASK, 0)
    assert outcome.updates == step < TASK.horizon
    assert outcome.selection_loss == pytest.approx(plain.loss("selection"), rel=1e-5)


def test_the_rule_is_that_of_a_policy_optimizer():
    """A policy that always decides the same, with the same rule, ends in the same place."""
    rule = PatienceRule(patience=3)
    policy = constant_policy(ControlSpec(decisions=50), EVERY)

    def make(model, lr, length):
        return PolicyOptimizer(
            model.named_parameters(), policy, lr, length.steps, finish=rule, guard=False
        )

    twin = OPTIMIZERS["adamw"]._replace(
        make=functools.partial(make), held_out=HeldOutUse(best=True, tell=True)
    )
    ours = train(rule_recipe("AdamW", ADAMW, 0.03, rule), 0.03, TASK, 0)
    theirs = train(twin, 0.03, TASK, 0)
    assert ours.updates == theirs.updates < TASK.horizon
    assert ours.selection_loss == pytest.approx(theirs.selection_loss, rel=1e-4)


def test_a_policy_that_watches_is_told_the_loss(tmp_path, monkeypatch):
    told = []
    original = PolicyOptimizer.observe_validation

    def observe(self, loss):
        told.append(loss)
        original(self, loss)

    monkeypatch.setattr(PolicyOptimizer, "observe_validation", observe)
    for features in (("peak_lr",), ("peak_lr", "monitor_known", "monitor_best")):
        spec = ControlSpec(schedule="constant", features=features)
        file = save_policy(random_policy(spec), tmp_path / f"{len(features)}.safetensors")
        recipe = policy_recipe(str(file))
        told.clear()
        outcome = train(recipe, 1e-3, TASK, 0)
        assert len(told) == (50 if len(features) > 1 else 0)
        assert outcome.updates == TASK.horizon
        assert math.isfinite(train(recipe, 1e-3, TINY, 0).selection_loss)  # no monitor split


def test_a_training_ends_when_the_policy_says_so(tmp_path, monkeypatch):
    spec = ControlSpec(schedule="constant", features=("peak_lr", "monitor_best"))
    file = save_policy(constant_policy(spec, 5), tmp_path / "policy.safetensors")
    finished = property(lambda self: self.param_groups[0]["step"] >= 33)
    monkeypatch.setattr(PolicyOptimizer, "finished", finished)
    outcome = train(policy_recipe(str(file)), 1e-3, TASK, 0, test=True)
    assert outcome.updates == 33
    assert outcome.steps[-1] == TASK.horizon
    blind = policy_recipe("builtin:default")
    assert train(blind, 1e-3, TASK, 0).updates == TASK.horizon


@pytest.mark.parametrize("name", ["adamw-checkpoint", "schedule-free-stop", "adamw-patience"])
@pytest.mark.parametrize("task", ["quadratic", "stream-values-16"])
def test_a_task_without_a_monitor_split_is_named(name, task):
    with pytest.raises(ValueError, match=rf"{task}.*no monitor split.*leave"):
        train(OPTIMIZERS[name], 0.01, find_task(task), 0, horizon=10)


def test_best_weights_outlive_a_divergence(monkeypatch):
    training = loop._Training
    loss_at = training.loss_at

    class Rising(training):
        def loss_at(self, step):
            return loss_at(self, step) + (1e9 if step > 200 else 0.0)

    keeps = OPTIMIZERS["adamw"]._replace(held_out=BEST)
    expected = train(keeps, 0.03, TASK, 0, test=True)
    monkeypatch.setattr(loop, "_Training", Rising)
    outcome = train(keeps, 0.03, TASK, 0, test=True)
    assert train(OPTIMIZERS["adamw"], 0.03, TASK, 0).selection_loss == math.inf
    assert outcome.selection_loss == expected.selection_loss
    assert outcome.updates < TASK.horizon
    assert len(outcome.curve) == len(outcome.steps) == len(outcome.lr) == len(expected.curve)


def test_others_pay_nothing_and_stay_what_they_were(monkeypatch):
    """Who does not look is not measured; who only looks makes the same updates."""
    plain = Plain(TASK)
    optimizer = torch.optim.AdamW(plain.model.parameters(), 0.03)
    for step in range(TASK.horizon):
        plain.step(optimizer, step)
    measured = []
    original = held_out.HeldOutLosses.note

    def note(self, loss, model):
        measured.append(loss)
        original(self, loss, model)

    monkeypatch.setattr(held_out.HeldOutLosses, "note", note)
    expected = train(OPTIMIZERS["adamw"], 0.03, TASK, 0, test=True)
    assert not measured
    assert expected.selection_loss == plain.loss("selection")
    looks = OPTIMIZERS["adamw"]._replace(held_out=HeldOutUse(patience=1000))
    assert timeless(train(looks, 0.03, TASK, 0, test=True)) == timeless(expected)
    assert len(measured) == held_out.MOMENTS
    silent = [name for name in OPTIMIZERS if not OPTIMIZERS[name].held_out.wanted]
    assert len(silent) == len(OPTIMIZERS) - 8


def test_the_last_weights_may_be_the_best_ones():
    """Also where the horizon is no multiple of the moments."""
    task = dataclasses.replace(TASK, horizon=109)
    learns = OPTIMIZERS["adamw"]._replace(held_out=BEST)
    losses = [train(recipe, 1e-4, task, 0) for recipe in (learns, OPTIMIZERS["adamw"])]
    assert losses[0].selection_loss == losses[1].selection_loss


def test_constants_are_a_part_of_the_key(monkeypatch):
    keys = []
    for recipe in (
        rule_recipe("AdamW", ADAMW, 0.01, PatienceRule(2)),
        rule_recipe("AdamW", ADAMW, 0.01, PatienceRule(3)),
        plateau_recipe(Plateau(0.3, 2)),
        plateau_recipe(Plateau(0.3, 3)),
        plateau_recipe(Plateau(0.3, 3), 7),
        OPTIMIZERS["adamw"],
        OPTIMIZERS["adamw"]._replace(held_out=BEST),
    ):
        monkeypatch.setitem(OPTIMIZERS, "adamw-patience", recipe)
        keys.append(fingerprint(Cell(Baseline("adamw-patience"), 0.01, "digits-mlp", 0)))
    assert len(set(keys)) == len(keys)


def test_tables_show_the_steps_where_some_training_ended_early(tmp_path):
    """Only there, as a share of the horizon over trainings that did not fail."""
    rows = entrants(["adam", "adamw-patience"], [])

    def outcome(updates, loss=0.5):
        rates = [[1e-3]] * 3
        return Outcome(0.6, loss, {}, [0, 10, 20], [1.0, 0.7, loss], rates, ["all"], updates)

    def written(*groups):
        table = {("quadratic", row.name): group for row, group in zip(rows, groups, strict=True)}
        content = assemble(
            rows, ["quadratic"], table, dict.fromkeys(table, 1e-3), {}, {}, failures=[]
        )
        names = {"seeds": 3, "budget": 1, "tuning_seeds": 1, "command": "", "environment": {}}
        results = {**content, **names, "cost": [], "skipped": {}, "policies": {}}
        write_report(results, tmp_path / "report.html")
        shown = "".join(column.header for column in ranking_table(results).columns)
        return tables(results), (tmp_path / "report.html").read_text(), shown

    whole = [outcome(20)] * 3
    for text in written(whole, [outcome(20), outcome(20), outcome(4, math.inf)]):
        assert not re.search(r"\| steps \||<th>steps|failedsteps", text)
    page, report, shown = written(whole, [outcome(8), outcome(12), outcome(4, math.inf)])
    assert "| contestant | score | steps |" in page
    assert "| 50% |" in page
    assert "| 100% |" in page
    assert "A training that ended early" not in report  # neither the best baseline nor a policy
    assert report.count("<th>steps</th>") == report.count("<td>50%</td>") == 2
    assert "failedsteps" in shown


def test_one_training_that_ended_early_is_drawn_up_to_its_end():
    def outcome(updates, loss=0.5):
        rates = [[1e-3, 1e-1], [1e-3, 1e-1], [0.0, 0.0]]
        return Outcome(0.6, loss, {}, [0, 10, 20], [1.0, 0.7, loss], rates, ["a", "b"], updates)

    whole = [outcome(20), outcome(20), outcome(20)]
    early = [outcome(4, math.inf), outcome(20), outcome(12)]
    view = ended_view("quadratic", {"adam": whole, "policy held_out": early})
    assert view["seed"] == 2  # the first that ended, and neither diverged nor went on to the end
    assert view["rows"][0]["end"] is None
    assert view["rows"][0]["lr"] == pytest.approx([1e-2, 1e-2, 1e-30])
    ended = view["rows"][1]
    assert ended["end"] == 12
    assert ended["steps"] == [0, 10]
    assert ended["loss"] == [1.0, 0.7]
    assert len(ended["lr"]) == 2
    assert ended_view("quadratic", {"adam": whole[:2], "policy held_out": early[:2]}) is None
    assert ended_view("stream-values-1", {"adam": whole, "policy held_out": early}) is None


def test_constants_are_tuned_by_geometric_means():
    losses = {"adamw-wsd": (1.0, 4.0), "better": (0.5, 4.0)}
    rows = [
        {
            "variant": name,
            "task": task,
            "seed": 0,
            "loss": losses.get(name, losses["better"])[i],
            "steps": 0.5 * i,
        }
        for name in held_out_rules.variants()
        for i, task in enumerate(("one", "two"))
    ]
    lines = held_out_rules.table(rows, ("one", "two"), 1).splitlines()
    assert lines[2] == "| adamw-wsd | 1.0000 | 25% |"
    assert len(lines) == 2 + 2 + 12 + 27
    assert all(line.endswith("| 0.7071 | 25% |") for line in lines[3:])
