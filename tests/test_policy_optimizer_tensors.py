"""PolicyOptimizer on gradients and parameters of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deployed import TORCH, acting, assert_same, constant, spec_of, train
from tiny import TINY, plain_run, random_policy
from torch import nn

from lr_gym.optim import PolicyOptimizer
from lr_gym.updates.rules import RULES


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the parameters have no names")
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


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the parameters have no names")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", RULES)
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_train_as_torchs(kind, base, dtype):
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    start = ODD[kind]().to(dtype)
    torch.set_rng_state(torch_state)
    mine = nn.Parameter(start.clone())
    theirs = nn.Parameter(start.clone())
    # A model whose only tensor is empty has nothing to control, hence a second tensor.
    anchor = nn.Parameter(torch.ones(2, 2, dtype=dtype))
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
    """The group without weight decay is empty if a model has only matrices."""
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = PolicyOptimizer(
        [{"params": [parameter]}, {"params": [], "weight_decay": 0.0}], acting()
    )
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (parameter < 1).all()


@pytest.mark.filterwarnings("ignore:PolicyOptimizer")  # no policy has seen such gradients
@pytest.mark.parametrize(
    "policy",
    ["builtin:default", "builtin:muon", "builtin:anytime", random_policy(spec_of(base="sgd"))],
)
def test_nothing_lands_on_the_default_device(policy):
    """A tensor made without naming the device would not be where the parameters are."""
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


def test_no_parameters_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        PolicyOptimizer([], constant())


def test_parameters_of_two_devices_are_an_error():
    params = [nn.Parameter(torch.ones(2, 2, device=device)) for device in ("cpu", "meta")]
    optimizer = PolicyOptimizer(params, constant())
    with pytest.raises(ValueError, match="one device; got cpu, meta"):
        optimizer.metrics()
