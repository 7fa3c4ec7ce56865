"""Every row of OPTIMIZERS trains; those that are not torch's own do what their authors say."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lr_gym.benchmark.contestants import Baseline, DeployedPolicy, entrants
from lr_gym.benchmark.hypergradient import HypergradientAdam
from lr_gym.benchmark.optimizers import OPTIMIZERS, check_available
from lr_gym.benchmark.recipes import TrainingLength
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.benchmark.schedulers import SCHEDULERS
from lr_gym.policies.policy import load_policy, save_policy
from lr_gym.updates.schedules import base_schedule

LRS = {
    "sgd": 0.3,
    "sgd-momentum": 0.05,
    "sgd-momentum-cosine": 0.05,
    "garo": 0.1,
    "enhanced-sgd": 0.05,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_repeats_itself(name):
    lr = OPTIMIZERS[name].lr or LRS.get(name, 0.01)
    horizon = 240 if name.startswith("prodigy") else 60  # it first has to find its scale
    cell = Cell(Baseline(name), lr, "digits-mlp", 0, test=True, horizon=horizon)
    outcome = run_cell(cell)
    assert outcome.test_loss < 0.9 * outcome.curve[0]
    assert outcome.curve[0] == pytest.approx(
        math.log(10), abs=0.1
    )  # before the first update, the same for all
    assert len(outcome.curve) == len(outcome.steps) == len(outcome.lr)
    assert outcome.steps[0] == 0
    assert outcome.steps[-1] == horizon
    assert run_cell(cell)._replace(seconds=0.0, training=0.0) == outcome._replace(
        seconds=0.0, training=0.0
    )


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_schedules_are_those_of_the_environment(name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = SCHEDULERS[name](optimizer, 0.5, 40)
    for step in range(40):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            0.5 * float(base_schedule(name)(step / 40)), abs=1e-9
        )
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def test_plateau_halves_only_where_the_loss_stands_still():
    cells = [
        Cell(Baseline("adam-plateau"), lr, "digits-mlp", 0, test=True, horizon=200)
        for lr in (1e-3, 0.3)
    ]
    rates = [[row[0] for row in run_cell(cell).lr] for cell in cells]
    assert set(rates[0]) == {1e-3}
    assert rates[1][-1] < rates[1][0]


def test_hypergradient_against_a_naive_twin():
    torch.manual_seed(0)
    start = torch.randn(6, dtype=torch.float64)
    p = start.clone().requires_grad_()
    optimizer = HypergradientAdam([p], lr=0.05, hyper_lr=0.1)
    twin, lr, m, v, last = start.clone(), 0.05, torch.zeros(6), torch.zeros(6), None
    scale = torch.arange(1.0, 7.0)
    for t in range(1, 20):
        optimizer.zero_grad()
        (scale * p.square()).sum().backward()
        optimizer.step()
        grad = 2 * scale * twin
        if last is not None:
            lr *= 1 + 0.1 * float(
                sum(grad * last) / math.sqrt(sum(grad**2)) / math.sqrt(sum(last**2))
            )
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        last = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        twin = twin - lr * last
        torch.testing.assert_close(p.detach(), twin, rtol=1e-9, atol=1e-12)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
    assert lr > 0.06  # it went downhill all along, so the rate rose


def test_hypergradient_zero_is_adam():
    p, q = (torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_() for _ in range(2))
    ours, adam = HypergradientAdam([p], 0.01, hyper_lr=0.0), torch.optim.Adam([q], 0.01)
    for _ in range(10):
        for x, optimizer in ((p, ours), (q, adam)):
            optimizer.zero_grad()
            x.pow(4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_muon_has_the_hidden_matrices_and_convolutions():
    """It steps on them as torch's own does on matrices, at the rate that a scheduler sets."""
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
    twin = copy.deepcopy(model)
    optimizer = OPTIMIZERS["muon"].make(model, 0.02, TrainingLength(10, 1.0))
    flat = nn.Parameter(twin[0].weight.detach().view(3, -1))
    matrices, options = (
        [flat, twin[2].weight],
        {"weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"},
    )
    others = [twin[0].bias, twin[2].bias, *twin[3].parameters()]
    twins = torch.optim.Muon(matrices, 0.02, **options), torch.optim.AdamW(others, 0.02)
    x = torch.randn(7, 2, 6, generator=torch.Generator().manual_seed(0))
    for lr in (0.02, 0.01, 0.005):
        for group in (*optimizer.param_groups, *twins[0].param_groups, *twins[1].param_groups):
            group["lr"] = lr
        for module in (model, twin):
            module.zero_grad()
            module(x).square().sum().backward()
        flat.grad = twin[0].weight.grad.view(3, -1)
        optimizer.step(), twins[0].step(), twins[1].step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_muon_gets_hidden_matrices_only():
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 2)
    )
    optimizer = OPTIMIZERS["muon"].make(model, 0.01, TrainingLength(10, 1.0))
    assert [id(p) for p in optimizer.parts[0].param_groups[0]["params"]] == [
        id(model[1].weight),
        id(model[3].weight),
    ]
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    moved = [bool((p != old).any()) for p, old in zip(model.parameters(), before, strict=True)]
    assert all(moved[:2])
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_schedule_free_is_scored_at_its_average(monkeypatch):
    from schedulefree import AdamWScheduleFree

    calls = []
    for mode in ("train", "eval"):
        original = getattr(AdamWScheduleFree, mode)
        monkeypatch.setattr(
            AdamWScheduleFree,
            mode,
            lambda self, mode=mode, original=original: (calls.append(mode), original(self)),
        )
    run_cell(Cell(Baseline("schedule-free"), 0.01, "digits-cnn", 0, test=True, horizon=5))
    assert calls[0] == "train"
    assert calls[1:] == ["eval", "train"] * (len(calls) // 2)
    assert len(calls) == 1 + 2 * (6 + 2)  # the curve's points, and both splits at the end


def test_a_missing_extra_is_named(monkeypatch):
    original = importlib.import_module

    def without(name, *rest):
        if name == "prodigyopt":
            raise ModuleNotFoundError(name)
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"prodigyopt.*lr-gym\[benchmark\]"):
        check_available(["adam", "prodigy"])


