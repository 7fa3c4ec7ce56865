"""The benchmark on streams: the minibatches of the Executor, online losses, opponents, report."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import evaluate
from lr_gym.benchmark import loop
from lr_gym.benchmark.above_optimum import above_optimum
from lr_gym.benchmark.contestants import Baseline, DeployedPolicy, recipe_of
from lr_gym.benchmark.figures import write_figures
from lr_gym.benchmark.fingerprint import fingerprint
from lr_gym.benchmark.loop import device_of, evaluation_seed
from lr_gym.benchmark.markdown import tables
from lr_gym.benchmark.online import CHUNK, OnlineData, change_steps, late_over_early
from lr_gym.benchmark.recipes import TrainingLength
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.benchmark.scores import BOUND, scores
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import constant_policy, load_policy, save_policy
from lr_gym.tasks import SUITES, TASKS, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.tasks.stream import Changes
from lr_gym.tasks.stream_data import teacher_values
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams

OFTEN = Changes(between=(5.0, 10.0))


def online_data(name: str, seed: int, horizon: int) -> OnlineData:
    task = find_task(name)
    return OnlineData(task, task.data(), evaluation_seed(seed), horizon, device_of(task))


@pytest.fixture
def changing(monkeypatch) -> str:
    """The name of a stream that changes every few steps."""
    task = dataclasses.replace(TASKS["stream-values-4"], data=lambda: teacher_values(OFTEN))
    monkeypatch.setitem(TASKS, task.name, task)
    return task.name


@pytest.mark.parametrize("name", [*SUITES["stream"], "stream-values-1", "stream-classes-16"])
def test_minibatches_are_those_of_the_executor_to_the_bit(name):
    horizon = CHUNK + 20
    executor = Executor(find_task(name))
    state = executor.init(evaluation_seed(3))
    first, _ = executor._minibatches(
        state._replace(stream=executor.stream.start(state.run_seed, torch.float32)), 0, 1
    )
    later, _ = executor._minibatches(state, 1, horizon - 1)
    data = online_data(name, 3, horizon)
    for step in range(horizon):
        inputs, targets = data.batch(step)
        batch, place = (first, 0) if step == 0 else (later, step - 1)
        assert torch.equal(inputs, batch.inputs[place, 0])
        assert torch.equal(targets, batch.targets[place, 0])


def test_a_stream_is_drawn_in_order():
    data = online_data("stream-values-4", 0, 2 * CHUNK)
    with pytest.raises(ValueError, match="step 3 is not the next one"):
        data.batch(3)
    for step in (0, 5, CHUNK):
        data.batch(step)
    with pytest.raises(ValueError, match="step 5 is not the next one"):
        data.batch(5)


def test_the_online_loss_against_the_executor():
    """Adam at a constant rate: losses before learning, above the floor, mean over minibatches."""
    steps = 30
    executor = Executor(find_task("stream-values-4"), base="adam")
    state = executor.init(evaluation_seed(1))
    floor, first = float(state.stream.floor), float(state.loss)
    ones = torch.ones(1, executor.layout.num_layers)
    hyper = Hyperparams(ones * 0.01, ones * 0.9, ones * 0.0, ones * 0.0)
    state, losses = executor.advance(state, hyper, torch.ones(steps - 1, 1))
    total = first - floor + float(losses.sum()) - (steps - 1) * float(state.stream.floor)
    cell = Cell(Baseline("adam-constant"), 0.01, "stream-values-4", 1, horizon=steps)
    assert run_cell(cell).selection_loss == pytest.approx(total / steps, rel=1e-4)


def test_an_outcome_against_a_plain_loop(changing):
    """Every figure of an outcome from the losses of a loop of its own."""
    horizon = 240
    task = find_task(changing)
    stream = task.data()
    seed = evaluation_seed(2)
    model = plain_model(task, seed)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    steps = torch.arange(horizon).unsqueeze(1)
    batch, moments = stream.draw(seed, stream.start(seed, torch.float32), steps, task.batch_size)
    excess = []
    for step in range(horizon):
        loss = task.loss(model(batch.inputs[step, 0]), batch.targets[step, 0]).mean()
        excess.append(float(loss.detach()) - float(batch.floor[step, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = run_cell(Cell(Baseline("adamw"), 0.01, changing, 2, test=True, horizon=horizon))
    assert found.test_loss == found.selection_loss == pytest.approx(np.mean(excess), rel=1e-5)
    part = horizon // 100
    assert found.steps == list(range(part, horizon + 1, part))
    assert len(found.lr) == len(found.steps)
    parts = np.reshape(excess, (-1, part)).mean(1)
    np.testing.assert_allclose(found.curve, parts, rtol=1e-4, atol=1e-5)
    changes = change_steps(stream, seed, horizon)
    assert changes == [
        step
        for step in range(1, horizon)
        if moments.segment[step, 0] > moments.segment[step - 1, 0]
    ]
    assert len(changes) > 3
    after = [value for step, value in enumerate(excess) if step >= changes[0]]  # all within 100
    fifth = horizon // 5
    ratio = np.mean(excess[-fifth:]) / np.mean(excess[fifth : 2 * fifth])
    assert found.metrics == {
        "after_change": pytest.approx(np.mean(after), rel=1e-4),
        "late_over_early": pytest.approx(ratio, rel=1e-4),
    }


def test_metrics_are_means_before_learning_and_unknown_changes_have_none():
    cell = Cell(Baseline("adamw"), 1e-2, "stream-flights", 0, test=True, horizon=40)
    found = run_cell(cell)
    assert found.metrics.keys() == {"accuracy", "late_over_early"}
    still = run_cell(cell._replace(lr=1e-30))  # never learns, so the initial model is tested
    data = online_data("stream-flights", 0, 40)
    model = plain_model(find_task("stream-flights"), evaluation_seed(0))
    right = []
    for step in range(40):
        inputs, targets = data.batch(step)
        right.append(float((model(inputs).argmax(1) == targets).float().mean()))
    assert still.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert found.metrics["accuracy"] > still.metrics["accuracy"]


def test_whether_figures_are_looked_at_changes_no_training():
    cells = [
        Cell(Baseline("adamw-plateau"), 0.01, "stream-values-16", 0, test, 60)
        for test in (True, False)
    ]
    seen, unseen = map(run_cell, cells)
    assert seen.selection_loss == unseen.selection_loss
    assert math.isnan(unseen.test_loss)
    assert unseen.metrics == {}
    assert unseen.curve == unseen.steps == unseen.lr == []


def test_divergence_ends_a_stream_too():
    found = run_cell(Cell(Baseline("sgd"), 1e6, "stream-values-16", 0, test=True, horizon=60))
    assert found.selection_loss == found.test_loss == math.inf
    assert found.updates < 60
    assert found.error is None


def test_plasticity_is_a_ratio_of_fifths():
    losses = torch.arange(1.0, 11.0)
    assert late_over_early(losses) == pytest.approx(9.5 / 3.5)
    assert math.isnan(late_over_early(losses[:4]))
    assert math.isnan(late_over_early(losses - 20.0))


@pytest.mark.parametrize("name", ["builtin:default", "builtin:anytime"])
def test_policies_are_told_no_end_of_a_stream(name, monkeypatch):
    told = []
    recipe = recipe_of(DeployedPolicy(name))

    def make(model, lr, length):
        told.append(recipe.make(model, lr, length))
        return told[-1]

    task = find_task("stream-values-16")
    found = loop.train(recipe._replace(make=make), 1e-3, task, 0, test=True, horizon=40)
    assert math.isfinite(found.test_loss)
    settings = told[0]._settings
    assert settings.total_steps is None
    assert settings.steps_per_epoch is None
    fixed = recipe.make(plain_model(task, evaluation_seed(0)), 1e-3, TrainingLength(40, 10.0))
    assert fixed._settings.steps_per_epoch == 10.0
    assert fixed._settings.total_steps == (None if load_policy(name).spec.endless else 40)


def test_how_often_a_policy_decides_is_in_the_key_of_every_stream(tmp_path):
    policy = constant_policy(ControlSpec(schedule="wsd"), 5)
    keys = set()
    for interval in (5, 100):
        file = tmp_path / f"{interval}.safetensors"
        save_policy(dataclasses.replace(policy, interval=interval), file)
        keys |= {
            (task, fingerprint(Cell(DeployedPolicy(str(file)), 1e-3, task, 0)))
            for task in ("stream-values-4", "quadratic")
        }
    assert sorted(task for task, _ in keys) == ["quadratic", "stream-values-4", "stream-values-4"]


def test_a_loss_below_its_floor_scores_as_one_at_the_floor():
    mine, other = (
        above_optimum([losses], ["stream-values-4"])
        for losses in ([-0.1, 0.5, 0.0], [0.5, -0.1, -0.2])
    )
    assert mine.tolist() == [[0.0, 0.5, 0.0]]
    found = scores(mine, other)
    assert found[0].tolist() == [pytest.approx(BOUND), pytest.approx(-BOUND), 0.0]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("streams")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LR_GYM_CACHE", str(folder / "cache"))
        patch.setitem(SUITES, "stream", ("stream-values-4", "stream-flights"))
        changing = dataclasses.replace(TASKS["stream-values-4"], data=lambda: teacher_values(OFTEN))
        patch.setitem(TASKS, changing.name, changing)
        words = ["--output-dir", str(folder / "out"), "--suite", "stream", "--policy"]
        words += ["builtin:default", "--optimizers", "adam,adamw-warm-restarts", "--seeds", "2"]
        words += ["--budget", "2", "--tuning-seeds", "1", "--horizon", "40", "--workers", "1"]
        evaluate.main(evaluate.parse([*words, "--misset", "--wandb", "disabled"]))
    found = json.loads((folder / "out" / "results.json").read_text())
    return {**found, "report": (folder / "out" / "report.html").read_text()}


def test_an_evaluation_of_streams_speaks_of_online_losses(results, tmp_path, capsys):
    assert not results["failures"]
    text = results["report"][results["report"].index("<body>") :] + tables(results)
    evaluate.print_results(results)
    text += capsys.readouterr().out
    for wrong in ("test loss", "Test loss", "test split", "selection split", "test examples"):
        assert wrong not in text
    assert "adam's online loss over its own online loss" in text
    assert "One stream, seed 0" in text
    assert results["misset"]
    values, flights = (results["tasks"][name] for name in ("stream-values-4", "stream-flights"))
    assert values["metrics"] == ["after_change", "late_over_early"]
    assert flights["metrics"] == ["accuracy", "late_over_early"]
    for others in results["speed_up"].values():  # there is no end that one could reach sooner
        assert {figure["mean"] for figure in others.values()} == {None}
    drawn = {"ranking", "profiles", "misset", "stream-values-4", "stream-flights"}
    assert {file.stem for file in write_figures(results, tmp_path)} == drawn


def test_one_run_is_shown_with_its_changes(results):
    view = results["tasks"]["stream-values-4"]["stream"]
    assert view["changes"] == change_steps(teacher_values(OFTEN), evaluation_seed(view["seed"]), 40)
    assert view["changes"]
    names = ["policy default", "policy default (tuned lr)", "adam"]
    assert [row["name"] for row in view["rows"]] == names
    for row in view["rows"]:
        assert len(row["steps"]) == len(row["loss"]) == len(row["lr"])
    assert view["rows"][-1]["lr"] == pytest.approx([1e-3] * 40)
    assert results["tasks"]["stream-flights"]["stream"]["changes"] == []
