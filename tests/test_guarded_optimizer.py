"""PolicyOptimizer with a guard.

In range it changes no bit; out of range it fades and warns once; its state is saved.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch
from deployed import assert_same, spec_of, through_file, train, train_watched
from guarded import LR, acting, everything, make, metric, nothing
from tiny import TINY, plain_run, random_policy

from lr_gym.optim import PolicyOptimizer
from lr_gym.optim.guard import (
    MARGIN,
)


@pytest.mark.parametrize("action", ["recursive", "residual"])
@pytest.mark.parametrize("granularity", ["per_layer", "global"])
def test_in_range_the_guard_changes_no_bit(granularity, action):
    traces = []
    for ranges in (None, everything):
        model, loss_at = plain_run(TINY, 1, torch.float32)
        optimizer = make(model, acting(ranges, granularity=granularity, action=action))
        traces.append(train(optimizer, model, loss_at, range(40)))
    assert_same(*traces)
    assert metric(optimizer, "trust") == [1.0] * len(metric(optimizer, "lr"))


def test_out_of_range_from_the_start_is_the_base_optimizer():
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    optimizer = make(model, acting(nothing), weight_decay=0.0)
    with pytest.warns(UserWarning, match="2 of 2 layers"):
        train(optimizer, model, loss_at, range(40))
    train(
        torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0),
        twin,
        twin_loss_at,
        range(40),
        observe=False,
    )
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p - q).norm() <= 1e-9 * q.norm()
    assert metric(optimizer, "trust") == [0.0, 0.0]


def test_an_unknown_base_lr_is_led_to_the_known_ones_at_most():
    model, loss_at = plain_run(TINY, 1, torch.float64)
    optimizer = make(model, acting(nothing), lr=5.0)
    with pytest.warns(UserWarning, match="2 of 2 layers"):
        train(optimizer, model, loss_at, range(40))
    lrs = metric(optimizer, "lr")
    assert min(lrs) >= LR[1] - 1e-6
    assert min(lrs) < 5.0 or max(lrs) == 5.0


@pytest.mark.parametrize("lr", [1e-5, 0.01, 5.0])
def test_in_a_training_far_too_short_or_long_no_rate_is_moved(lr):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    policy = acting(everything, features=("cosine", "horizon"), controls=("lr",))
    policy.ranges.features[:, 1] = torch.tensor([0.5, 0.9])
    optimizer = make(model, policy, lr=lr, total_steps=10)
    with pytest.warns(
        UserWarning, match=r"total_steps: 10, and the policy knows 3.16e\+04 to 5.01e\+05"
    ):
        train(optimizer, model, loss_at, range(10))
    assert metric(optimizer, "multiplier") == [1.0, 1.0]


@pytest.mark.parametrize(("lr", "fades"), [(0.01, True), (0.5, False)])
def test_out_of_range_later_fades_or_holds(lr, fades):
    model, loss_at = plain_run(TINY, 1, torch.float64)
    policy = acting(everything)
    optimizer = make(model, policy, lr=lr)
    train(optimizer, model, loss_at, range(15))
    before = metric(optimizer, "multiplier")
    assert all(abs(np.log(value)) > 0.1 for value in before)
    state = optimizer.state_dict()
    optimizer = make(model, dataclasses.replace(policy, ranges=nothing(policy.spec)), lr=lr)
    optimizer.load_state_dict(state)
    with pytest.warns(UserWarning, match="learned from nothing like"):
        train(optimizer, model, loss_at, range(15, 40))
    assert metric(optimizer, "multiplier") == ([1.0, 1.0] if fades else before)


def test_a_scheduler_does_not_lead_out_of_the_known_learning_rates():
    """The base lr is where the user's schedule began, not where it is."""
    model, loss_at = plain_run(TINY, 1, torch.float64)
    optimizer = make(
        model, acting(lambda spec: nothing(spec)._replace(lr=torch.tensor([2e-3, 0.01])))
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer._prepare().control.offset[:] = 1.0
    with pytest.warns(UserWarning, match="2 of 2 layers"):
        train(optimizer, model, loss_at, [0])
    for step in range(1, 10):
        scheduler.step()
        train(optimizer, model, loss_at, [step])
    assert metric(optimizer, "multiplier") == [1.0, 1.0]


def test_one_warning_that_says_where_and_what():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model, acting(nothing))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(optimizer, model, loss_at, range(20))
        optimizer.metrics()
        optimizer.add_param_group(
            {"params": [("head.weight", torch.nn.Parameter(torch.ones(2, 2)))]}
        )
        train(optimizer, model, loss_at, range(20, 40))
        twin = pickle.loads(pickle.dumps(optimizer))
        twin.metrics()
    (warning,) = caught
    text = str(warning.message)
    layer, feature = optimizer._prepare().layout.names[0], "depth"
    assert layer in text
    assert f"{feature} of {layer} (position of the layer" in text
    assert ") is -1.00, and the policy knows 0.00 to 0.00." in text
    assert "metrics()" in text


