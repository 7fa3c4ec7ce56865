"""PolicyOptimizer under Accelerate, timm, Stable-Baselines3 and peft; groups with names."""

from __future__ import annotations

import math

import gymnasium
import pytest
import timm
import torch
from accelerate import Accelerator
from deployed import acting, assert_close, constant
from peft import LoraConfig, get_peft_model
from stable_baselines3 import DQN, PPO
from timm.optim import create_optimizer_v2
from torch import nn

from lr_gym.integrations.accelerate import policy_optimizer
from lr_gym.integrations.timm import timm_groups
from lr_gym.layers import layout_of_named, muon_matrices
from lr_gym.optim import GradientAgreementOptimizer, PolicyOptimizer, named_groups

STEPS = 12


def model_of():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, 2, 8, 4, generator=generator, dtype=torch.float64)
    return list(zip(x, x.sin().sum(-1, keepdim=True), strict=True))


def policy():
    return acting(controls=("lr",), average=8.0)


# --- Accelerate ---


def test_accelerate_accumulates_and_our_methods_are_at_hand():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = model_of()
    made = PolicyOptimizer(model.named_parameters(), policy(), 0.01, STEPS)
    model, optimizer = accelerator.prepare(model, made)
    assert policy_optimizer(optimizer) is made
    twin = model_of()
    twins = PolicyOptimizer(twin.named_parameters(), policy(), 0.01, STEPS)
    for inputs, targets in batches():
        for x, y in zip(inputs, targets, strict=True):
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                policy_optimizer(optimizer).observe(loss)
                optimizer.step()
                optimizer.zero_grad()
        loss = nn.functional.mse_loss(twin(inputs), targets)
        twins.zero_grad()
        loss.backward()
        twins.observe(loss)
        twins.step()
    assert_close(model, twin)
    assert made.applied_lrs() == pytest.approx(twins.applied_lrs())
    optimizer.eval()  # Accelerate passes these two on
    assert made.param_groups[0]["train_mode"] is False
    optimizer.train()
    assert_close(model, twin)


def test_policy_optimizer_looks_into_wrappers():
    optimizer = PolicyOptimizer(model_of().named_parameters(), constant(), 0.01)
    assert policy_optimizer(optimizer) is optimizer
    assert policy_optimizer(GradientAgreementOptimizer(optimizer)) is optimizer
    with pytest.raises(TypeError, match="no PolicyOptimizer inside SGD, but SGD"):
        policy_optimizer(torch.optim.SGD(model_of().parameters()))


# --- the rates that are applied ---


def test_applied_lrs_are_means_over_what_each_group_trains():
    model = model_of()
    model[2].bias.requires_grad_(False)
    named = list(model.named_parameters())
    groups = [{"params": named[:1]}, {"params": named[1:], "lr": 0.1}]
    optimizer = PolicyOptimizer(groups, acting(controls=("lr",)), 0.01, STEPS)
    for inputs, targets in batches():
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    metrics = optimizer.metrics()
    first, second = metrics["multiplier/0"], metrics["multiplier/2"]
    assert first != pytest.approx(second)
    # the second group has 8 biases of the first layer and 8 trained weights of the second
    expected = [0.01 * first, 0.1 * math.sqrt(first * second)]
    assert optimizer.applied_lrs() == pytest.approx(expected)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]


# --- names ---


def test_named_groups_keep_options_and_split_what_muon_updates():
    model = nn.ModuleList([nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)])
    made = torch.optim.SGD([{"params": model.parameters(), "weight_decay": 0.1}], lr=0.5)
    groups = named_groups(made.param_groups, model)
    kinds = [(group["muon"], group.get("embedding", False)) for group in groups]
    assert kinds == [(False, False), (False, True), (True, False)]
    assert all((group["weight_decay"], group["lr"]) == (0.1, 0.5) for group in groups)
    names = [[name for name, _ in group["params"]] for group in groups]
    assert names == [["1.bias", "2.weight", "2.bias"], ["0.weight"], ["1.weight"]]
    optimizer = PolicyOptimizer(groups, constant(base="muon"))
    named = named_groups(optimizer.param_groups, model)  # of a PolicyOptimizer, with names
    assert [(group["muon"], group.get("embedding", False)) for group in named] == kinds
    assert [[name for name, _ in group["params"]] for group in named] == names
    with pytest.raises(ValueError, match=r"shape \(3, 2\) in group 1 does not belong to the model"):
        named_groups([{"params": []}, {"params": [torch.ones(3, 2)]}], model)


