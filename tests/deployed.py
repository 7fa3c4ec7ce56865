"""Policies, training loops and comparisons for the tests of PolicyOptimizer."""

from __future__ import annotations

import io

import torch
from naive_muon import NaiveMuon
from tiny import random_policy
from torch.utils._python_dispatch import TorchDispatchMode

from lr_gym.control.action import CONTROLLED, FINISH
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import MLPPolicy, constant_policy

TORCH = {
    "sgd": lambda params, **options: torch.optim.SGD(params, lr=0.01, momentum=0.9, **options),
    "adam": lambda params, **options: torch.optim.Adam(params, lr=0.01, **options),
    "adamw": lambda params, **options: torch.optim.AdamW(params, lr=0.01, **options),
    "muon": lambda params, **options: NaiveMuon(params, lr=0.01, **options),
}

HYPERPARAMETERS = tuple(name for name in CONTROLLED if name != FINISH)


def spec_of(**options) -> ControlSpec:
    return ControlSpec(**{"schedule": "constant", "decisions": 8, **options})


def constant(**options) -> MLPPolicy:
    return constant_policy(spec_of(**options), 5)


def acting(**options) -> MLPPolicy:
    """Make a policy that sets every hyperparameter."""
    return random_policy(spec_of(**{"controls": HYPERPARAMETERS, **options}), interval=3)


def train(optimizer, model, loss_at, steps, observe=True):
    """Make ordinary training steps; return the parameters after each."""
    trace = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_at(step)
        loss.backward()
        if observe:
            optimizer.observe(loss)
        optimizer.step()
        trace.append([p.detach().clone() for p in model.parameters()])
    return trace


class NoSync(TorchDispatchMode):
    """A context that fails on every operation that reads a number back from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        forbidden = (
            "_local_scalar_dense",
            "is_nonzero",
            "nonzero",
            "masked_select",
            "unique",
            "equal",
        )
        assert not any(
            func.__name__.startswith(name + ".") or func.__name__ == name for name in forbidden
        ), func
        return func(*args, **(kwargs or {}))


def train_watched(optimizer, loss_at, steps):
    """Make training steps in which the optimizer may read no number back from the device."""
    for step in range(steps):
        loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        with NoSync():
            optimizer.observe(loss)
            optimizer.step()


def through_file(state):
    """Save the state into a file and load it again."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(x, y, strict=True))


def assert_close(model, twin, tolerance=1e-9):
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p - q).norm() <= tolerance * q.norm()
