"""PolicyOptimizer as an ordinary torch optimizer: updates, groups, schedulers, arguments."""

from __future__ import annotations

import contextlib

import pytest
import torch
from deployed import TORCH, assert_close, constant, train
from tiny import TINY, plain_run
from torch import nn

from lr_gym.control.action import CONTROLLED
from lr_gym.layers import GRANULARITIES
from lr_gym.optim import PolicyOptimizer
from lr_gym.updates.rules import RULES
from lr_gym.updates.schedules import SCHEDULES, base_schedule


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the parameters have no names")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("base", RULES)
def test_policy_that_never_acts_is_torch_optim(base, weight_decay, maximize, granularity):
    model, loss_at = plain_run(TINY, 1, torch.float64)
    twin, twin_loss_at = plain_run(TINY, 1, torch.float64)
    policy = constant(base=base, granularity=granularity, controls=CONTROLLED)
    options = {"weight_decay": weight_decay, "maximize": maximize}
    optimizer = PolicyOptimizer(
        model.parameters(), policy, lr=0.01, total_steps=40, base=base, **options
    )
    train(optimizer, model, loss_at, range(40))
    train(TORCH[base](twin.parameters(), **options), twin, twin_loss_at, range(40), observe=False)
    assert_close(model, twin)


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the learning rate falls from")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_lower_of_base_schedule_and_the_users_decay_counts(schedule):
    model, loss_at = plain_run(TINY, 1, torch.float64)
    twin, twin_loss_at = plain_run(TINY, 1, torch.float64)
    policy = constant(schedule=schedule)
    optimizer = PolicyOptimizer(model.parameters(), policy, lr=0.01, total_steps=20)
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01)
    users = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    own = base_schedule(schedule)
    both = torch.optim.lr_scheduler.LambdaLR(
        twin_optimizer, lambda step: min(float(own(step / 20)), 0.9**step)
    )
    for step in range(25):  # five more than announced
        over = step == 20 and schedule != "constant"
        warns = pytest.warns(UserWarning, match="total_steps=20 are over")
        with warns if over else contextlib.nullcontext():
            train(optimizer, model, loss_at, [step])
        train(twin_optimizer, twin, twin_loss_at, [step], observe=False)
        users.step(), both.step()
    assert_close(model, twin)
    # The policy does not write into the group.
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**25)


@pytest.mark.parametrize("fused", [False, True])
def test_groups_have_their_own_settings(fused):
    model, loss_at = plain_run(TINY, 1, torch.float64)
    twin, twin_loss_at = plain_run(TINY, 1, torch.float64)

    def groups(module):
        named = list(module.named_parameters())
        weights, biases = (
            [(n, p) for n, p in named if (p.ndim > 1) == wide] for wide in (True, False)
        )
        first = {"params": weights, "lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.99)}
        return [first, {"params": biases, "weight_decay": 0.0, "eps": 1e-4, "betas": (0.5, 0.95)}]

    optimizer = PolicyOptimizer(groups(model), constant(), lr=0.01, total_steps=30, fused=fused)
    train(optimizer, model, loss_at, range(30))
    train(torch.optim.AdamW(groups(twin), lr=0.01), twin, twin_loss_at, range(30), observe=False)
    assert_close(model, twin)


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the learning rate falls from")
@pytest.mark.parametrize("policy", ["builtin:default", "builtin:mnist1d"])
def test_the_policy_does_not_cancel_the_users_scheduler(policy):
    """Where the user's scheduler divides by ten, the rate in force falls to about a tenth.

    The policy does not take the fall for a bad start that it has to mend.
    """
    ends = []
    for factor in (1.0, 0.1):
        model, loss_at = plain_run(TINY, 1, torch.float32)
        optimizer = PolicyOptimizer(model.named_parameters(), policy, total_steps=100)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step, f=factor: f if step >= 20 else 1.0
        )
        for step in range(60):
            train(optimizer, model, loss_at, [step])
            scheduler.step()
        ends.append([value for key, value in optimizer.metrics().items() if key.startswith("lr/")])
    for plain, scaled in zip(*ends, strict=True):
        assert 0.03 < scaled / plain < 0.2


def test_a_scheduler_that_begins_low_is_not_where_the_policy_starts():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.named_parameters(), constant(), lr=0.01, total_steps=100)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.001)  # a warmup
    train(optimizer, model, loss_at, [0])
    assert optimizer.param_groups[0]["start_lr"] == 0.01
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_weight_decay_is_torchs_by_default():
    parameters = list(nn.Linear(2, 1).parameters())
    for base, torchs in TORCH.items():
        mine = PolicyOptimizer(parameters, constant(base=base), base=base)
        assert mine.defaults["weight_decay"] == torchs(parameters).defaults["weight_decay"]


# Wrong arguments


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"eps": -1e-8}, "eps"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": (1.0, 0.999)}, "betas"),
        ({"betas": (0.9, float("nan"))}, "betas"),
        ({"total_steps": 0}, "total_steps"),
        ({"total_steps": 2.5}, "total_steps"),
        ({"steps_per_epoch": 0}, "steps_per_epoch"),
        ({"steps_per_epoch": float("nan")}, "steps_per_epoch"),
        ({"base": "lion"}, "base"),
        ({"base": "sgd"}, "trained on base"),
        ({"policy": "builtin:nonsense"}, "built-in"),
    ],
    ids=str,
)
def test_wrong_argument_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        PolicyOptimizer([nn.Parameter(torch.ones(2))], **{"policy": constant(), **options})


def test_the_base_is_the_policys_unless_another_is_asked_for():
    weight = [torch.ones(2).requires_grad_()]
    assert PolicyOptimizer(weight, constant(base="sgd")).defaults["betas"][0] == 0.9
    assert PolicyOptimizer(weight, constant(base="adam")).defaults["weight_decay"] == 0.0
    assert PolicyOptimizer(weight, constant(base="adamw")).defaults["weight_decay"] == 0.01
    with pytest.raises(ValueError, match="base"):
        PolicyOptimizer(weight, constant(base="adam"), base="sgd")


def test_a_learning_rate_is_no_policy():
    with pytest.raises(TypeError, match=r"got 0\.001: pass a rate as lr="):
        PolicyOptimizer([torch.ones(2).requires_grad_()], 1e-3)
