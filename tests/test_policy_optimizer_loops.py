"""PolicyOptimizer in the loops that scripts write: closures, scalers, warmups, no sync."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import NoSync, acting, assert_same, constant, train, train_watched
from tiny import TINY, plain_run
from torch import nn

from lr_gym.layers import GRANULARITIES
from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.policy import MLPPolicy, save_policy
from lr_gym.updates.rules import RULES


def test_closure_is_evaluated_and_returned():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    twin, twin_loss_at = plain_run(TINY, 1, torch.float32)
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
        train(other, twin, twin_loss_at, [step], observe=False)
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


# Schedulers and models of scripts


def effective(optimizer):
    return {
        key.removeprefix("lr/"): value
        for key, value in optimizer.metrics().items()
        if key.startswith("lr/")
    }


@pytest.mark.parametrize("warmup", ["by hand", "one cycle"])
def test_a_warmup_is_no_start_to_be_mended(warmup):
    """The policy starts from the constructor's rate, whatever the rate is at the first step."""
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
    # If the policy started from the rate of the warmup, the factor would be 25 or more.
    assert (ends[0] / ends[1]).log().abs().max() < math.log(4.0)


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
