"""PolicyOptimizer as an ordinary torch optimizer.

Exact resume, torch's own updates, odd parameters, no host sync.
"""

from __future__ import annotations

import contextlib
import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import (
    TORCH,
    NoSync,
    acting,
    assert_close,
    assert_same,
    constant,
    spec_of,
    train,
    train_watched,
)
from tiny import TINY, plain_run, random_policy
from torch import nn

from lr_gym.control.action import ACTIONS, CONTROLLED, action_table
from lr_gym.layers import GRANULARITIES
from lr_gym.optim import PolicyOptimizer, base_step
from lr_gym.policies.policy import MLPPolicy, save_policy
from lr_gym.updates.rules import RULES
from lr_gym.updates.schedules import SCHEDULES, base_schedule

# Torch's own optimizers


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("base", RULES)
def test_policy_that_never_acts_is_torch_optim(base, weight_decay, maximize, granularity):
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    policy = constant(base=base, granularity=granularity, controls=CONTROLLED)
    options = {"weight_decay": weight_decay, "maximize": maximize}
    optimizer = PolicyOptimizer(
        model.parameters(), policy, lr=0.01, total_steps=40, base=base, **options
    )
    train(optimizer, model, loss_at, range(40))
    train(TORCH[base](twin.parameters(), **options), twin, twin_loss_at, range(40), observe=False)
    assert_close(model, twin)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_base_schedule_and_the_users_scheduler_multiply(schedule):
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    policy = constant(schedule=schedule)
    optimizer = PolicyOptimizer(model.parameters(), policy, lr=0.01, total_steps=20)
    twin_optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01)
    users = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    own = base_schedule(schedule)
    both = torch.optim.lr_scheduler.LambdaLR(
        twin_optimizer, lambda step: float(own(step / 20)) * 0.9**step
    )
    for step in range(25):  # five more than announced
        over = step == 20 and schedule != "constant"
        with (
            pytest.warns(UserWarning, match="total_steps=20 are over")
            if over
            else contextlib.nullcontext()
        ):
            train(optimizer, model, loss_at, [step])
        train(twin_optimizer, twin, twin_loss_at, [step], observe=False)
        users.step(), both.step()
    assert_close(model, twin)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(
        0.01 * 0.9**25
    )  # the policy leaves it alone


@pytest.mark.parametrize("fused", [False, True])
def test_groups_have_their_own_settings(fused):
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )

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


@pytest.mark.parametrize("policy", ["builtin:default", "builtin:mnist1d"])
def test_the_policy_does_not_cancel_the_users_scheduler(policy):
    """A tenth from step 20 on is a tenth of what the policy would have done, not a start that it has to mend."""
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
        assert 0.05 < scaled / plain < 0.2


def test_a_scheduler_that_begins_low_is_not_where_the_policy_starts():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.named_parameters(), constant(), lr=0.01, total_steps=100)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.001)  # a warmup
    train(optimizer, model, loss_at, [0])
    assert optimizer.param_groups[0]["start_lr"] == 0.01
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_muon_leaves_to_adamw_what_a_group_says_and_the_readout():
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    named = list(model.named_parameters())
    groups = [{"params": named[:1], "muon": False}, {"params": named[1:]}]
    train(PolicyOptimizer(groups, constant(base="muon"), lr=0.01), model, loss_at, range(20))
    train(TORCH["adamw"](twin.parameters()), twin, twin_loss_at, range(20), observe=False)
    assert_close(model, twin)


@pytest.mark.parametrize("fused", [False, True])
def test_muon_keeps_one_moment_of_a_hidden_matrix(fused):
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    optimizer = PolicyOptimizer(model.parameters(), constant(base="muon"), lr=0.01, fused=fused)
    train(optimizer, model, loss_at, range(20))
    train(TORCH["muon"](twin.parameters()), twin, twin_loss_at, range(20), observe=False)
    assert_close(model, twin)
    moments = [
        {"momentum_buffer", "exp_avg", "exp_avg_sq"} & set(optimizer.state[p])
        for p in model.parameters()
    ]
    assert moments == [{"momentum_buffer"}, *[{"exp_avg", "exp_avg_sq"}] * 3]


