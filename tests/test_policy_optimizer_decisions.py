"""When PolicyOptimizer asks its policy, what it shows it, and which layers an action reaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deployed import (
    acting,
    assert_close,
    constant,
    spec_of,
    train,
)
from tiny import TINY, plain_run, random_policy
from torch import nn

from lr_gym.control.action import ACTIONS, action_table
from lr_gym.layers import GRANULARITIES
from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.policy import MLPPolicy


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
    """Each tensor's bias correction starts with its own first gradient, in a shared layer too."""
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
    control = optimizer._held.model.control
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


# Frozen layers


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
    """A frozen layer shows the policy nothing.

    If the policy still acted there, the rate could be anywhere when the layer is unfrozen.
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


def test_losses_of_single_examples_are_not_observed():
    optimizer = PolicyOptimizer([torch.ones(2).requires_grad_()], constant())
    with pytest.raises(ValueError, match=r"got shape \(4,\): pass loss.mean\(\)"):
        optimizer.observe(torch.ones(4))


def test_edited_groups_are_noticed():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    first, *_, last = model.children()
    optimizer = PolicyOptimizer([{"params": last.parameters()}], acting(), total_steps=40)
    train(optimizer, model, loss_at, range(5))
    kept = optimizer._held.model.control.offset[0, 0].clone()
    before = [p.detach().clone() for p in first.parameters()]
    optimizer.param_groups[0]["params"].extend(first.parameters())
    optimizer.metrics()
    assert torch.equal(optimizer._held.model.control.offset[0, 0], kept)
    train(optimizer, model, loss_at, range(5, 10))
    assert not any(torch.equal(p, old) for p, old in zip(first.parameters(), before, strict=True))
    del optimizer.param_groups[0]["params"][2:]
    before = [p.detach().clone() for p in first.parameters()]
    train(optimizer, model, loss_at, range(10, 15))
    assert all(torch.equal(p, old) for p, old in zip(first.parameters(), before, strict=True))
