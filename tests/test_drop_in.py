"""PolicyOptimizer where a script does what scripts with torch's AdamW do; the right values."""

from __future__ import annotations

import warnings

import pytest
import torch
from deployed import acting, assert_close, constant, spec_of, through_file
from tiny import random_policy
from torch import nn

from lr_gym.optim import PolicyOptimizer

STEPS = 60


def model_of(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.3)
    return model


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return (model(x) - x[:, :3].sin()).square().mean()


def train(model, optimizer, steps, scheduler=None, observe=True):
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        if observe:
            optimizer.observe(loss)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


# A decay beside the policy's own


def linear(optimizer, warmup: int = 0):
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min((t + 1) / (warmup + 1), 1.0) * max(0.0, 1.0 - max(0, t - warmup) / STEPS),
    )


def test_a_users_decay_is_warned_of_once_and_not_doubled():
    """At every step the applied rate is the peak times the lower one of the two decays."""
    model = model_of()
    optimizer = PolicyOptimizer(model.named_parameters(), constant(schedule="wsd"), 0.01, STEPS)
    scheduler = linear(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(STEPS):
            own = min(1.0, (1.0 - step / STEPS) / 0.2)
            users = 1.0 - step / STEPS
            train(model, optimizer, [step], scheduler)
            applied = optimizer.metrics()["lr/0"]  # those of the step, whatever has changed since
            assert applied == pytest.approx(0.01 * min(own, users), rel=1e-9)
    assert len(caught) == 1
    assert "beside the policy's own schedule 'wsd'" in str(caught[0].message)


def test_a_warmup_multiplies_and_warns_of_nothing():
    model = model_of()
    optimizer = PolicyOptimizer(model.named_parameters(), constant(schedule="wsd"), 0.01, STEPS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(STEPS):
            own = min(1.0, (1.0 - step / STEPS) / 0.2)
            expected = 0.01 * min(1.0, (step + 1) / 10) * own
            train(model, optimizer, [step], scheduler)
            assert optimizer.metrics()["lr/0"] == pytest.approx(expected, rel=1e-9)


def test_the_peak_is_in_the_state():
    def half_way():
        model = model_of()
        optimizer = PolicyOptimizer(model.named_parameters(), constant(schedule="wsd"), 0.01, STEPS)
        return model, optimizer, linear(optimizer, warmup=10)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer, scheduler = half_way()
        train(model, optimizer, range(30), scheduler)
        other, resumed, again = half_way()
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(through_file(optimizer.state_dict()))
        again.load_state_dict(scheduler.state_dict())
        train(model, optimizer, range(30, STEPS), scheduler)
        train(other, resumed, range(30, STEPS), again)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


# A rate per group


@pytest.mark.parametrize("policy", ["builtin:default", "builtin:muon", "builtin:anytime"])
def test_ratios_between_groups_survive(policy):
    model = model_of()
    groups = [
        {"params": list(model[0].named_parameters()), "lr": 1e-5},
        {"params": list(model[2].named_parameters()), "lr": 1e-3},
    ]
    optimizer = PolicyOptimizer(groups, policy, total_steps=STEPS, steps_per_epoch=10)
    for step in range(20):
        train(model, optimizer, [step])
        values = optimizer.metrics()
        rates = [value for key, value in values.items() if key.startswith("lr/")]
        multipliers = [value for key, value in values.items() if key.startswith("multiplier/")]
        assert rates[0] / multipliers[0] == pytest.approx(1e-5, rel=1e-6)
        assert rates[-1] / multipliers[-1] == pytest.approx(1e-3, rel=1e-6)
        # moved together: every layer's multiplier is of one order of magnitude
        assert max(multipliers) < 10.0 * min(multipliers)


def test_one_rate_for_all_groups_is_one_group():
    runs = []
    for split in (False, True):
        model = model_of()
        named = list(model.named_parameters())
        groups = [{"params": named[:2]}, {"params": named[2:]}] if split else named
        optimizer = PolicyOptimizer(groups, acting(schedule="wsd"), 0.01, STEPS)
        train(model, optimizer, range(STEPS))
        runs.append(model)
    for p, q in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert torch.equal(p, q)


# Closures


def test_a_closures_loss_is_returned_and_not_taken():
    """Frameworks pass a loss divided by the accumulated batches; `observe` is the one way."""
    models = [model_of(), model_of()]
    optimizers = [PolicyOptimizer(m.named_parameters(), acting(), 0.01, STEPS) for m in models]
    for step in range(12):

        def closure(step: int = step) -> torch.Tensor:
            optimizers[0].zero_grad()
            loss = loss_of(models[0], step) / 4.0
            loss.backward()
            return loss * 4.0

        for param, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(param, other)
        expected = float(loss_of(models[1], step).detach())
        assert float(optimizers[0].step(closure).detach()) == pytest.approx(expected)
        optimizers[1].zero_grad()
        (loss_of(models[1], step) / 4.0).backward()
        optimizers[1].step()


# torch.compile


@pytest.mark.filterwarnings("ignore:dynamo_pgo")  # where another test has switched caches off
def test_a_compiled_training_step_is_the_eager_one():
    runs = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = model_of()
        optimizer = PolicyOptimizer(model.named_parameters(), acting(), 0.01, STEPS)

        def step(
            x: torch.Tensor, model: nn.Module = model, optimizer: PolicyOptimizer = optimizer
        ) -> None:
            optimizer.zero_grad()
            loss = (model(x) - x[:, :3].sin()).square().mean()
            loss.backward()
            optimizer.step()

        run = torch.compile(step, backend="eager") if compiled else step
        for i in range(20):
            generator = torch.Generator().manual_seed(i)
            run(torch.randn(8, 6, generator=generator, dtype=torch.float64))
        assert optimizer.param_groups[0]["step"] == 20
        runs.append(model)
    assert_close(runs[1], runs[0], 1e-6)


# Frozen tensors


@pytest.mark.parametrize(
    "policy", ["builtin:default", "builtin:anytime", random_policy(spec_of(base="sgd"))]
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn])
def test_frozen_tensors_of_any_type_are_not_looked_at(policy, dtype):
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3)).double()
    frozen = nn.Parameter(torch.ones(7, 5).to(dtype), requires_grad=False)
    named = [("0.quantised", frozen), *model.named_parameters(), ("last.quantised", frozen)][:-1]
    optimizer = PolicyOptimizer(named, policy, total_steps=STEPS)
    train(model, optimizer, range(12))
    assert frozen.to(torch.float32).eq(1.0).all()