@pytest.mark.filterwarnings("ignore:PolicyOptimizer")
def test_weights_that_creep_away_are_noticed_without_any_spike_of_the_loss():
    """The loss does not depend on the scale of the weights, so it stays while they grow."""
    spec = spec_of()
    ranges = everything(spec)
    ranges.features[1, spec.features.index("weight_growth")] = 0.7  # at most 0.3 outside: never far
    policy = dataclasses.replace(random_policy(spec, interval=1), ranges=ranges)
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = PolicyOptimizer([("weight", weight)], policy, lr=1e-6, total_steps=None)
    trust, losses = [], []
    for _ in range(150):
        loss = (weight / weight.norm() - torch.eye(2, 3)).square().sum()
        losses.append(loss.item())
        train(optimizer, torch.nn.ParameterList([weight]), lambda _, loss=loss: loss, [0])
        trust += metric(optimizer, "trust")
        with torch.no_grad():
            weight.mul_(1.02)
    assert max(losses) <= losses[0] + 1e-6
    assert trust[10] == 1.0
    assert min(trust[:60]) > 0.6
    assert trust[-1] < 0.1


def test_metrics_show_trust_and_drift_only_where_there_is_a_guard():
    for ranges in (None, everything):
        model, loss_at = plain_run(TINY, 1, torch.float32)
        optimizer = make(model, acting(ranges))
        train(optimizer, model, loss_at, range(3))
        shown = {key.partition("/")[0] for key in optimizer.metrics()}
        assert ({"trust", "drift"} <= shown) == (ranges is not None)


@pytest.mark.parametrize("ranges", [everything, nothing])
def test_the_guard_reads_no_number_back_from_the_device(ranges):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model, acting(ranges))
    optimizer._notices._given.add("guard")  # on the CPU what the host knows is there at once
    optimizer.param_groups[0]["pretrained"] = False  # which is read back once, at the start
    train_watched(optimizer, loss_at, 12)


def half_seen(spec):
    """Ranges that this training is a little outside of, so that drift adds up."""
    ranges = everything(spec)
    ranges.features[1, spec.features.index("loss_known")] = 1.0 - 0.6 * MARGIN
    return ranges


@pytest.mark.filterwarnings("ignore:PolicyOptimizer")
@pytest.mark.parametrize("at", [5, 17, 30])
def test_state_dict_continues_bit_for_bit(at):
    policy = acting(half_seen)
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model, policy)
    train(optimizer, model, loss_at, range(at))
    saved = through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    copies = [
        copy.deepcopy(optimizer.state_dict()),
        pickle.loads(pickle.dumps(optimizer)).state_dict(),
    ]
    expected = train(optimizer, model, loss_at, range(at, 40))
    assert min(metric(optimizer, "drift")) > 0
    for state in (saved["optimizer"], *copies):
        other, other_loss_at = plain_run(TINY, 1, torch.float32)
        other.load_state_dict(saved["model"])
        fresh = make(other, policy)
        fresh.load_state_dict(state)
        assert_same(train(fresh, other, other_loss_at, range(at, 40)), expected)
        assert fresh.metrics() == optimizer.metrics()


@pytest.mark.parametrize(("before", "after"), [(None, everything), (everything, None)])
def test_states_with_and_without_a_guard_load_each_other(before, after):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make(model, acting(before))
    train(optimizer, model, loss_at, range(12))
    saved = through_file(optimizer.state_dict())
    fresh = make(model, acting(after))
    fresh.load_state_dict(saved)
    for key in ("lr", "multiplier", "momentum", "noise"):
        assert metric(fresh, key) == metric(optimizer, key)
    train(fresh, model, loss_at, range(12, 20))
    assert metric(fresh, "trust") == ([] if after is None else [1.0, 1.0])
