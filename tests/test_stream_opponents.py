"""The opponents of policies on streams: they train there, and the rates they record are applied."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.special import erfi
from torch import nn

from lr_gym.benchmark.cell_runs import log_cells
from lr_gym.benchmark.contestants import Baseline
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.recipes import TrainingLength
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.benchmark.schedulers import SCHEDULERS
from lr_gym.benchmark.shrink_perturb import NOISE, SHRINKAGE, ShrinkAndPerturb
from lr_gym.benchmark.trac import StoredTrac

# They need no end of the training: their rate is constant, or what they see sets it.
ENDLESS = [
    name
    for name, recipe in OPTIMIZERS.items()
    if recipe.schedule in ("constant", "plateau") and not recipe.held_out.wanted
]
LENGTH = TrainingLength(100, None, endless=True)
SGD_LR = 0.01  # of the rows with the range of SGD


def test_every_kind_of_opponent_can_do_without_an_end():
    named = {"sgd", "adamw", "adamw-plateau", "schedule-free", "trac-stored", "shrink-and-perturb"}
    named |= {"adaptive-upgd", "adaptive-upgd-noise", "muon-constant", "prodigy-constant"}
    assert named < set(ENDLESS)


@pytest.mark.parametrize("name", [*ENDLESS, "adamw-warm-restarts"])
def test_opponents_train_on_streams_and_repeat_themselves(name):
    recipe = OPTIMIZERS[name]
    lr = recipe.lr or (SGD_LR if recipe.space[1] > 1.0 else 0.01)
    cell = Cell(Baseline(name), lr, "stream-digits-labels", 0, test=True, horizon=40)
    one, two = (run_cell(cell)._replace(seconds=0.0, training=0.0) for _ in range(2))
    assert json.dumps(one) == json.dumps(two)  # after_change is nan
    assert one.error is None
    assert 0.0 < one.test_loss < 3.0


@pytest.mark.parametrize("name", ["muon-constant", "prodigy-constant", "adamw", "sgd"])
def test_a_constant_rate_does_not_fall_towards_the_end(name):
    recipe = OPTIMIZERS[name]
    lr = recipe.lr or 0.01
    cell = Cell(Baseline(name), lr, "stream-digits-labels", 0, test=True, horizon=60)
    rates = [point[0] for point in run_cell(cell).lr]
    assert len(rates) == 60
    assert rates == sorted(rates)  # Prodigy's scale only grows
    assert rates[-1] >= rates[0] > 0.0


def linear_steps(name: str, gradients: torch.Tensor, lr: float):
    """Weights (steps + 1, n) that start at 0 under given gradients, and the recorded rates."""
    model = nn.Linear(gradients.shape[1], 1, bias=False)
    nn.init.zeros_(model.weight)
    recipe = OPTIMIZERS[name]
    optimizer = recipe.make(model, lr, LENGTH)
    weights, rates = [model.weight.detach().clone()], [recipe.rates(optimizer)["all"]]
    for gradient in gradients:
        model.weight.grad = gradient.reshape(1, -1).clone()
        optimizer.step()
        weights.append(model.weight.detach().clone())
        rates.append(recipe.rates(optimizer)["all"])
    return torch.cat(weights).double(), rates


@pytest.mark.parametrize("name", ["trac", "trac-stored"])
def test_the_rate_of_trac_is_the_one_that_is_applied(name):
    """Under a constant gradient an update of AdamW is -lr, and the weights are scale * its sum."""
    lr = 0.01
    weights, rates = linear_steps(name, torch.ones(40, 3), lr)
    assert rates[0] <= lr * 1e-8
    assert rates[-1] > 1e5 * rates[2] > 0.0
    for step in range(5, 40):
        before = weights[step] / (rates[step] / lr + (1e-8 if name == "trac" else 0.0))
        after = weights[step + 1] / (rates[step + 1] / lr)
        assert (after - before).tolist() == pytest.approx([-lr] * 3, rel=0.02)


def test_trac_against_a_naive_twin():
    """One weight whose gradients are given; AdamW's decay and moments are written out."""
    lr = 0.01
    steps = 60
    gradients = torch.randn(steps, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    weights, _ = linear_steps("trac-stored", gradients, lr)
    w, total, first, second = 0.0, 0.0, 0.0, 0.0
    betas = [0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]
    variance = [0.0] * 6
    sigma = [1e-8] * 6
    for step, g in enumerate(gradients[:, 0].tolist(), start=1):
        h = g * total
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g * g
        direction = (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
        total += -lr * 0.01 * w - lr * direction
        variance = [b * b * v + h * h for b, v in zip(betas, variance, strict=True)]
        sigma = [b * s - h for b, s in zip(betas, sigma, strict=True)]
        tuners = [
            1e-8 * erfi(s / (math.sqrt(2 * v) + 1e-8)) / erfi(1 / math.sqrt(2))
            for s, v in zip(sigma, variance, strict=True)
        ]
        w = max(0.0, sum(tuners)) * total
        assert float(weights[step, 0]) == pytest.approx(w, rel=1e-3, abs=1e-14)


def test_trac_moves_again_after_its_scale_was_0_and_the_published_one_does_not():
    gradients = torch.ones(40, 2)
    gradients[1:3] = -1.0  # the second and third gradient point back
    moved = {name: linear_steps(name, gradients, 0.01)[1] for name in ("trac", "trac-stored")}
    assert min(moved["trac-stored"][1:6]) == 0.0
    assert moved["trac-stored"][-1] > 0.0
    assert moved["trac"][-1] == 0.0


def test_trac_passes_over_parameters_without_a_gradient():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = StoredTrac(torch.optim.AdamW([used, unused], 0.1))
    for _ in range(30):
        used.grad = torch.ones(2)
        optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(2))
    assert (used < 1.0).all()


def test_the_rate_of_schedule_free_is_that_of_its_warmup():
    model = nn.Linear(2, 1)
    recipe = OPTIMIZERS["schedule-free"]
    optimizer = recipe.make(model, 0.5, LENGTH)  # a warmup of 5 steps
    optimizer.train()
    found = [recipe.rates(optimizer)["all"]]
    for _ in range(8):
        model(torch.ones(2)).sum().backward()
        optimizer.step()
        found.append(recipe.rates(optimizer)["all"])
        assert found[-1] == pytest.approx(optimizer.param_groups[0]["scheduled_lr"])
    assert found == pytest.approx([0.1, *np.minimum(np.arange(1, 9) / 5, 1.0) * 0.5])


@pytest.mark.parametrize(
    ("task", "key", "other"),
    [("stream-values-4", "online_loss", "test_loss"), ("quadratic", "test_loss", "online_loss")],
)
def test_wandb_runs_call_the_loss_what_it_is(task, key, other, tmp_path, monkeypatch):
    logged = {}

    def log_run(folder, config, points, summary, **names):
        logged.update(points=points, summary=summary)

    monkeypatch.setattr("lr_gym.benchmark.cell_runs.log_run", log_run)
    cell = Cell(Baseline("adam"), 1e-3, task, 0, test=True, horizon=10)
    outcome = run_cell(cell)
    log_cells(tmp_path, {cell: outcome}, "disabled")
    assert logged["summary"][f"final_{key}"] == outcome.test_loss
    assert [figures[key] for _, figures in logged["points"]] == outcome.curve
    text = json.dumps([logged["points"], logged["summary"]])
    assert f'"{other}"' not in text
    assert f'"final_{other}"' not in text


def test_warm_restarts_are_ten_cycles_of_a_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = SCHEDULERS["warm-restarts"](optimizer, 0.5, 40)
    for step in range(40):
        expected = 0.25 * (1.0 + math.cos(math.pi * (step % 4) / 4))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


def test_shrink_and_perturb_is_adamw_and_then_shrinks_and_perturbs():
    start = [torch.linspace(-1.0, 2.0, 7), torch.zeros(3)]
    params, twins = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizer = ShrinkAndPerturb(params, 0.05, seed=4)
    adamw = torch.optim.AdamW(twins, 0.05)
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        for group, stepper in ((params, optimizer), (twins, adamw)):
            stepper.zero_grad()
            sum((p - 1.0).pow(4).sum() for p in group).backward()
            stepper.step()
        with torch.no_grad():
            for p, initial in zip(twins, start, strict=True):
                spread = (initial - initial.mean()).square().mean().sqrt()
                noise = torch.randn(p.shape, generator=generator)
                p.copy_((1.0 - SHRINKAGE) * p + NOISE * spread * noise)
        for p, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(p, twin)