@pytest.mark.parametrize(
    ("groups", "base", "says"),
    [
        (lambda m: [m.weight, m.bias], "adamw", None),
        (lambda m: m.named_parameters(), "muon", None),
        (lambda m: [{"params": m.parameters(), "muon": True}], "muon", None),
        (lambda m: m.parameters(), "muon", "group 0 does not say whether Muon"),
        (lambda m: [{"params": [m.weight]}, {"params": [m.bias]}], "adamw", "tensor of group 1"),
        (lambda m: [{"params": [m.bias]}, {"params": [m.weight]}], "adamw", "tensor of group 0"),
    ],
)
def test_what_names_would_tell_is_not_guessed_in_silence(groups, base, says, recwarn):
    model = nn.Linear(3, 2)
    optimizer = PolicyOptimizer(groups(model), constant(base=base), 0.01)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = [str(warning.message) for warning in recwarn]
    assert len(found) == (says is not None)
    assert says is None or (says in found[0] and "named_groups(groups, model)" in found[0])


# --- timm ---


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_timms_groups_have_names(layer_decay):
    model = timm.create_model("test_vit", num_classes=3)
    optimizer = create_optimizer_v2(
        model,
        "lr_gym_policy",
        lr=0.01,
        param_group_fn=lambda m: timm_groups(m, 0.1, layer_decay),
        policy=constant(base="muon"),
    )
    assert isinstance(optimizer, PolicyOptimizer)
    reference = create_optimizer_v2(
        model, "sgd", lr=0.01, weight_decay=0.1, layer_decay=layer_decay
    )
    options = lambda made: {
        param: (group["weight_decay"], group.get("lr_scale", group["lr"] / 0.01))
        for group in made.param_groups
        for param in group["params"]
    }
    expected = options(reference)
    assert options(optimizer) == {param: pytest.approx(both) for param, both in expected.items()}
    model(torch.randn(2, 3, 160, 160)).sum().backward()
    optimizer.step()
    layers = {key.removeprefix("lr/") for key in optimizer.metrics() if key.startswith("lr/")}
    assert layers == set(layout_of_named(model.named_parameters()).names)
    updated = {p for p in model.parameters() if "momentum_buffer" in optimizer.state[p]}
    assert updated == muon_matrices(model)


# --- Stable-Baselines3 ---


@pytest.mark.parametrize("agent", [PPO, DQN])
def test_stable_baselines3_makes_trains_and_loads_it(agent, tmp_path):
    options = {
        PPO: {"n_steps": 32, "batch_size": 16, "n_epochs": 2},
        DQN: {"learning_starts": 8, "train_freq": 4, "batch_size": 8},
    }[agent]
    chosen = {"policy": acting(controls=("lr",)), "total_steps": 100}
    model = agent(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        policy_kwargs={"optimizer_class": PolicyOptimizer, "optimizer_kwargs": chosen},
        device="cpu",
        seed=0,
        **options,
    )
    model.learn(64)
    optimizer = model.policy.optimizer
    assert isinstance(optimizer, PolicyOptimizer)
    steps = optimizer.param_groups[0]["step"]
    assert steps == {PPO: 8, DQN: 14}[agent]
    model.save(tmp_path / "agent")
    loaded = agent.load(tmp_path / "agent", device="cpu").policy.optimizer
    assert loaded.metrics() == optimizer.metrics()


# --- peft ---


def test_peft_trains_what_it_has_added():
    model = model_of()
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["0", "2"]))
    optimizer = PolicyOptimizer(model.named_parameters(), acting(controls=("lr",)), 0.01, STEPS)
    frozen = [p.detach().clone() for p in model.parameters() if not p.requires_grad]
    trained = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    for inputs, targets in batches():
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    after = [p for p in model.parameters() if not p.requires_grad]
    assert all(torch.equal(p, q) for p, q in zip(frozen, after, strict=True))
    after = [p for p in model.parameters() if p.requires_grad]
    assert not any(torch.equal(p, q) for p, q in zip(trained, after, strict=True))
