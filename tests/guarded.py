"""Ranges, policies and optimizers for the tests of the guard."""

from __future__ import annotations

import dataclasses

import torch
from deployed import HYPERPARAMETERS, spec_of
from tiny import random_policy

from lr_gym.control.spec import ControlSpec
from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.ranges import ObservedRanges

LR = (1e-3, 1e-1)


def ranges_of(low, high, offsets=((-2.0,), (2.0,)), lr=LR) -> ObservedRanges:
    return ObservedRanges(torch.tensor([low, high]), torch.tensor(offsets), torch.tensor(lr))


def everything(spec: ControlSpec, lr=LR) -> ObservedRanges:
    """Ranges of a policy to which nothing is new."""
    offsets = torch.full((2, len(spec.controls)), spec.mode.bound)
    features = torch.ones(2, len(spec.features))
    features[0], offsets[0] = -1.0, -spec.mode.bound
    return ObservedRanges(features, offsets, torch.tensor(lr))


def nothing(spec: ControlSpec, lr=LR) -> ObservedRanges:
    return everything(spec, lr)._replace(features=torch.zeros(2, len(spec.features)))


def acting(ranges=None, **options):
    """Make a policy that sets every hyperparameter; `ranges` makes its ranges from its spec."""
    policy = random_policy(spec_of(**{"controls": HYPERPARAMETERS, **options}), interval=3)
    return policy if ranges is None else dataclasses.replace(policy, ranges=ranges(policy.spec))


def make(model, policy, **options):
    return PolicyOptimizer(
        model.named_parameters(), policy, **{"lr": 0.01, "total_steps": 40, **options}
    )


def metric(optimizer, key):
    return [value for name, value in optimizer.metrics().items() if name.startswith(f"{key}/")]