def test_a_group_may_want_all_its_matrices_with_muon():
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    group = {"params": list(model.parameters()), "muon": True}
    train(PolicyOptimizer([group], constant(base="muon"), lr=0.01), model, loss_at, range(20))
    train(TORCH["muon"](twin.parameters(), last=True), twin, twin_loss_at, range(20), observe=False)
    assert_close(model, twin)


@pytest.mark.parametrize("fused", [False, True])
def test_a_readout_that_becomes_hidden_keeps_its_moment(fused):
    """A new last matrix; where the old one was AdamW's, its second moment goes."""
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
    optimizer.add_param_group(
        {"params": [nn.Parameter(torch.ones(2, 2))]}
    )  # so that it looks again
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


def test_weight_decay_is_torchs_by_default():
    parameters = list(nn.Linear(2, 1).parameters())
    for base, torchs in TORCH.items():
        mine = PolicyOptimizer(parameters, constant(base=base), base=base)
        assert mine.defaults["weight_decay"] == torchs(parameters).defaults["weight_decay"]


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


# Decisions


class Spy(MLPPolicy):
    """Counts when it is asked, and sees what it is shown."""

    watched: list

    def predict(self, observation, state=None):
        self.watched.append(observation.clone())
        return super().predict(observation, state)

    def to(self, device):
        return self


def spy(policy: MLPPolicy) -> Spy:
    fields = {name: getattr(policy, name) for name in policy.__dataclass_fields__}
    watching = Spy(**fields)
    object.__setattr__(watching, "watched", [])
    return watching


@pytest.mark.parametrize(("total_steps", "every"), [(40, 5), (41, 5), (7, 1), (100, 12), (None, 3)])
def test_decisions_fall_at_the_right_steps(total_steps, every):
    policy = spy(random_policy(spec_of(), interval=3))
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.parameters(), policy, lr=0.01, total_steps=total_steps)
    decided = []
    for step in range(26):
        before = len(policy.watched)
        train(optimizer, model, loss_at, [step])
        decided += [step] * (len(policy.watched) - before)
    assert decided == list(range(0, 26, every))
    column = policy.spec.features.index("progress_known")
    assert all((o[:, column] == (0 if total_steps is None else 1)).all() for o in policy.watched)


@pytest.mark.parametrize("observe", [False, True])
def test_losses_are_masked_unless_observed(observe):
    policy = spy(random_policy(spec_of()))
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.parameters(), policy, total_steps=20)
    train(optimizer, model, loss_at, range(20), observe=observe)
    shown = torch.stack(policy.watched)[1:]
    for name in ("loss_known", "loss_ratio", "loss_trend", "loss_change"):
        assert shown[..., policy.spec.features.index(name)].any() == observe


@pytest.mark.parametrize("action", ACTIONS)
def test_metrics_tell_what_is_applied(action):
    """With SGD at momentum 0, the update divided by the gradient is the lr in force."""
    spec = spec_of(base="sgd", action=action, schedule="cosine")
    outputs = len(action_table(spec.controls)) if ACTIONS[action].discrete else None
    policy = random_policy(spec, outputs=outputs)
    model, loss_at = plain_run(TINY, 1, torch.float64)
    named = list(model.named_parameters())
    optimizer = PolicyOptimizer(
        named, policy, lr=0.01, total_steps=24, base="sgd", weight_decay=0.0, betas=(0.0, 0.0)
    )
    rates = []
    for step in range(24):
        before = [p.detach().clone() for _, p in named]
        train(optimizer, model, loss_at, [step])
        decided = optimizer.metrics()
        for (name, param), old in zip(named, before, strict=True):
            layer = name.partition(".")[0]
            factor = 0.5 * (1 + np.cos(np.pi * step / 24))
            alive = param.grad != 0
            applied = ((old - param.detach())[alive] / param.grad[alive]).median().item()
            expected = 0.01 * decided[f"multiplier/{layer}"] * factor
            assert applied == pytest.approx(expected, rel=1e-6)
            rates.append(decided[f"multiplier/{layer}"])
    assert len(set(rates)) > 1
    assert {key.partition("/")[0] for key in decided} == {
        "step",
        "lr",
        "multiplier",
        "momentum",
        "noise",
    }


