"""What PolicyOptimizer saves.

Exact resume, copies, states of torch's optimizers, of older versions, other layers.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle

import pytest
import torch
from deployed import TORCH, acting, assert_close, assert_same, constant, through_file, train
from tiny import TINY, plain_run
from torch import nn

from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.policy import load_policy
from lr_gym.updates.rules import RULES


@pytest.mark.parametrize("base", ["adam", "adamw"])
def test_state_of_torchs_optimizer_continues(base):
    """A training that began with torch's optimizer goes on as if nothing had happened."""
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    before, after = TORCH[base](model.parameters()), TORCH[base](twin.parameters())
    train(before, model, loss_at, range(10), observe=False)
    train(after, twin, twin_loss_at, range(20), observe=False)
    optimizer = PolicyOptimizer(model.parameters(), constant(base=base), base=base, total_steps=20)
    optimizer.load_state_dict(through_file(before.state_dict()))
    assert optimizer.param_groups[0]["lr"] == 0.01
    train(optimizer, model, loss_at, range(10, 20))
    assert_close(model, twin)


def test_going_on_after_the_end_warns_once():
    """A checkpoint of 30 steps, loaded for 20 more of which only those were announced."""
    model, loss_at = plain_run(TINY, 1, torch.float32)
    make = lambda total_steps: PolicyOptimizer(
        model.parameters(), constant(schedule="wsd"), total_steps=total_steps
    )
    before, optimizer = make(50), make(20)
    train(before, model, loss_at, range(30))
    optimizer.load_state_dict(through_file(before.state_dict()))
    with pytest.warns(UserWarning, match="total_steps=20 are over at step 30") as caught:
        train(optimizer, model, loss_at, range(30, 40))
    assert len(caught) == 1


def test_the_hooks_of_the_user_decide_what_is_loaded():
    """Torch's way to load a state whose parameters have another order."""
    make = lambda *params: PolicyOptimizer(list(params), acting(), lr=0.01, total_steps=20)
    one, two = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2, 5))

    def swap(optimizer, state_dict):
        state = {
            index: dict(own)
            for index, own in zip((1, 0), state_dict["state"].values(), strict=True)
        }
        return {**state_dict, "state": state}

    before = make(one, two)
    for step in range(6):
        one.grad, two.grad = torch.randn_like(one), torch.randn_like(two) * step
        before.step()
    after = make(two, one)
    after.register_load_state_dict_pre_hook(swap)
    after.load_state_dict(through_file(before.state_dict()))
    for param in (one, two):
        assert after.state[param].keys() == before.state[param].keys()
        for key, value in before.state[param].items():
            assert torch.equal(after.state[param][key], value)
    assert len(after._optimizer_load_state_dict_pre_hooks) == 1


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the parameters have no names")
def test_muon_goes_on_from_adamw_and_its_groups_keep_what_they_want():
    model, loss_at = plain_run(TINY, 1, torch.float64)
    before = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(before, model, loss_at, range(10), observe=False)
    moments = [before.state[param]["exp_avg"].clone() for param in model.parameters()]
    for muon, key in ((False, "exp_avg"), (None, "momentum_buffer")):
        group = {"params": list(model.parameters())} | ({} if muon is None else {"muon": muon})
        optimizer = PolicyOptimizer([group], constant(base="muon"), total_steps=20)
        optimizer.load_state_dict(through_file(before.state_dict()))
        assert optimizer.param_groups[0].get("muon") is muon
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
        for param, moment, name in zip(
            model.parameters(), moments, (key, *["exp_avg"] * 3), strict=True
        ):
            torch.testing.assert_close(optimizer.state[param][name], 0.9 * moment)


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the state that was loaded was saved")
@pytest.mark.parametrize(
    ("before", "after"), [*itertools.permutations(["adamw", "muon", "sgd"], 2)][1:]
)
def test_moments_of_another_rule_start_anew(before, after):
    """And so do the masses by which they are unbiased.

    The next step is that of a fresh optimizer.
    """
    model, loss_at = plain_run(TINY, 1, torch.float64)
    make = lambda module, base: PolicyOptimizer(
        module.named_parameters(),
        constant(base=base),
        lr=0.01,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.0,
    )
    older = make(model, before)
    train(older, model, loss_at, range(20))
    twin = copy.deepcopy(model)
    for module in (model, twin):
        for param in module.parameters():
            param.grad = torch.ones_like(param)
    moved, fresh = make(model, after), make(twin, after)
    moved.load_state_dict(through_file(older.state_dict()))
    for _ in range(5):
        moved.step()
        fresh.step()
    torch.testing.assert_close(
        model[0].weight, twin[0].weight
    )  # a hidden matrix; others were AdamW's under Muon too
    assert not any("momentum_buffer" in state for state in moved.state.values() if after == "adamw")


