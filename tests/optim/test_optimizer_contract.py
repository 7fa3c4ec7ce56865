"""What every optimizer of this package promises, with torch.optim.Adam as the control."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optimizer_contract import ROWS, Row, assert_same, clone, descend, make_params
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def test_descends_from_either_side(row: Row) -> None:
    params = [
        torch.full((3, 2), 3.0, requires_grad=True),
        torch.full((5,), -3.0, requires_grad=True),
    ]
    before = clone(params)
    descend(row.make(params, lr=0.1), params, 1)
    assert (params[0] < before[0]).all()
    assert (params[1] > before[1]).all()


def test_non_contiguous_equals_contiguous(row: Row) -> None:
    straight = [torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()]
    turned = [straight[0].detach().clone().t().contiguous().t().requires_grad_()]
    assert not turned[0].is_contiguous()
    for params in (straight, turned):
        descend(row.make(params, lr=0.01), params, 12)
    torch.testing.assert_close(straight[0], turned[0], rtol=1e-5, atol=1e-6)


def test_none_gradient_leaves_the_parameter_and_its_state_alone(row: Row) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.1)
    before = clone(params)
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert not torch.equal(params[1], before[1])
    assert_same([params[0], params[2]], [before[0], before[2]])
    assert not optimizer.state[params[0]]


def test_step_without_any_gradient(row: Row) -> None:
    params = make_params()
    before = clone(params)
    row.make(params, lr=0.1).step()
    assert_same(params, before)


def test_zero_gradients_stay_finite_and_do_little(row: Row) -> None:
    params = make_params()
    before = clone(params)
    optimizer = row.make(params, lr=0.01)
    for _ in range(12):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(p, old, rtol=2e-3, atol=1e-3)


def test_empty_parameter(row: Row) -> None:
    params = [torch.zeros(0, 3, requires_grad=True), torch.ones(2, requires_grad=True)]
    descend(row.make(params, lr=0.1), params, 3)
    assert params[0].shape == (0, 3)
    assert params[1].isfinite().all()


def test_group_at_lr_zero_stays(row: Row) -> None:
    still, moving = make_params(), make_params(seed=1)
    before, others = clone(still), clone(moving)
    optimizer = row.make([{"params": still, "lr": 0.0}, {"params": moving}], lr=0.1)
    descend(optimizer, still + moving, 12)
    assert_same(still, before)
    assert all(not torch.equal(p, old) for p, old in zip(moving, others, strict=True))


def test_add_param_group_in_mid_run(row: Row) -> None:
    params, late = make_params(), make_params(seed=1)
    optimizer = row.make(params, lr=0.1)
    descend(optimizer, params, 5)
    optimizer.add_param_group({"params": late, "lr": 0.2})
    before = clone(late)
    descend(optimizer, params + late, 12, start=5)
    assert optimizer.param_groups[1]["lr"] == 0.2
    assert all(
        p.isfinite().all() and not torch.equal(p, old) for p, old in zip(late, before, strict=True)
    )


def test_named_parameters(row: Row) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = row.make(model.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    before = clone(list(model.parameters()))
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_hooks_fire_once(row: Row) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.1)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))
    descend(optimizer, params, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["pre", "post", "saved", "loaded"]


@pytest.mark.parametrize("outer", [True, False])
def test_closure_is_called_once_with_gradients_enabled(row: Row, outer: bool) -> None:
    params = make_params()
    before = clone(params)
    optimizer = row.make(params, lr=0.1)
    calls: list[bool] = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = torch.stack([(p - 1).square().sum() for p in params]).sum()
        loss.backward()
        return loss

    with torch.set_grad_enabled(outer):
        loss = optimizer.step(closure)
    assert calls == [True]
    torch.testing.assert_close(loss.item(), sum((p - 1).square().sum().item() for p in before))
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_descend(row: Row, dtype: torch.dtype) -> None:
    params = make_params(dtype)
    before = clone(params)
    descend(row.make(params, lr=0.02), params, 30)
    assert all(p.dtype == dtype and p.isfinite().all() for p in params)
    distance = [sum((p.detach() - 1).square().sum().item() for p in ps) for ps in (before, params)]
    assert distance[1] < 0.8 * distance[0]


def test_sparse_gradient_is_an_error(row: Row) -> None:
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        row.make(table.parameters(), lr=0.1).step()


def test_complex_gradient_is_right_or_an_error(row: Row) -> None:
    param = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    param.abs().sum().backward()
    if row.complex_ok:
        row.make([param], lr=0.1).step()
        assert (param.abs() < 1).all()
    else:
        with pytest.raises((RuntimeError, ValueError), match="complex"):
            row.make([param], lr=0.1).step()


def test_maximize_mirrors_minimize(row: Row) -> None:
    down, up = make_params(), make_params()
    minimizer, maximizer = row.make(down, lr=0.05), row.make(up, lr=0.05, maximize=True)
    for step in range(12):
        for a, b in zip(down, up, strict=True):
            grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            a.grad, b.grad = grad, -grad
        minimizer.step()
        maximizer.step()
    assert_same(down, up)


def test_foreach_equals_the_plain_loop(row: Row) -> None:
    results = []
    for foreach in (True, False):
        params = make_params()
        descend(row.make(params, lr=0.05, foreach=foreach), params, 15)
        results.append(params)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_global_random_numbers_are_neither_used_nor_changed(row: Row) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        params = make_params()
        descend(row.make(params, lr=0.05), params, 12)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(params)
    assert_same(*results)


def test_gradients_are_left_as_they_were_or_scaled(row: Row) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.05)
    descend(optimizer, params, 3)
    grads = [p.grad for p in params]
    before = clone([g for g in grads if g is not None])
    optimizer.step()
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    after = [g for g in grads if g is not None]
    if row.scales_grad:
        factors = [
            (new.sum() / old.sum()).clamp(0, 1) for new, old in zip(after, before, strict=True)
        ]
        before = [factor * old for factor, old in zip(factors, before, strict=True)]
        torch.testing.assert_close(after, before)
    else:
        assert_same(after, before)


def test_grad_scaler_skips_the_step(row: Row) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def backward(scale: float) -> None:
        optimizer.zero_grad()
        loss = torch.stack([(p - 1).square().sum() for p in params]).sum() * scale
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    backward(1.0)
    before, state = clone(params), copy.deepcopy(optimizer.state_dict())
    backward(float("inf"))
    assert_same(params, before)
    assert repr(optimizer.state_dict()) == repr(state)
    assert scaler.get_scale() == 2.0
    backward(1.0)
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_scheduler_sets_the_step_size(row: Row) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: 0.0 if epoch < 8 else 1.0
    )
    before = clone(params)
    for step in range(8):
        descend(optimizer, params, 1, start=step)
        scheduler.step()
    assert_same(params, before)
    descend(optimizer, params, 1, start=8)
    assert all(not torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_first_step_is_proportional_to_lr(row: Row) -> None:
    moves = []
    for lr in (0.01, 0.02):
        params = make_params(torch.float64)
        before = clone(params)
        descend(row.make(params, lr=lr), params, 1)
        moves.append([p.detach() - old for p, old in zip(params, before, strict=True)])
    for one, two in zip(*moves, strict=True):
        torch.testing.assert_close(two, 2 * one, rtol=1e-5, atol=1e-12)


def test_gradient_accumulation(row: Row) -> None:
    models = [nn.Linear(4, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for model, parts in zip(models, (1, 4), strict=True):
        optimizer = row.make(model.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            for part in x.chunk(parts):
                (model(part).square().sum() / len(x)).backward()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_around_a_compiled_model(row: Row) -> None:
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    model = copy.deepcopy(plain)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for net, call in ((plain, plain), (model, torch.compile(model, backend="aot_eager"))):
        optimizer = row.make(net.parameters(), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            call(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_gradient_does_not_poison_other_tensors(row: Row, bad: float) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.05)
    descend(optimizer, params, 4)
    for p in params:
        p.grad = p.detach() - 1
    assert params[0].grad is not None
    params[0].grad[0, 0] = bad
    optimizer.step()
    assert not params[0].isfinite().all(), "a non-finite gradient must show in its own tensor"
    before = clone(params)
    descend(optimizer, params, 15, start=5)
    for p, old in zip(params[1:], before[1:], strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, old)


@pytest.mark.parametrize("lr", [-0.1, float("nan")])
def test_invalid_lr_is_named(row: Row, lr: float) -> None:
    with pytest.raises(ValueError, match=r"lr|learning rate"):
        row.make(make_params(), lr=lr)


class HostReads(TorchDispatchMode):
    """Counts the values read from a device: `.item()`, `float(tensor)`, `if tensor`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("foreach", [True, False])
def test_a_step_reads_nothing_from_the_device(row: Row, foreach: bool) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.05, foreach=foreach)
    descend(optimizer, params, 1)
    with HostReads() as reads:
        optimizer.step()  # on the gradients of before, and with no decision of the Q-learning due
    assert (reads.count > 0) == row.adam_inside, "torch's Adam reads its step counters"


def test_metrics_are_numbers(row: Row) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.05)
    if not hasattr(optimizer, "metrics"):
        assert isinstance(optimizer, torch.optim.Adam)
        return
    descend(optimizer, params, 12)
    metrics = optimizer.metrics()
    assert any(name.startswith("lr") for name in metrics)
    assert all(isinstance(value, float) and value == value for value in metrics.values())
