"""Trainings that start from pretrained weights: the guard takes all trust."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import warnings

import pytest
import torch
import torchvision
from deployed import assert_close, spec_of, through_file
from guarded import everything
from ranks import on_ranks
from tiny import random_policy
from torch import distributed, nn

from lr_gym.optim import PolicyOptimizer
from lr_gym.optim.pretrained import is_pretrained, norm_votes
from lr_gym.optim.slots import Slot
from lr_gym.updates.rules import base_rule

LR = 1e-5
STEPS = 12


def network(trained: bool, norms: int = 3) -> nn.Module:
    """Linear layers with layer norm; trained ones have weights like those of MiniLM."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    modules = [module for _ in range(norms) for module in (nn.Linear(10, 10), nn.LayerNorm(10))]
    model = nn.Sequential(*modules, nn.Linear(10, 1)).double()
    with torch.no_grad():
        for module in model[::2]:
            module.weight.copy_(0.3 * draw(module.weight.shape))
            module.bias.zero_()
        for module in model[1::2]:
            if trained:
                module.weight.copy_(0.9 + 0.1 * draw(10))
    return model


def policy_of():
    """Actions that are random and large, by a policy to which nothing is new."""
    policy = random_policy(spec_of(schedule="wsd"), interval=3)
    return dataclasses.replace(policy, ranges=everything(policy.spec))


def make(model, **options):
    return PolicyOptimizer(model.named_parameters(), policy_of(), LR, total_steps=STEPS, **options)


def train(model, optimizer, steps, rank=0, world=1):
    for step in steps:
        x = torch.randn(8, 10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        x = x.chunk(world)[rank]
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()


def votes(params) -> float:
    rule = base_rule("adamw")
    slots = [Slot(param, {}, 0, 0, rule) for param in params]
    return float(norm_votes(slots, torch.zeros(1)))


def test_a_pretrained_model_is_trained_by_the_base_optimizer():
    """AdamW at the user's rate, under the decay of the policy's base schedule."""
    model, twin = network(trained=True), network(trained=True)
    optimizer = make(model)
    with pytest.warns(UserWarning, match="pretrained weights.*guard=False") as warned:
        train(model, optimizer, range(STEPS))
    assert len(warned) == 1
    assert optimizer.guarded
    schedule = optimizer._prepare().controller.schedule
    adamw = torch.optim.AdamW(twin.parameters(), LR)
    for step in range(STEPS):
        adamw.param_groups[0]["lr"] = LR * float(schedule(step))
        adamw.observe = lambda loss: None
        train(twin, adamw, [step])
    assert_close(model, twin, 1e-12)
    metrics = optimizer.metrics()
    assert {value for key, value in metrics.items() if key.startswith("trust/")} == {0.0}
    assert {value for key, value in metrics.items() if key.startswith("multiplier/")} == {1.0}


@pytest.mark.parametrize(("trained", "guard"), [(False, True), (True, False)])
def test_the_policy_acts_on_fresh_weights_and_without_a_guard(trained, guard):
    model = network(trained)
    optimizer = make(model, guard=guard)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, range(STEPS))
    multipliers = {v for k, v in optimizer.metrics().items() if k.startswith("multiplier/")}
    assert 1.0 not in multipliers
    assert not is_pretrained(optimizer.param_groups)
    assert ("pretrained" in optimizer.param_groups[0]) == guard


def test_weights_count_at_the_first_step_not_before():
    model = network(trained=False)
    optimizer = make(model)
    optimizer.metrics()
    model.load_state_dict(network(trained=True).state_dict())
    with pytest.warns(UserWarning, match="pretrained"):
        train(model, optimizer, range(1))


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the weights of norm")
@pytest.mark.parametrize("trained", [False, True])
def test_a_training_that_resumes_stays_what_it_was(trained):
    """After training, the norm layers of the fresh one vary too."""
    model = network(trained)
    optimizer = make(model)
    train(model, optimizer, range(5))
    assert votes(model.parameters()) == 3.0
    saved = through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    again = network(not trained)
    resumed = make(again)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    copied = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(5, STEPS))
    for other, its_optimizer in ((again, resumed), copied):
        train(other, its_optimizer, range(5, STEPS))
        assert is_pretrained(its_optimizer.param_groups) is trained
    assert_close(again, model, 0.0)
    assert resumed.metrics() == optimizer.metrics()


def test_one_odd_vector_decides_nothing():
    varied = torch.linspace(0.5, 1.5, 10)
    assert votes([varied]) == 1.0
    assert votes([varied, varied, torch.ones(10)]) == 1.0
    assert votes([varied, varied, torch.zeros(10), varied - 1.0, torch.ones(10, 10)]) == 2.0
    assert votes([varied[:7], torch.ones(7)]) == 0.0
    optimizer = make(network(trained=True, norms=1))
    train(network(trained=True, norms=1), optimizer, ())
    assert not is_pretrained(optimizer.param_groups)


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "convnext_tiny", "mobilenet_v3_small"])
def test_no_fresh_model_of_torchvision_is_taken_for_a_pretrained_one(name):
    assert votes(torchvision.models.get_model(name, weights=None).parameters()) < 0.0


def on_a_rank(rank):
    """What was decided on this rank for models that are fresh or trained, whole or in shards."""
    from torch.distributed.fsdp import fully_shard

    world = distributed.get_world_size()
    outcomes = []
    for trained, sharded in itertools.product((False, True), repeat=2):
        model = network(trained)
        if sharded:
            fully_shard(model)
        optimizer = make(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(model, optimizer, range(1), rank, world)
        outcomes.append((trained, optimizer.param_groups[0]["pretrained"], optimizer.guarded))
    return outcomes


def test_ranks_decide_alike(tmp_path):
    for outcomes in on_ranks(2, tmp_path, on_a_rank):
        assert outcomes == [(trained,) * 3 for trained in (False, False, True, True)]
