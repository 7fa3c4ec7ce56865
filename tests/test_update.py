"""Every rule of RULES against torch.optim; a changing beta1; the gradient noise."""

from __future__ import annotations

import math

import pytest
import torch
from naive_muon import NaiveMuon, direction
from torch._subclasses.fake_tensor import FakeTensorMode

from lr_gym.updates.muon import iterated_type, orthogonal
from lr_gym.updates.noise import gradient_noise, rms
from lr_gym.updates.rule import BaseRule, MomentMasses
from lr_gym.updates.rules import RULES, base_rule

TORCH = {
    "sgd": lambda params, wd: torch.optim.SGD(params, lr=0.03, momentum=0.9, weight_decay=wd),
    "adam": lambda params, wd: torch.optim.Adam(params, lr=0.03, weight_decay=wd),
    "adamw": lambda params, wd: torch.optim.AdamW(params, lr=0.03, weight_decay=wd),
    "muon": lambda params, wd: NaiveMuon(params, lr=0.03, weight_decay=wd, last=True),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(rule: BaseRule, param: torch.Tensor):
    """First moment, second moment and masses of B runs before the first step."""
    second = torch.zeros_like(param) if rule.family == "adam" else None
    zeros = param.new_zeros(len(param))
    return torch.zeros_like(param), second, MomentMasses(zeros, zeros.clone())


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (2, 3, 2), (5,), ()])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("base", RULES)
def test_rule_equals_torch_optim(base, weight_decay, shape):
    rule, runs = base_rule(base).for_tensor(hidden=len(shape) > 1), 3
    param = draw(runs, *shape)
    twins = [torch.nn.Parameter(param[i].clone()) for i in range(runs)]
    optimizers = [TORCH[base]([twin], weight_decay) for twin in twins]
    first, second, masses = start(rule, param)
    per_run = lambda value: torch.full((runs,), value, dtype=torch.float64)
    for step in range(30):
        grad = draw(runs, *shape, seed=step) * 10.0 ** (step % 7 - 3) - param
        kept = grad.clone()
        masses = rule.next_masses(masses, per_run(rule.momentum))
        options = {"lr": per_run(0.03), "momentum": per_run(rule.momentum)}
        decay = per_run(weight_decay) if weight_decay else None
        rule.step_(param, grad, first, second, masses, weight_decay=decay, **options)
        assert torch.equal(grad, kept)
        for i, (twin, optimizer) in enumerate(zip(twins, optimizers, strict=True)):
            twin.grad = kept[i].clone()
            optimizer.step()
    torch.testing.assert_close(param, torch.stack([t.detach() for t in twins]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (64, 64)])
def test_muon_equals_torchs_up_to_precision(shape):
    """Torch iterates in bfloat16, ours in the precision of the tensor."""
    rule, param = base_rule("muon"), draw(1, *shape)
    twin, start_at = torch.nn.Parameter(param[0].clone()), param.clone()
    optimizer = torch.optim.Muon(
        [twin],
        lr=0.03,
        weight_decay=0.1,
        momentum=0.9,
        nesterov=False,
        adjust_lr_fn="match_rms_adamw",
    )
    first, second, masses = start(rule, param)
    one = torch.ones(1, dtype=torch.float64)
    for step in range(10):
        grad = draw(1, *shape, seed=step)
        twin.grad = grad[0].clone()
        rule.step_(
            param,
            grad,
            first,
            second,
            masses,
            lr=0.03 * one,
            momentum=0.9 * one,
            weight_decay=0.1 * one,
        )
        optimizer.step()
    assert (param[0] - twin).norm() < 0.02 * (param - start_at).norm()


def test_orthogonal_brings_all_singular_values_near_one():
    found = orthogonal(
        draw(20, 6, 4, 3) * torch.logspace(-8, 8, 20, dtype=torch.float64).view(20, 1, 1, 1)
    )
    values = torch.linalg.svdvals(found.flatten(2))
    assert values.min() > 0.6
    assert values.max() < 1.25
    assert not orthogonal(torch.zeros(2, 3, 4)).any()
    assert not orthogonal(torch.zeros(2, 3, 12)).any()


