"""PolicyOptimizer with Muon as its base: which matrices Muon updates, and their moments."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from deployed import TORCH, assert_close, constant, train
from tiny import TINY, plain_run
from torch import nn

from lr_gym.optim import PolicyOptimizer, muon_groups
from lr_gym.optim.model_layout import lay_out
from lr_gym.tasks import TASKS
from lr_gym.training.inner_loop import InnerLoop
from lr_gym.updates.muon import Muon
from lr_gym.updates.rules import base_rule


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


class Reader(nn.Module):
    """An LSTM, attention over its states, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.readout = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(x)
        mixed, _ = self.attention(states, states, states, need_weights=False)
        return self.readout(mixed.mean(1))


def reader_run():
    torch.manual_seed(0)
    model = Reader().double()
    x = torch.randn(8, 5, 3, dtype=torch.float64)
    return model, lambda step: (model(x + 0.1 * step) - x.sum((1, 2)).unsqueeze(1)).square().mean()


BLOCKS = {"lstm.weight_ih_l0": 4, "lstm.weight_hh_l0": 4, "attention.in_proj_weight": 3}


@pytest.mark.parametrize("grouped", [False, True])
def test_gates_queries_keys_and_values_are_matrices_of_their_own(grouped):
    """By their names, or because a group says so of matrices without names."""
    model, loss_at = reader_run()
    twin, twin_loss_at = reader_run()
    if grouped:
        counts = [BLOCKS.get(name, 1) for name, _ in model.named_parameters()]
        groups = [
            {"params": [param], "muon": name != "readout.weight", "blocks": count}
            for (name, param), count in zip(model.named_parameters(), counts, strict=True)
        ]
    else:
        groups = list(model.named_parameters())
    blocks = {param: BLOCKS.get(name, 1) for name, param in twin.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of groups without names
        optimizer = PolicyOptimizer(groups, constant(base="muon"), lr=0.01)
        train(optimizer, model, loss_at, range(10))
    train(TORCH["muon"](twin.parameters(), blocks=blocks), twin, twin_loss_at, range(10), False)
    assert_close(model, twin)


def test_a_group_may_say_that_a_name_is_wrong():
    model, _ = reader_run()
    groups = [{"params": list(model.named_parameters()), "blocks": 1}]
    _, slots = lay_out(PolicyOptimizer(groups).param_groups, base_rule("muon"), "per_layer")
    assert {slot.rule.blocks for slot in slots if isinstance(slot.rule, Muon)} == {1}


@pytest.mark.parametrize("name", ["mnist1d-gru", "mnist1d-transformer", "digits-cnn"])
def test_environment_and_optimizer_give_every_tensor_the_same_rule(name):
    loop = InnerLoop(TASKS[name], base="muon")
    groups = PolicyOptimizer(muon_groups(loop.model)).param_groups
    _, slots = lay_out(groups, base_rule("muon"), "per_layer")
    assert [slot.rule for slot in slots] == loop.rules
    counts = {getattr(rule, "blocks", 0) for rule in loop.rules}
    assert (3 in counts) == (name != "digits-cnn")


def test_blocks_of_a_group_are_checked():
    with pytest.raises(ValueError, match="a group's blocks must be an integer of at least 1"):
        PolicyOptimizer([{"params": [nn.Parameter(torch.ones(6, 2))], "blocks": 0}])
    group = {"params": [nn.Parameter(torch.ones(7, 2))], "muon": True, "blocks": 3}
    optimizer = PolicyOptimizer([group], constant(base="muon"))
    with pytest.raises(ValueError, match="blocks=3, but 7 rows of a matrix of shape"):
        optimizer.metrics()
