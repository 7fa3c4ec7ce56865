"""The store of cells: nothing runs twice, nothing is lost, only equal trainings are equal."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import lr_gym
from lr_gym.benchmark import fingerprint as fingerprint_module
from lr_gym.benchmark import source_digest
from lr_gym.benchmark.contestants import Baseline, DeployedPolicy
from lr_gym.benchmark.fingerprint import fingerprint, modules_of
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.benchmark.store import cell_file, complete, load_outcome, save_outcome
from lr_gym.control.spec import ControlSpec
from lr_gym.engine import run_here
from lr_gym.policies.policy import constant_policy, load_policy, save_policy

CELLS = [
    Cell(Baseline("adam"), 1e-3, "quadratic", seed, test=True, horizon=10) for seed in range(3)
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LR_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting:
    """An engine of this process that remembers what it ran."""

    def __init__(self):
        self.cells = []

    def __call__(self, function, cells):
        for cell, outcome in run_here(function, cells):
            self.cells.append(cell)
            yield cell, outcome


def timeless(outcomes):
    return {cell: o._replace(seconds=0.0, training=0.0) for cell, o in outcomes.items()}


# The store


def test_a_cell_in_the_store_is_not_run_again():
    engine, done = Counting(), []
    first = complete(CELLS[:2], engine)
    again = complete([*CELLS, *CELLS], engine, lambda cell, outcome: done.append(cell))
    assert engine.cells == CELLS
    assert {cell: again[cell] for cell in first} == first
    assert set(again) == set(CELLS)
    assert done == CELLS


def test_a_stored_outcome_is_the_outcome():
    for cell in (CELLS[0], CELLS[0]._replace(lr=1e9), CELLS[0]._replace(test=False)):
        outcome = run_cell(cell)
        save_outcome(cell, outcome)
        assert repr(load_outcome(cell)) == repr(outcome)  # nan, which equals nothing, included


def _cut(content: bytes) -> bytes:
    return content[:-40]


def _altered(content: bytes) -> bytes:
    row = json.loads(content)
    row["outcome"]["test_loss"] = 0.0
    return json.dumps(row).encode()


@pytest.mark.parametrize(
    "damage",
    [_cut, _altered, lambda content: b"", lambda content: b"[]", lambda content: b"\xff no cell"],
)
def test_a_damaged_file_is_warned_of_and_its_cell_runs_again(damage):
    first = complete(CELLS, Counting())
    file = cell_file(CELLS[1])
    file.write_bytes(damage(file.read_bytes()))
    engine = Counting()
    with pytest.warns(RuntimeWarning, match=f"{file.name} is damaged"):
        again = complete(CELLS, engine)
    assert engine.cells == [CELLS[1]]
    assert timeless(again) == timeless(first)
    assert complete(CELLS, engine) == again
    assert len(engine.cells) == 1


def test_what_raised_is_tried_again(cache):
    def raised(function, cells):
        return ((cell, run_cell(cell)._replace(error="MemoryError")) for cell in cells)

    assert all(outcome.error for outcome in complete(CELLS, raised).values())
    assert not list(cache.glob("cells/*/*"))
    again = complete(CELLS, run_here)
    assert not any(outcome.error for outcome in again.values())
    assert complete(CELLS, run_here) == again


def test_a_store_may_be_shared(cache):
    """Two evaluations at once write and read the same cells, without a lock."""
    outcome = run_cell(CELLS[0])
    cells = [CELLS[0]._replace(seed=seed) for seed in range(40)]

    def write_and_read(order):
        for cell in order:
            save_outcome(cell, outcome)
            assert load_outcome(cell) == outcome

    with ThreadPoolExecutor(4) as pool:
        orders = (cells, cells[::-1], cells[20:] + cells[:20], cells)
        list(pool.map(write_and_read, orders))
    assert len(list(cache.glob("cells/*/*.json"))) == len(cells)
    assert not list(cache.glob("cells/*/.*"))


# Fingerprints


def test_everything_that_decides_an_outcome_is_in_its_key(monkeypatch):
    base = CELLS[0]
    others = [
        base._replace(seed=1),
        base._replace(test=False),
        base._replace(horizon=11),
        base._replace(task="logistic"),
        base._replace(lr=2e-3),
        base._replace(contestant=Baseline("adamw")),
        base._replace(contestant=Baseline("adam-cosine")),
        base._replace(contestant=DeployedPolicy("builtin:default")),
    ]
    keys = {fingerprint(cell) for cell in (base, *others)}
    assert len(keys) == 9
    monkeypatch.setattr(fingerprint_module, "source_digest", lambda modules: "other code")
    assert fingerprint(base) not in keys


def test_options_of_an_optimizer_are_in_its_key(monkeypatch):
    """So is what stands in a built-in file that an option names."""
    keys = {fingerprint(CELLS[0]._replace(contestant=Baseline("sgd-momentum")))}
    recipe = OPTIMIZERS["sgd-momentum"]
    other = functools.partial(recipe.make.func, *recipe.make.args, momentum=0.95)
    monkeypatch.setitem(OPTIMIZERS, "sgd-momentum", recipe._replace(make=other))
    keys.add(fingerprint(CELLS[0]._replace(contestant=Baseline("sgd-momentum"))))
    trained = CELLS[0]._replace(contestant=Baseline("garo-trained"))
    keys.add(fingerprint(trained))
    monkeypatch.setattr(fingerprint_module, "_file_digest", lambda path: f"other {path.name}")
    keys.add(fingerprint(trained))
    assert len(keys) == 4


def test_a_policy_is_known_by_its_content(tmp_path):
    policy = load_policy("builtin:mnist1d")
    copy = save_policy(policy, tmp_path / "copy.safetensors")
    weights = (policy.weights[0] + 1.0, *policy.weights[1:])
    changed = dataclasses.replace(policy, weights=weights)
    other = save_policy(changed, tmp_path / "other.safetensors")
    keys = [
        fingerprint(CELLS[0]._replace(contestant=DeployedPolicy(path)))
        for path in ("builtin:mnist1d", str(copy), str(other))
    ]
    assert keys[0] == keys[1] != keys[2]


def test_how_often_an_endless_policy_decides_is_in_its_key_too(tmp_path):
    """For other policies the length of the training decides it."""
    keys = {}
    for schedule in ("constant", "wsd"):
        policy = constant_policy(ControlSpec(schedule=schedule, features=("peak_lr", "steps")), 5)
        for interval in (5, 100):
            file = tmp_path / f"{schedule}{interval}.safetensors"
            save_policy(dataclasses.replace(policy, interval=interval), file)
            keys[schedule, interval] = fingerprint(
                CELLS[0]._replace(contestant=DeployedPolicy(str(file)))
            )
    assert keys["constant", 5] != keys["constant", 100]
    assert keys["wsd", 5] == keys["wsd", 100]


def test_the_device_and_bert_are_a_part_of_the_key(monkeypatch):
    cell, bert = (
        Cell(Baseline("adam"), 1e-3, task, 0) for task in ("cifar10-resnet18", "imdb-bert")
    )
    keys = {fingerprint(cell)}
    there = torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not there)
    keys.add(fingerprint(cell))
    for folder in ("one", "two"):
        monkeypatch.setenv("LR_GYM_BERT", folder)
        keys.add(fingerprint(bert))
    assert len(keys) == 4


# Source code


@pytest.fixture
def change(monkeypatch, tmp_path):
    """Change a file of a copy of lr_gym: which contestants does that train anew?"""
    package = tmp_path / "lr_gym"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(lr_gym.__file__).parent, package, ignore=ignored)
    monkeypatch.setattr(source_digest, "_ROOT", tmp_path)
    contestants = {"policy": DeployedPolicy("builtin:default")}
    contestants |= {name: Baseline(name) for name in OPTIMIZERS}

    def forget() -> None:
        source_digest._imports.cache_clear()
        source_digest.source_digest.cache_clear()

    def digests() -> dict[str, str]:
        forget()
        return {
            name: source_digest.source_digest(modules_of(contestant))
            for name, contestant in contestants.items()
        }

    def changed(file: str) -> set[str]:
        before = digests()
        (package / file).write_text((package / file).read_text() + "\n# changed\n")
        after = digests()
        return {name for name in before if before[name] != after[name]}

    yield changed
    forget()


EVERYBODY = {"policy", *OPTIMIZERS}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("benchmark/loop.py", EVERYBODY),
        ("benchmark/schedulers.py", EVERYBODY),
        ("tasks/suite.py", EVERYBODY),
        ("tasks/architectures.py", EVERYBODY),
        ("rng.py", EVERYBODY),
        ("optim/policy_optimizer.py", {"policy"}),
        ("optim/guard.py", {"policy"}),
        ("optim/contrib/garo.py", {"garo", "garo-trained"}),
        ("optim/contrib/enhanced_sgd.py", {"enhanced-sgd"}),
        ("optim/contrib/gradient_agreement.py", {"gradient-agreement"}),
        ("optim/contrib/adaptive_upgd.py", {"adaptive-upgd", "adaptive-upgd-noise"}),
        ("benchmark/hypergradient.py", {"hypergradient"}),
        (
            "benchmark/muon.py",
            {
                "muon",
                "muon-constant",
                "muon-wsd",
                "muon-wsd-calibrated",
                "muon-wsd-checkpoint",
                "muon-patience",
            },
        ),
        ("benchmark/held_out.py", EVERYBODY),
        ("benchmark/watching.py", {"adamw-plateau-stop", "adamw-patience", "muon-patience"}),
        ("benchmark/stopping.py", set()),
        ("envs/vector_env.py", set()),
        ("benchmark/optimizers.py", set()),
        ("benchmark/results.py", set()),
        ("benchmark/report.py", set()),
        ("analysis/certificate.py", set()),
    ],
)
def test_a_change_of_code_concerns_those_that_it_trains(change, file, expected):
    assert change(file) == expected


@pytest.mark.parametrize("file", ["control/observation.py", "control/action.py"])
def test_a_change_of_the_controller_leaves_baselines_alone(change, file):
    """EnhancedSGD can save its Q-table as a policy, so some of this code may be behind it too."""
    assert change(file) - {"enhanced-sgd"} == {"policy"}


def test_a_change_of_an_own_task_trains_anew(tmp_path, monkeypatch):
    module = tmp_path / "my_tasks.py"
    module.write_text("TASK = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = fingerprint_module._own_task("my_tasks:TASK")
    module.write_text("TASK = 2\n")
    assert fingerprint_module._own_task("my_tasks:TASK") != first
    assert fingerprint_module._own_task("quadratic") is None
    assert "my_tasks" not in sys.modules