def test_added_group_leaves_the_others_multipliers():
    head = nn.Linear(3, 3)
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.named_parameters(), acting(), lr=0.01, total_steps=40)
    train(optimizer, model, loss_at, range(12))
    before = optimizer.metrics()
    named = [(f"head.{name}", param) for name, param in head.named_parameters()]
    optimizer.add_param_group({"params": named, "lr": 0.5})
    after = optimizer.metrics()
    assert {key: after[key] for key in before} == before
    assert after["multiplier/head"] == 1.0
    assert after["lr/head"] == 0.5
    train(optimizer, model, loss_at, range(12, 30))
    assert after["step"] == 12


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_group_added_between_decisions_trains_as_torchs(granularity):
    """Each tensor's bias correction starts with its own first gradient, also where it shares its layer."""
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    policy = constant(granularity=granularity)
    optimizer = PolicyOptimizer(list(model.parameters())[:2], policy, lr=0.01, total_steps=40)
    reference = torch.optim.AdamW(list(twin.parameters())[:2], lr=0.01)
    train(optimizer, model, loss_at, range(7))
    train(reference, twin, twin_loss_at, range(7), observe=False)
    optimizer.add_param_group({"params": list(model.parameters())[2:]})
    reference.add_param_group({"params": list(twin.parameters())[2:]})
    train(optimizer, model, loss_at, range(7, 30))
    train(reference, twin, twin_loss_at, range(7, 30), observe=False)
    assert_close(model, twin)


def test_an_infinite_loss_is_not_told():
    """Mixed precision skips such a step, so the others of the interval must still count."""
    model, _ = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.parameters(), constant())
    for loss in (1.0, float("inf"), float("nan"), 3.0):
        optimizer.observe(loss)
    control = optimizer._live.control
    assert (control.loss_sum / control.loss_count).item() == 2.0


@pytest.mark.parametrize("policy", ["builtin:default", "builtin:mnist1d"])
def test_frozen_layers_do_not_change_what_the_others_do(policy):
    traces = []
    for everything in (True, False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            frozen, x, y = nn.Linear(4, 500), torch.randn(32, 4), torch.randint(2, (32,))
            live = nn.Sequential(nn.Linear(500, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
        frozen.requires_grad_(False)
        model = nn.Sequential(live, frozen)
        named = model.named_parameters() if everything else live.named_parameters(prefix="0")
        optimizer = PolicyOptimizer(named, policy, total_steps=50)
        for _ in range(20):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(live(frozen(x)), y)
            loss.backward()
            optimizer.observe(loss)
            optimizer.step()
        traces.append(
            [value for key, value in optimizer.metrics().items() if key.startswith("multiplier/0")]
        )
    assert traces[0] == pytest.approx(
        traces[1], rel=0.3
    )  # the position of a layer, a feature, differs a little


# Gradients and parameters of every kind


def test_parameters_without_gradient_stay_and_join_later():
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float64),
        plain_run(TINY, 1, torch.float64),
    )
    optimizer = PolicyOptimizer(model.parameters(), constant(), lr=0.01, total_steps=40)
    reference = torch.optim.AdamW(twin.parameters(), lr=0.01)
    for frozen in (True, False):
        for module, step_all in ((model, (optimizer, loss_at)), (twin, (reference, twin_loss_at))):
            for param in list(module.parameters())[:3]:
                param.requires_grad_(not frozen)
            before = [p.detach().clone() for p in module.parameters()]
            train(step_all[0], module, step_all[1], range(11), observe=False)
            same = [torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True)]
            assert same == ([True] * 3 + [False] if frozen else [False] * 4)
    assert_close(model, twin)


