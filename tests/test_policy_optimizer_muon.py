"""PolicyOptimizer with Muon as its base: which matrices Muon updates, and their moments."""

from __future__ import annotations

import math

import pytest
import torch
from deployed import TORCH, assert_close, constant, train
from tiny import TINY, plain_run
from torch import nn

from lr_gym.optim import PolicyOptimizer


def test_muon_leaves_to_adamw_what_a_group_says_and_the_readout():
    model, loss_at = plain_run(TINY, 1, torch.float64)
    twin, twin_loss_at = plain_run(TINY, 1, torch.float64)
    named = list(model.named_parameters())
    groups = [{"params": named[:1], "muon": False}, {"params": named[1:]}]
    train(PolicyOptimizer(groups, constant(base="muon"), lr=0.01), model, loss_at, range(20))
    train(TORCH["adamw"](twin.parameters()), twin, twin_loss_at, range(20), observe=False)
    assert_close(model, twin)


@pytest.mark.parametrize("fused", [False, True])
def test_muon_keeps_one_moment_of_a_hidden_matrix(fused):
    model, loss_at = plain_run(TINY, 1, torch.float64)
    twin, twin_loss_at = plain_run(TINY, 1, torch.float64)
    optimizer = PolicyOptimizer(
        model.named_parameters(), constant(base="muon"), lr=0.01, fused=fused
    )
    train(optimizer, model, loss_at, range(20))
    train(TORCH["muon"](twin.parameters()), twin, twin_loss_at, range(20), observe=False)
    assert_close(model, twin)
    moments = [
        {"momentum_buffer", "exp_avg", "exp_avg_sq"} & set(optimizer.state[p])
        for p in model.parameters()
    ]
    assert moments == [{"momentum_buffer"}, *[{"exp_avg", "exp_avg_sq"}] * 3]


def test_a_group_may_want_all_its_matrices_with_muon():
    model, loss_at = plain_run(TINY, 1, torch.float64)
    twin, twin_loss_at = plain_run(TINY, 1, torch.float64)
    group = {"params": list(model.parameters()), "muon": True}
    train(PolicyOptimizer([group], constant(base="muon"), lr=0.01), model, loss_at, range(20))
    train(TORCH["muon"](twin.parameters(), last=True), twin, twin_loss_at, range(20), observe=False)
    assert_close(model, twin)


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the parameters have no names")
@pytest.mark.parametrize("fused", [False, True])
def test_a_readout_that_becomes_hidden_keeps_its_moment(fused):
    """A new last matrix makes the old one hidden: it loses AdamW's second moment."""
    first, second, third = (nn.Parameter(torch.randn(8, 8)) for _ in range(3))
    optimizer = PolicyOptimizer([first, second], constant(base="muon"), total_steps=40, fused=fused)

    def step():
        for param in (first, second, third):
            param.grad = torch.ones_like(param)
        optimizer.step()

    for _ in range(3):
        step()
    moment = optimizer.state[second]["exp_avg"].clone()
    optimizer.add_param_group({"params": [third]})
    step()
    torch.testing.assert_close(optimizer.state[second]["momentum_buffer"], 0.9 * moment + 0.1)
    assert "exp_avg_sq" not in optimizer.state[second]
    for _ in range(10):
        step()
    optimizer.param_groups[0]["muon"] = False
    # The optimizer looks at the options of its groups again when a group is added.
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))]})
    before = second.detach().clone()
    step()
    assert "momentum_buffer" not in optimizer.state[second]
    torch.testing.assert_close(second, before - 1e-3 - 1e-5 * before)  # AdamW's first step
    assert all(math.isfinite(value) for value in optimizer.metrics().values())


def test_what_a_group_wants_of_muon_is_checked():
    with pytest.raises(ValueError, match="muon must be True, False or left out; got 'no'"):
        PolicyOptimizer(
            [{"params": [nn.Parameter(torch.ones(2, 2))], "muon": "no"}], constant(base="muon")
        )


def test_a_policy_of_muon_drives_no_adamw():
    with pytest.raises(ValueError, match="trained on base='muon'; it cannot drive base='adamw'"):
        PolicyOptimizer(nn.Linear(2, 1).parameters(), constant(base="muon"), base="adamw")


@pytest.mark.parametrize(
    ("base", "options", "decay"),
    [
        ("muon", {"total_steps": 2001, "steps_per_epoch": 10}, 0.1),
        ("muon", {"total_steps": 2000, "steps_per_epoch": 10}, 0.01),
        ("muon", {"total_steps": 2001}, 0.01),
        ("muon", {"steps_per_epoch": 0.1}, 0.01),
        ("muon", {"total_steps": 2001, "steps_per_epoch": 10, "weight_decay": 0.0}, 0.0),
        ("adamw", {"total_steps": 2001, "steps_per_epoch": 10}, 0.01),
        ("sgd", {"total_steps": 2001, "steps_per_epoch": 10}, 0.0),
    ],
)
def test_muon_decays_more_over_hundreds_of_passes(base, options, decay):
    optimizer = PolicyOptimizer(nn.Linear(2, 1).parameters(), constant(base=base), **options)
    assert optimizer.param_groups[0]["weight_decay"] == decay