@pytest.mark.parametrize("shape", [(8, 32), (40, 8), (8, 8, 3, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_long_matrices_give_the_same_result_by_products(shape, dtype, tolerance):
    """Against Jordan's quintic on the singular values, for well and badly conditioned matrices."""
    matrix = draw(*shape).flatten(1)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    for decades in (0, 2, 6):
        values = torch.logspace(0, -decades, min(matrix.shape), dtype=torch.float64)
        matrices = ((u * values) @ v).reshape(1, *shape)
        values = values / values.norm()
        for _ in range(5):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        expected = ((u * values) @ v).reshape(1, *shape)
        error = (orthogonal(matrices.to(dtype)).double() - expected).norm() / expected.norm()
        assert error < tolerance


@pytest.mark.parametrize("shape", [(12, 4), (12, 2), (6, 5), (6, 4, 3)])
def test_every_block_of_a_fused_matrix_moves_as_a_matrix_of_its_own(shape):
    rule, moment = base_rule("muon").for_tensor(hidden=True, blocks=3), draw(2, *shape)
    none = MomentMasses(torch.ones(2), torch.ones(2))
    expected = torch.stack([direction(matrix, blocks=3) for matrix in moment])
    torch.testing.assert_close(rule.direction(moment, None, none), expected)
    parts = moment.chunk(3, dim=1)
    alone = [base_rule("muon").direction(part, None, none) for part in parts]
    torch.testing.assert_close(torch.cat(alone, dim=1), expected)


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 256), (16, 8, 3, 3)])
@pytest.mark.parametrize("decades", [0.5, 2.0])
def test_bfloat16_orthogonalises_as_float32_does(shape, decades):
    """Also long matrices that are badly conditioned, where iterating on products would diverge."""
    u, _, v = torch.linalg.svd(draw(*shape).flatten(1), full_matrices=False)
    values = torch.logspace(0, -decades, len(v), dtype=torch.float64)
    matrix = ((u * values) @ v).reshape(1, *shape).float()
    half, full = orthogonal(matrix, torch.bfloat16), orthogonal(matrix)
    assert half.dtype == torch.float32
    assert (half - full).norm() < 0.05 * full.norm()
    found = torch.linalg.svdvals(half.flatten(2))
    assert found.min() > 0.65
    assert found.max() < 1.25
    assert (half.flatten(2)[0].double() - u @ v).norm() < 0.35 * (u @ v).norm()


def test_only_float32_on_a_gpu_is_iterated_in_bfloat16():
    assert iterated_type(torch.zeros(2)) == torch.float32
    with FakeTensorMode():
        for dtype, expected in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
            assert iterated_type(torch.empty(2, dtype=dtype, device="cuda")) == expected