# Options of a group that change


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=STEPS),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.001, 0.02, step_size_up=7),
    ],
    ids=["one cycle", "cyclic"],
)
@pytest.mark.parametrize("base", ["adamw", "sgd", "muon"])
def test_loading_ones_own_state_changes_nothing(scheduler, base):
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for reload in (False, True):
            model = model_of()
            policy = acting(base=base)
            optimizer = PolicyOptimizer(model.named_parameters(), policy, 0.01, STEPS)
            schedule = scheduler(optimizer)
            for step in range(40):
                if reload:
                    optimizer.load_state_dict(optimizer.state_dict())
                train(model, optimizer, [step], schedule)
            runs.append(model)
    for p, q in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert torch.equal(p, q)


# Another policy's state


def test_a_state_of_another_policy_is_warned_of():
    model = model_of()
    optimizer = PolicyOptimizer(model.named_parameters(), "builtin:default", total_steps=STEPS)
    train(model, optimizer, range(3))
    state = through_file(optimizer.state_dict())
    other = PolicyOptimizer(model.named_parameters(), "builtin:mnist1d", total_steps=STEPS)
    with pytest.warns(UserWarning, match="saved under another policy"):
        other.load_state_dict(state)
    again = through_file(other.state_dict())
    other.load_state_dict(again)  # its own by now


# torch.distributed.checkpoint


@pytest.mark.parametrize("policy", ["builtin:default", "builtin:anytime", "builtin:muon"])
def test_distributed_checkpoints_resume_to_the_bit(policy):
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    def fresh():
        model = model_of()
        return model, PolicyOptimizer(model.named_parameters(), policy, 0.01, STEPS)

    model, optimizer = fresh()
    train(model, optimizer, range(23))
    state = through_file(get_optimizer_state_dict(model, optimizer))
    other, resumed = fresh()
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, state)
    train(model, optimizer, range(23, 50))
    train(other, resumed, range(23, 50))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_step_that_only_makes_the_state_is_no_step():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    runs = []
    for early in (False, True):
        model = model_of()
        optimizer = PolicyOptimizer(model.named_parameters(), "builtin:default", 0.01, STEPS)
        if early:
            get_optimizer_state_dict(model, optimizer)
            assert optimizer.state
        train(model, optimizer, range(30))
        runs.append(model)
    for p, q in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_warmup_from_zero_is_a_step():
    model = model_of()
    optimizer = PolicyOptimizer(model.named_parameters(), "builtin:default", 0.01, STEPS)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: float(t) / 10)
    train(model, optimizer, range(1))
    assert optimizer.param_groups[0]["step"] == 1