def test_layers_without_gradient_keep_their_multiplier():
    """They give nothing to go by.

    A policy that went on there would have led them anywhere until they are unfrozen.
    """
    policy = random_policy(spec_of(), interval=3)
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.named_parameters(), policy, total_steps=40)
    first, *_, last = model.children()
    first.requires_grad_(False)
    train(optimizer, model, loss_at, range(20))
    multipliers = {k: v for k, v in optimizer.metrics().items() if k.startswith("multiplier/")}
    frozen, live = multipliers.values()
    assert frozen == 1.0
    assert live != 1.0
    optimizer.zero_grad()
    optimizer.step()  # as a dummy step does
    assert {
        k: v for k, v in optimizer.metrics().items() if k.startswith("multiplier/")
    } == multipliers
    first.requires_grad_(True), last.requires_grad_(False)
    train(optimizer, model, loss_at, range(21, 41))
    assert optimizer.metrics()[next(iter(multipliers))] != 1.0


@pytest.mark.parametrize("base", RULES)
def test_zero_gradients_keep_everything_finite(base):
    model, _ = plain_run(TINY, 1, torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = PolicyOptimizer(
        model.parameters(), acting(base=base), base=base, weight_decay=0.0, total_steps=20
    )
    for _ in range(10):
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert_same([before], [list(model.parameters())])
    assert all(np.isfinite(value) for value in optimizer.metrics().values())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_metrics_stay_finite_after_broken_gradients(broken):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.parameters(), acting(), total_steps=20)
    train(optimizer, model, loss_at, range(5))
    for param in model.parameters():
        param.grad = torch.full_like(param, broken)
    for _ in range(10):
        optimizer.observe(broken)
        optimizer.step()
    assert all(np.isfinite(value) for value in optimizer.metrics().values())