@pytest.mark.parametrize("at", [0, 9, 10])
@pytest.mark.parametrize("total_steps", [40, None])
@pytest.mark.parametrize("base", RULES)
def test_state_dict_continues_bit_for_bit(base, total_steps, at):
    policy = acting(base=base)
    make = lambda module: PolicyOptimizer(
        module.named_parameters(), policy, lr=0.01, total_steps=total_steps, base=base, seed=3
    )
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model)
    train(optimizer, model, loss_at, range(at))
    saved = through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    expected = train(optimizer, model, loss_at, range(at, at + 20))
    other, other_loss_at = plain_run(TINY, 1, torch.float32)
    other.load_state_dict(saved["model"])
    fresh = make(other)
    fresh.load_state_dict(saved["optimizer"])
    assert_same(train(fresh, other, other_loss_at, range(at, at + 20)), expected)
    assert fresh.metrics() == optimizer.metrics()


def test_a_state_knows_whether_it_was_guarded():
    """A guard's state is loaded into a guarded optimizer, and left alone by one without a guard."""
    policy = load_policy("builtin:mnist1d")
    model, loss_at = plain_run(TINY, 1, torch.float32)
    make = lambda ranges: PolicyOptimizer(
        model.named_parameters(),
        dataclasses.replace(policy, ranges=ranges),
        total_steps=40,
        steps_per_epoch=5,
    )
    optimizer = make(policy.ranges)
    train(optimizer, model, loss_at, range(10))
    state, metrics = through_file(optimizer.state_dict()), optimizer.metrics()
    free, guarded = make(None), make(policy.ranges)
    free.load_state_dict(state)
    assert {key: metrics[key] for key in free.metrics()} == free.metrics()
    guarded.load_state_dict(through_file(free.state_dict()))
    assert guarded.metrics() == metrics


def test_a_state_of_other_layers_warns():
    """Without names a bias joins the weight before it; with them it has a layer of its own."""
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    bare = PolicyOptimizer([weight, bias], acting(), total_steps=40)
    weight.grad, bias.grad = torch.ones(2, 2), torch.ones(2)
    bare.step()
    named = PolicyOptimizer([("a.weight", weight), ("b.weight", bias)], acting(), total_steps=40)
    named.load_state_dict(through_file(bare.state_dict()))
    with pytest.warns(UserWarning, match="has other layers"):
        named.step()


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the state that was loaded was saved")
def test_a_state_of_a_policy_with_other_controls_is_refused():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.parameters(), acting(), total_steps=40)
    train(optimizer, model, loss_at, range(3))
    other = PolicyOptimizer(model.parameters(), constant(), total_steps=40)
    other.load_state_dict(through_file(optimizer.state_dict()))
    with pytest.raises(ValueError, match="policy with other controls"):
        other.metrics()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_continue_bit_for_bit(how):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.parameters(), acting(), lr=0.01, total_steps=40)
    train(optimizer, model, loss_at, range(10))
    other, twin = how((model, optimizer))
    data = [loss_at.__closure__[i].cell_contents for i in range(len(loss_at.__closure__))]
    assert model in data  # `loss_at` trains the original: the copy gets its own
    _, other_loss_at = plain_run(TINY, 1, torch.float32)
    for cell in other_loss_at.__closure__:
        if isinstance(cell.cell_contents, nn.Module):
            cell.cell_contents = other
    assert_same(
        train(optimizer, model, loss_at, range(10, 30)),
        train(twin, other, other_loss_at, range(10, 30)),
    )


def test_saving_in_between_changes_nothing():
    traces = []
    for saves in (False, True):
        model, loss_at = plain_run(TINY, 1, torch.float32)
        optimizer = PolicyOptimizer(model.parameters(), acting(), lr=0.01, total_steps=40)
        trace = []
        for step in range(20):
            trace += train(optimizer, model, loss_at, [step])
            if saves:
                optimizer.state_dict(), optimizer.metrics()
        traces.append(trace)
    assert_same(*traces)


def test_half_precision_keeps_the_controllers_state_in_full():
    model, loss_at = plain_run(TINY, 1, torch.bfloat16)
    make = lambda: PolicyOptimizer(model.parameters(), acting(), lr=0.01, total_steps=40)
    optimizer = make()
    train(optimizer, model, loss_at, range(10))
    before = optimizer.metrics()
    fresh = make()
    fresh.load_state_dict(through_file(optimizer.state_dict()))
    assert fresh.metrics() == before
