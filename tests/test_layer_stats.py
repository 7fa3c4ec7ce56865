"""The statistics of each layer against a loop over runs and layers."""

from __future__ import annotations

import math

import pytest
import torch

from lr_gym.control.layer_stats import measure
from lr_gym.layers import Layout
from lr_gym.types import LayerStats
from lr_gym.updates.muon import MUON_RMS
from lr_gym.updates.rule import MomentMasses
from lr_gym.updates.rules import RULES, base_rule

SHAPES = [(4, 3), (4,), (2, 4), (), (2, 2, 2)]
LAYOUT = Layout(("a", "b", "c"), (0, 0, 1, 2, 1), tuple(math.prod(shape) for shape in SHAPES))
RUNS = 3


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(RUNS, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def trained(base, steps):
    """Arguments of `measure` after some steps.

    The momentum differs between runs, layers and steps.
    """
    rules = [base_rule(base).for_tensor(len(shape) > 1) for shape in SHAPES]
    params, firsts = draw(0), [torch.zeros_like(p) for p in draw(0)]
    seconds = [
        torch.zeros_like(p) if r.family == "adam" else None
        for r, p in zip(rules, params, strict=True)
    ]
    zero, momenta = torch.zeros(RUNS, dtype=torch.float64), []
    scales = [MomentMasses(zero, zero) for _ in SHAPES]
    for step in range(steps + 1):
        by_layer = torch.rand(
            3, RUNS, generator=torch.Generator().manual_seed(step), dtype=torch.float64
        )
        momenta = [by_layer[layer] for layer in LAYOUT.layer_of]
        grads = draw(step + 1)
        if step < steps:
            scales = [
                rule.next_masses(s, m) for s, rule, m in zip(scales, rules, momenta, strict=True)
            ]
            lr = torch.full((RUNS,), 0.1, dtype=torch.float64)
            for rule, p, g, f, s, scale, m in zip(
                rules, params, grads, firsts, seconds, scales, momenta, strict=True
            ):
                rule.step_(p, g, f, s, scale, lr=lr, momentum=m)
    masses, second_masses = (
        torch.stack([getattr(s, of) for s in scales], dim=1) for of in ("first", "second")
    )
    return (
        rules,
        LAYOUT,
        params,
        grads,
        firsts,
        seconds,
        MomentMasses(masses, second_masses),
        torch.stack(momenta, 1),
    )


def naive(rules, layout, params, grads, firsts, seconds, scale, momentum_of):
    """The definitions of LayerStats, one run and one layer at a time."""
    table = torch.zeros(len(LayerStats._fields), RUNS, layout.num_layers, dtype=torch.float64)
    for run in range(RUNS):
        for layer in range(layout.num_layers):
            members = [i for i, owner in enumerate(layout.layer_of) if owner == layer]
            whole = lambda tensors, run=run, members=members: torch.cat(
                [tensors[i][run].reshape(-1) for i in members]
            )
            size = lambda x: x.square().mean().sqrt()
            param, grad, first = whole(params), whole(grads), whole(firsts)
            momentum, mass, second_mass = (
                of[run, members[0]] for of in (momentum_of, scale.first, scale.second)
            )
            updates, squares = [], []
            for i in members:
                rule, g, f = rules[i], grads[i][run].reshape(-1), firsts[i][run].reshape(-1)
                if rule.family == "adam":
                    s = seconds[i][run].reshape(-1)
                    next_first = momentum * f + (1 - momentum) * g
                    next_second = rule.beta2 * s + (1 - rule.beta2) * g.square()
                    unbiased = next_first / (momentum * mass + 1 - momentum)
                    root = (next_second / (rule.beta2 * second_mass + 1 - rule.beta2)).sqrt()
                    updates.append(unbiased / (root + rule.eps))
                    squares.append(s / second_mass if second_mass > 0 else s)
                else:
                    updates.append(
                        momentum * f + g if rule.family == "sgd" else torch.full_like(g, 0.2)
                    )
                    squares.append(g.square())
            update, second = torch.cat(updates), torch.cat(squares)
            unbiased_first = first / mass if mass > 0 else first
            norms = grad.norm() * first.norm()
            cosine = grad @ first / norms if norms > 0 else torch.zeros(())
            values = (
                size(param),
                size(grad),
                size(unbiased_first),
                second.mean().sqrt(),
                size(update),
                cosine,
            )
            table[:, run, layer] = torch.stack([v.double() for v in values])
    return LayerStats(*table)


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("base", RULES)
def test_measure_equals_naive_loop(base, steps):
    arguments = trained(base, steps)
    for name, got, expected in zip(
        LayerStats._fields, measure(*arguments), naive(*arguments), strict=True
    ):
        torch.testing.assert_close(
            got, expected, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("base", RULES)
def test_measure_changes_nothing(base):
    arguments = trained(base, 3)
    tensors = [t for part in arguments[2:6] for t in part if t is not None]
    tensors += [arguments[6].first, arguments[6].second, arguments[7]]
    before = [t.clone() for t in tensors]
    measure(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("base", RULES)
def test_a_run_that_diverged_touches_no_other(base):
    arguments = trained(base, 3)
    expected = [value[1:].clone() for value in measure(*arguments)]
    for tensors in arguments[2:5]:
        for tensor in tensors:
            tensor[0] = math.nan
    for value, clean in zip(measure(*arguments), expected, strict=True):
        assert torch.equal(value[1:], clean)


def test_muons_update_is_about_as_large_as_measured_and_nan_stays_nan():
    rule, draw_one = (
        base_rule("muon"),
        torch.randn(1, 30, 50, generator=torch.Generator().manual_seed(0)),
    )
    way = rule.direction(draw_one, None, MomentMasses(torch.ones(1), torch.ones(1)))
    assert way.square().mean().sqrt() == pytest.approx(MUON_RMS, rel=0.2)
    arguments = list(trained("muon", 2))
    arguments[3][0][0] = math.nan
    update = measure(*arguments).update_rms
    assert update[0, 0].isnan()
    assert torch.isfinite(update[1:]).all()


@pytest.mark.parametrize("base", RULES)
def test_zero_gradients_are_measured(base):
    arguments = list(trained(base, 0))
    arguments[3] = [torch.zeros_like(g) for g in arguments[3]]
    stats = measure(*arguments)
    assert all(torch.isfinite(value).all() for value in stats)
    assert not stats.update_rms.any()
    assert not stats.cosine.any()


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_cosine_does_not_see_the_scale_of_the_loss(scale):
    arguments = list(trained("sgd", 2))
    arguments[2:5] = [[x.float() for x in part] for part in arguments[2:5]]
    expected = measure(*arguments).cosine
    for of in (3, 4):  # gradients and momenta
        arguments[of] = [x * scale for x in arguments[of]]
    torch.testing.assert_close(measure(*arguments).cosine, expected)