ODD = {
    "scalar": lambda: torch.tensor(0.5),
    "one": lambda: torch.ones(1),
    "empty": lambda: torch.ones(0),
    "empty matrix": lambda: torch.ones(3, 0),
    "transposed": lambda: torch.rand(4, 3).T,
    "strided": lambda: torch.rand(6, 6)[::2, ::3],
    "channels last": lambda: torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "expanded copy": lambda: torch.rand(1, 3).expand(2, 3).clone(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", RULES)
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_train_as_torchs(kind, base, dtype):
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    start = ODD[kind]().to(dtype)
    torch.set_rng_state(torch_state)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    anchor = nn.Parameter(
        torch.ones(2, 2, dtype=dtype)
    )  # so that there is something beside an empty tensor
    optimizer = PolicyOptimizer(
        [mine, anchor], constant(base=base), 0.01, 20, base, weight_decay=0.01
    )
    reference = TORCH[base]([theirs, nn.Parameter(anchor.detach().clone())], weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        grad = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(dtype)
        mine.grad, theirs.grad, anchor.grad = grad.clone(), grad.clone(), torch.ones_like(anchor)
        optimizer.step(), reference.step()
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    assert mine.dtype == dtype
    assert mine.stride() == nn.Parameter(start.clone()).stride()


def test_mixed_dtypes_train_together():
    params = [
        nn.Parameter(torch.ones(3, 3, dtype=dtype))
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
    ]
    optimizer = PolicyOptimizer(params, acting(), lr=0.01, total_steps=10)
    for _ in range(10):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert all(torch.isfinite(p).all() and (p != 1).all() for p in params)


def test_sparse_gradient_is_an_error():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = PolicyOptimizer(embedding.parameters(), constant())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_complex_parameter_is_an_error():
    with pytest.raises(ValueError, match="complex"):
        PolicyOptimizer([nn.Parameter(torch.ones(2, dtype=torch.complex64))], constant())
    optimizer = PolicyOptimizer([nn.Parameter(torch.ones(2))], constant())
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


def test_groups_of_bare_tensors_that_tear_layers_apart_warn():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    weights, rest = (
        [p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False)
    )
    with pytest.warns(UserWarning, match="first tensor of group 1 is no matrix"):
        PolicyOptimizer([{"params": weights}, {"params": rest}], constant()).metrics()


def test_a_group_may_be_empty():
    """As the one without weight decay is where a model has matrices only."""
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = PolicyOptimizer(
        [{"params": [parameter]}, {"params": [], "weight_decay": 0.0}], acting()
    )
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (parameter < 1).all()


@pytest.mark.filterwarnings("ignore:PolicyOptimizer")  # such gradients are unlike all
@pytest.mark.parametrize(
    "policy", ["builtin:default", "builtin:muon", "builtin:anytime", "builtin:sgd"]
)
def test_nothing_lands_on_the_default_device(policy):
    """What is made without a device would lie elsewhere than the parameters."""
    model = nn.Linear(300, 300)
    optimizer = PolicyOptimizer(model.named_parameters(), policy, total_steps=20, steps_per_epoch=2)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    with torch.device("meta"):
        for _ in range(3):
            optimizer.observe(1.0)
            optimizer.step()
        optimizer.metrics()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.eval(), optimizer.train()
        optimizer.step()
    assert all(param.isfinite().all() for param in model.parameters())


@pytest.mark.parametrize("elements", [1, 10, 100])
def test_a_sample_smaller_than_a_run_of_elements_measures(elements):
    parameter = nn.Parameter(torch.ones(elements, 1))
    optimizer = PolicyOptimizer([parameter], constant(), sample=2)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (parameter < 1).all()


# Ways of calling


def test_closure_is_evaluated_observed_and_returned():
    (model, loss_at), (twin, twin_loss_at) = (
        plain_run(TINY, 1, torch.float32),
        plain_run(TINY, 1, torch.float32),
    )
    make = lambda module: PolicyOptimizer(module.parameters(), acting(), lr=0.01, total_steps=20)
    optimizer, other = make(model), make(twin)
    for step in range(15):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_at(step)
            loss.backward()
            return loss

        returned = optimizer.step(closure)
        expected = twin_loss_at(step)
        assert torch.equal(returned, expected)
        train(other, twin, twin_loss_at, [step])
    assert_same([list(model.parameters())], [list(twin.parameters())])
    assert other.step() is None


def test_a_closure_may_return_nothing():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.parameters(), constant())
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(lambda: loss_at(0).backward())
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_scaler_that_skips_a_step_leaves_everything():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.parameters(), acting(), lr=0.01, total_steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(9):
        optimizer.zero_grad()
        scaler.scale(loss_at(step)).backward()
        broken = step == 4
        if broken:
            next(model.parameters()).grad[0, 0] = torch.inf
        before = [p.detach().clone() for p in model.parameters()], optimizer.metrics()
        scaler.step(optimizer)
        scaler.update()
        after = [p.detach().clone() for p in model.parameters()], optimizer.metrics()
        assert torch.equal(before[0][0], after[0][0]) == broken
        assert after[1]["step"] - before[1]["step"] == 1 - broken
    assert scaler.get_scale() == 2.0


def test_the_watchdog_barks():
    with pytest.raises(AssertionError, match="scalar"), NoSync():
        torch.ones(1).item()


@pytest.mark.parametrize("base", RULES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_no_number_is_read_back_from_the_device(base, granularity):
    model, loss_at = plain_run(TINY, 1, torch.float32)
    policy = acting(base=base, granularity=granularity)
    optimizer = PolicyOptimizer(model.named_parameters(), policy, base=base, total_steps=20)
    train_watched(optimizer, loss_at, 12)


def test_global_generators_stay_as_they_were():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(PolicyOptimizer(model.parameters(), acting(), total_steps=20), model, loss_at, range(10))
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_seed_decides_the_noise():
    def run(seed):
        model, loss_at = plain_run(TINY, 1, torch.float32)
        policy = acting()
        last = torch.zeros_like(policy.biases[-1])
        last[2] = 5.0  # full noise
        weights = (policy.weights[0], torch.zeros_like(policy.weights[1]))
        policy = MLPPolicy(
            policy.spec, 3, weights, (policy.biases[0], last), policy.mean, policy.std
        )
        return train(
            PolicyOptimizer(model.parameters(), policy, total_steps=20, seed=seed),
            model,
            loss_at,
            range(9),
        )

    assert_same(run(1), run(1))
    assert not torch.equal(run(1)[-1][0], run(2)[-1][0])


WITHOUT_GYMNASIUM = """
import sys
for name in ("gymnasium", "stable_baselines3", "wandb", "torchvision", "matplotlib"):
    sys.modules[name] = None
import torch
from lr_gym.optim import PolicyOptimizer
model = torch.nn.Linear(3, 2)
optimizer = PolicyOptimizer(model.named_parameters(), sys.argv[1], total_steps=10)
for _ in range(10):
    loss = model(torch.ones(4, 3)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.observe(loss)
    optimizer.step()
print(int(optimizer.metrics()["step"]))
"""


def test_works_without_gymnasium_and_stable_baselines(tmp_path):
    file = save_policy(acting(), tmp_path / "policy.safetensors")
    command = [sys.executable, "-W", "error::UserWarning", "-c", WITHOUT_GYMNASIUM, str(file)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "10\n"


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


def test_no_parameters_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        PolicyOptimizer([], constant())


@pytest.mark.parametrize("base", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("controls", [("lr",), ("lr", "momentum", "noise")])
def test_small_tensors_of_one_shape_move_as_each_alone(monkeypatch, base, controls):
    """Three layers of one shape, one of another, whose rates differ.

    A gradient is missing now and then.
    """
    policy = random_policy(spec_of(base=base, controls=controls), interval=3)

    def run():
        shapes = [(4, 3), (4,), (4, 3), (4,), (4, 3), (4,), (2, 4)]
        params = [
            torch.linspace(-1, 1 + i, math.prod(shape)).double().view(shape)
            for i, shape in enumerate(shapes)
        ]
        params = [param.requires_grad_() for param in params]
        optimizer = PolicyOptimizer(params, policy, 0.01, 20, weight_decay=0.1, fused=False)
        for step in range(8):
            for i, param in enumerate(params):
                param.grad = (
                    None if step % 4 == 3 and i == 2 else torch.cos(param.detach() * (i + 1) + step)
                )
            optimizer.step()
        return [*params, *(value for p in params for value in optimizer.state[p].values())]

    together = run()
    for limit in ("TOGETHER", "SMALL"):  # two at a time, then each alone
        monkeypatch.setattr(base_step, limit, 2 if limit == "TOGETHER" else 0)
        for a, b in zip(together, run(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_kernels_are_used_where_they_fit(monkeypatch):
    """Unasked for AdamW's tensors under a policy of lr alone, on devices known to have them, if they are contiguous."""
    calls = []
    kernel = torch._fused_adamw_
    monkeypatch.setattr(
        torch,
        "_fused_adamw_",
        lambda params, *rest, **o: calls.append(params) or kernel(params, *rest, **o),
    )

    def taken(policy, base=None, devices=("cpu",), **options):
        monkeypatch.setattr(base_step, "KERNELS", devices)
        calls.clear()
        params = [torch.ones(3, 2), torch.ones(2, 3), torch.ones(3, 2).t()]
        params = [param.requires_grad_() for param in params]
        optimizer = PolicyOptimizer(params, policy, base=base, **options)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        return [
            i
            for i, param in enumerate(params)
            if any(param is taken for call in calls for taken in call)
        ]

    assert taken(constant()) == [0, 1]
    assert taken(constant(), fused=True) == [0, 1]
    assert taken(constant(), fused=False) == []
    assert taken(constant(), devices=()) == []
    assert taken(constant(), devices=(), fused=True) == [0, 1]
    assert taken(constant(controls=("lr", "momentum"))) == []
    assert taken(constant(base="sgd")) == []


@pytest.mark.parametrize("base", ["adam", "adamw"])
def test_fused_equals_plain_also_where_one_takes_over_from_the_other(base):
    """Two tensors take blocks or the kernel, the transposed one never the kernel."""
    policy = random_policy(spec_of(), interval=3)
    make_params = lambda: [
        p.requires_grad_()
        for p in (
            torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4),
            torch.ones(300_000),
            torch.ones(4, 3).t(),
        )
    ]

    def run(plan):
        params = make_params()
        saved = None
        for fused in plan:
            optimizer = PolicyOptimizer(params, policy, 0.01, 20, base, 0.1, fused=fused)
            if saved is not None:
                optimizer.load_state_dict(saved)
            for step in range(4):
                for i, p in enumerate(params):
                    p.grad = torch.cos(p.detach() * (i + 1) + step)
                optimizer.step()
            saved = copy.deepcopy(optimizer.state_dict())
        return params

    plain = run([False, False, False])
    for plan in ([True, True, True], [True, False, True], [False, True, True]):
        for a, b in zip(run(plan), plain, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


def test_fused_continues_a_state_of_torchs_adamw():
    params = [torch.linspace(-1, 1, 50).requires_grad_()]
    results = []
    for fused in (False, True):
        p = [params[0].detach().clone().requires_grad_()]
        torchs = torch.optim.AdamW(p, lr=0.01)
        p[0].grad = torch.cos(p[0].detach())
        torchs.step()
        optimizer = PolicyOptimizer(p, constant(), 0.01, fused=fused)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": torchs.state_dict()["state"]})
        optimizer.step()
        results.append(p[0].detach())
    torch.testing.assert_close(results[1], results[0], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "base"), [({"controls": ("lr", "momentum")}, "adamw"), ({"base": "sgd"}, "sgd")]
)
def test_fused_refuses_what_the_kernel_cannot_do(options, base):
    with pytest.raises(ValueError, match=r"fused=True takes.*leave fused out"):
        PolicyOptimizer(
            [torch.ones(2).requires_grad_()], constant(**options), base=base, fused=True
        )


def test_sampled_statistics_are_near_those_of_every_element():
    """A tensor of 40,000 elements with heavy tails and structure in its columns, sampled by a sixteenth."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100, 400, generator=generator) * torch.linspace(0.1, 3.0, 400)
    observed = []
    for sample in (None, 2500):
        param = values.clone().requires_grad_()
        seen = []
        policy = constant(decisions=1)
        optimizer = PolicyOptimizer([param], policy, 0.01, sample=sample)
        optimizer._policy = type(
            "Spy", (), {"spec": policy.spec, "interval": 1, "to": lambda self, device: self}
        )()
        optimizer._policy.predict = lambda o, seen=seen: (seen.append(o), constant().predict(o))[1]
        optimizer._interval = 1
        for step in range(3):
            param.grad = torch.randn(100, 400, generator=torch.Generator().manual_seed(step)) * 0.1
            optimizer.step()
        observed.append(torch.stack(seen))
    assert not torch.equal(*observed)
    torch.testing.assert_close(
        *observed, rtol=0, atol=0.05
    )  # 1 over the root of twice 2500 is 0.014


# What scripts do


def effective(optimizer):
    return {
        key.removeprefix("lr/"): value
        for key, value in optimizer.metrics().items()
        if key.startswith("lr/")
    }


@pytest.mark.parametrize("warmup", ["by hand", "one cycle"])
def test_a_warmup_is_no_start_to_be_mended(warmup):
    """The policy starts from the rate of the constructor, whatever the rate is when the first step is made."""
    ends = []
    for warm in (True, False):
        model, loss_at = plain_run(TINY, 1, torch.float64)
        optimizer = PolicyOptimizer(model.parameters(), acting(), lr=0.01, total_steps=40)
        scheduler = (
            torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 40)
            if warm and warmup == "one cycle"
            else None
        )
        for step in range(20):
            if warm and scheduler is None:
                optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, (step + 1) / 10)
            train(optimizer, model, loss_at, [step])
            if scheduler is not None:
                scheduler.step()
        assert optimizer.param_groups[0]["start_lr"] == 0.01
        ends.append(
            torch.tensor([[*effective(optimizer).values()]]) / optimizer.param_groups[0]["lr"]
        )
    assert (ends[0] / ends[1]).log().abs().max() < math.log(
        4.0
    )  # and not by a factor of 25 or more


def test_a_rate_that_rises_above_its_start_warns_once():
    model, loss_at = plain_run(TINY, 1, torch.float64)
    optimizer = PolicyOptimizer(model.parameters(), constant(), lr=1e-3, total_steps=40)
    train(optimizer, model, loss_at, range(3))
    optimizer.param_groups[0]["lr"] = 1e-2
    with pytest.warns(
        UserWarning, match="risen to 0.01, and the policy started from 0.001"
    ) as caught:
        train(optimizer, model, loss_at, range(3, 30))
    assert len(caught) == 1


def test_models_with_the_same_names_have_layers_of_their_own():
    backbone, head = nn.Linear(3, 3), nn.Linear(3, 1)
    groups = [
        {"params": backbone.named_parameters(), "lr": 1e-4},
        {"params": head.named_parameters(), "lr": 1e-2},
    ]
    optimizer = PolicyOptimizer(groups, constant(), total_steps=10)
    head(backbone(torch.ones(2, 3))).sum().backward()
    optimizer.step()
    assert effective(optimizer) == pytest.approx({"group0": 1e-4, "group1": 1e-2})


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


def test_losses_of_single_examples_are_not_observed():
    optimizer = PolicyOptimizer([torch.ones(2).requires_grad_()], constant())
    with pytest.raises(ValueError, match=r"got shape \(4,\): pass loss.mean\(\)"):
        optimizer.observe(torch.ones(4))


def test_edited_groups_are_noticed():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    first, *_, last = model.children()
    optimizer = PolicyOptimizer([{"params": last.parameters()}], acting(), total_steps=40)
    train(optimizer, model, loss_at, range(5))
    kept = optimizer._live.control.offset[0, 0].clone()
    before = [p.detach().clone() for p in first.parameters()]
    optimizer.param_groups[0]["params"].extend(first.parameters())
    optimizer.metrics()
    assert torch.equal(optimizer._live.control.offset[0, 0], kept)
    train(optimizer, model, loss_at, range(5, 10))
    assert not any(torch.equal(p, old) for p, old in zip(first.parameters(), before, strict=True))
    del optimizer.param_groups[0]["params"][2:]
    before = [p.detach().clone() for p in first.parameters()]
    train(optimizer, model, loss_at, range(10, 15))
    assert all(torch.equal(p, old) for p, old in zip(first.parameters(), before, strict=True))


def test_parameters_of_two_devices_are_an_error():
    params = [nn.Parameter(torch.ones(2, 2, device=device)) for device in ("cpu", "meta")]
    optimizer = PolicyOptimizer(params, constant())
    with pytest.raises(ValueError, match="one device; got cpu, meta"):
        optimizer.metrics()


def test_a_fused_state_counts_its_steps_where_the_parameters_are():
    make = lambda device: PolicyOptimizer(
        [nn.Parameter(torch.ones(2, 2, device=device))], constant(), fused=True
    )
    saved = make("cpu")
    saved.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    saved.step()
    elsewhere = make("meta")
    elsewhere.load_state_dict(saved.state_dict())
    (state,) = elsewhere.state.values()
    assert state["step"].device.type == state["exp_avg"].device.type == "meta"
    assert state["step"].dtype == torch.float32
