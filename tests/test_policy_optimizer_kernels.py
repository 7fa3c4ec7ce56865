"""The fast paths of PolicyOptimizer equal the plain one.

Small tensors in one call, torch's fused kernels, statistics of a sample.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from deployed import (
    constant,
    spec_of,
)
from tiny import random_policy
from torch import nn

from lr_gym.optim import PolicyOptimizer, batching, fused_step


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the parameters have no names")
@pytest.mark.parametrize("base", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("controls", [("lr",), ("lr", "momentum", "noise")])
def test_small_tensors_of_one_shape_move_as_each_alone(monkeypatch, base, controls):
    """Four layers have different rates, three of them one shape; a gradient is missing at times."""
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
    for limit in ("MAX_BATCH", "SMALL"):  # two at a time, then each alone
        monkeypatch.setattr(batching, limit, 2 if limit == "MAX_BATCH" else 0)
        for a, b in zip(together, run(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_kernels_are_used_where_they_fit(monkeypatch):
    """They are the default for contiguous tensors of AdamW under a policy that sets lr alone.

    The device must be one of those known to have them.
    """
    calls = []
    kernel = torch._fused_adamw_
    monkeypatch.setattr(
        torch,
        "_fused_adamw_",
        lambda params, *rest, **o: calls.append(params) or kernel(params, *rest, **o),
    )

    def taken(policy, base=None, devices=("cpu",), **options):
        monkeypatch.setattr(fused_step, "KERNELS", devices)
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
    """Two tensors can use the kernel, the transposed one never does."""
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
    """One of 16 elements is sampled, of 40,000 with heavy tails and columns of different scale."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100, 400, generator=generator) * torch.linspace(0.1, 3.0, 400)
    observed = []
    for sample in (None, 2500):
        param = values.clone().requires_grad_()
        seen = []
        spec = constant(decisions=1).spec
        spy = type("Spy", (), {"spec": spec, "interval": 1, "to": lambda self, device: self})()
        spy.predict = lambda o, seen=seen: (seen.append(o), constant().predict(o))[1]
        optimizer = PolicyOptimizer([param], spy, 0.01, sample=sample)
        for step in range(3):
            param.grad = torch.randn(100, 400, generator=torch.Generator().manual_seed(step)) * 0.1
            optimizer.step()
        observed.append(torch.stack(seen))
    assert not torch.equal(*observed)
    torch.testing.assert_close(
        *observed, rtol=0, atol=0.05
    )  # 1 over the root of twice 2500 is 0.014


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