@pytest.mark.parametrize("base", ["adam", "adamw"])
def test_changing_beta1_equals_explicit_products(base):
    """The corrected m is a mean of all gradients; its weights are products of the later betas."""
    rule, betas = base_rule(base), [0.0, 0.9, 0.5, 0.999, 0.95, 0.0, 0.7, 0.9]
    grads = [draw(1, 6, seed=i) for i in range(len(betas))]
    param = draw(1, 6)
    expected = param.clone()
    first, second, masses = start(rule, param)
    for t, beta in enumerate(betas):
        momentum = torch.tensor([beta], dtype=torch.float64)
        masses = rule.next_masses(masses, momentum)
        lr = torch.tensor([0.01], dtype=torch.float64)
        rule.step_(param, grads[t], first, second, masses, lr=lr, momentum=momentum)

        weights = [(1 - betas[s]) * math.prod(betas[s + 1 : t + 1]) for s in range(t + 1)]
        mean = sum(w * g for w, g in zip(weights, grads, strict=False)) / (
            1 - math.prod(betas[: t + 1])
        )
        squares = [0.001 * 0.999 ** (t - s) * grads[s].square() for s in range(t + 1)]
        root = (sum(squares) / (1 - 0.999 ** (t + 1))).sqrt()
        expected = expected - 0.01 * mean / (root + 1e-8)
        torch.testing.assert_close(param, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("base", RULES)
def test_runs_have_hyperparameters_of_their_own(base):
    rule = base_rule(base).for_tensor(hidden=True)
    lr, momentum = torch.tensor([0.0, 0.1, 3.0]).double(), torch.tensor([0.0, 0.5, 0.99]).double()
    decay = torch.tensor([0.0, 0.2, 0.01]).double()
    both, grads = draw(3, 4, 2), [draw(3, 4, 2, seed=i) for i in range(1, 6)]

    def run(rows):
        param = both[rows].clone()
        first, second, masses = start(rule, param)
        for grad in grads:
            masses = rule.next_masses(masses, momentum[rows])
            options = {"lr": lr[rows], "momentum": momentum[rows], "weight_decay": decay[rows]}
            rule.step_(param, grad[rows], first, second, masses, **options)
        return param

    alone = torch.cat([run(slice(i, i + 1)) for i in range(3)])
    assert torch.equal(run(slice(None)), alone)
    if base != "sgd":
        assert torch.equal(alone[0], both[0])  # lr 0 moves nothing


@pytest.mark.parametrize("base", RULES)
def test_direction_times_factor_is_the_update_at_lr_one(base):
    rule, param, grad = (
        base_rule(base).for_tensor(hidden=True),
        draw(2, 5, 3),
        draw(2, 5, 3, seed=1),
    )
    first, second, masses = start(rule, param)
    momentum = torch.full((2,), 0.9, dtype=torch.float64)
    masses = rule.next_masses(masses, momentum)
    before = param.clone()
    ahead = first.clone(), None if second is None else second.clone()
    rule.advance_moments_(grad, *ahead, momentum)
    way = rule.direction(*ahead, masses)
    rule.step_(param, grad, first, second, masses, lr=torch.ones(2).double(), momentum=momentum)
    torch.testing.assert_close(before - param, way * rule.factor(masses).view(2, 1, 1))


def test_noise_joins_the_gradient():
    rule, grad, noise = base_rule("adamw"), draw(2, 5), draw(2, 5, seed=1)
    results = []
    for given in ({"grad": grad, "noise": noise}, {"grad": grad + noise}):
        param = draw(2, 5, seed=2)
        first, second, masses = start(rule, param)
        tenth, momentum = torch.full((2,), 0.1).double(), torch.full((2,), 0.9).double()
        masses = rule.next_masses(masses, momentum)
        rule.step_(
            param,
            first=first,
            second=second,
            masses=masses,
            lr=tenth,
            momentum=momentum,
            **given,
        )
        results.append((param, first, second))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_noise_has_the_asked_for_size():
    grad = draw(3, 200, 100) * torch.tensor([1e-3, 1.0, 5.0]).view(3, 1, 1)
    level = torch.tensor([0.5, 0.0, 0.1], dtype=torch.float64)
    noise = gradient_noise(grad, level, torch.tensor([1, 2, 3]), 4, 0)
    for i in range(3):
        size = grad[i].square().mean().sqrt() * level[i]
        assert abs(noise[i].mean().item()) <= 4 * size.item() / 20_000**0.5
        torch.testing.assert_close(noise[i].std(), size, rtol=0.03, atol=0)
        if level[i]:
            assert (
                abs((noise[i] * grad[i]).mean() / (size * grad[i].std())) < 0.03
            )  # independent of the gradient


def test_noise_differs_between_steps_runs_and_tensors():
    grad, level, seeds = torch.ones(2, 50), torch.ones(2), torch.tensor([1, 2])
    drawn = [
        gradient_noise(grad, level, seeds, step, start) for step in (0, 1) for start in (0, 50)
    ]
    rows = torch.cat(drawn)
    assert len(rows.unique()) == rows.numel()
    assert torch.equal(drawn[0], gradient_noise(grad, level, seeds, torch.tensor([0, 0]), 0))


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4), (3,), (3, 0)])
def test_rms_is_the_root_mean_square_of_each_run(shape):
    x = draw(*shape)
    expected = torch.stack([row.square().mean().sqrt() if row.numel() else row.sum() for row in x])
    torch.testing.assert_close(rms(x), expected)


def test_unknown_base_lists_the_valid_ones():
    with pytest.raises(ValueError, match="base must be one of sgd, adam, adamw, muon; got 'lion'"):
        base_rule("lion")