@pytest.mark.parametrize("package", ["lr_gym.benchmark", "lr_gym.analysis"])
def test_the_extra_of_a_package_is_named(package, monkeypatch):
    module = importlib.import_module(package)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "scipy" else find(name)
    )
    with pytest.raises(ImportError, match=r"scipy.*lr-gym\[benchmark\]"):
        exec(compile(Path(module.__file__).read_text(), package, "exec"), {})


def test_muon_is_refused_where_torch_is_too_old(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ImportError, match=r"muon-wsd .*torch>=2.9"):
        check_available(["adam", "muon-wsd"])


def test_entrants_of_policies_come_twice():
    rows = entrants(["adam", "adam-cosine"], ["builtin:default"])
    assert [(row.name, row.lr) for row in rows] == [
        ("policy default", 1e-3),
        ("policy default (tuned lr)", None),
        ("adam", 1e-3),
        ("adam-cosine", None),
    ]
    assert [row.contestant for row in rows[1:3]] == [
        DeployedPolicy("builtin:default"),
        Baseline("adam"),
    ]
    assert [row.policy for row in rows] == ["builtin:default", "builtin:default", None, None]


def test_policies_of_the_same_name_are_told_apart(tmp_path):
    policy = load_policy("builtin:mnist1d")
    paths = [str(tmp_path / folder / "a.safetensors") for folder in ("x", "y")]
    for path in [*paths, str(tmp_path / "ppo-lr0.001.safetensors")]:
        Path(path).parent.mkdir(exist_ok=True)
        save_policy(policy, Path(path))
    names = [row.name for row in entrants([], [*paths, tmp_path / "ppo-lr0.001.safetensors"])][::2]
    assert names == [*(f"policy {path}" for path in paths), "policy ppo-lr0.001"]


@pytest.mark.parametrize(
    ("optimizers", "policies", "words"),
    [
        (["adamant"], [], "adamant.*adam-cosine"),
        ([], [], "--optimizers"),
        (["adam", "adam"], [], "'adam'.*twice"),
        ([], ["builtin:nobody"], "nobody.*default"),
    ],
)
def test_entrants_name_what_is_wrong(optimizers, policies, words):
    with pytest.raises(ValueError, match=words):
        entrants(optimizers, policies)
