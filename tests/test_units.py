"""The unit of the learning rate: what it is, and that environment and optimizer agree on it."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from deployed import train
from guarded import everything, make, metric
from gymnasium.vector import AutoresetMode
from test_deployment import Recorder
from tiny import plain_run, random_policy, tiny_task
from torch import nn

from agents.sweep.rate_network import RateNetwork, policy_of
from lr_gym.control.spec import ControlSpec
from lr_gym.control.units import layer_units
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.layers import Layout, embedding_tables, muon_groups
from lr_gym.optim import PolicyOptimizer
from lr_gym.optim.guard import Guard
from lr_gym.policies.ranges import ObservedRanges
from lr_gym.tasks import Data, Split, Task
from lr_gym.tasks.architectures import mlp
from lr_gym.updates.adam import UNIT_POWER
from lr_gym.updates.muon import orthogonal
from lr_gym.updates.rule import MomentMasses
from lr_gym.updates.rules import base_rule

# The unit of a tensor


@pytest.mark.parametrize("shape", [(64, 64), (16, 256), (256, 16), (3, 200), (12, 4, 3, 3)])
def test_at_its_unit_the_update_of_muon_has_one_norm_for_all_shapes(shape):
    """Measured on the update that Muon makes; Newton-Schulz' own error is divided out."""
    rule = base_rule("muon").for_tensor(True)
    first = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    one = torch.ones(1)
    update = rule.direction(first, None, MomentMasses(one, one)) * rule.unit(shape)
    rows, columns = update[0].flatten(1).shape
    spectral = torch.linalg.matrix_norm(update[0].flatten(1), ord=2)
    error = torch.linalg.matrix_norm(orthogonal(first)[0].flatten(1), ord=2)
    assert 0.6 < float(error) < 1.3
    rms_to_rms = float(spectral / error) * math.sqrt(columns / rows)
    assert rms_to_rms == pytest.approx(0.2 * math.sqrt(64), rel=1e-4)


def test_each_block_of_a_fused_matrix_has_that_norm():
    rule = base_rule("muon").for_tensor(True, 3)
    first = torch.randn(1, 24, 40, generator=torch.Generator().manual_seed(0))
    one = torch.ones(1)
    update = rule.direction(first, None, MomentMasses(one, one))[0] * rule.unit((24, 40))
    for part, moment in zip(update.chunk(3), first[0].chunk(3), strict=True):
        error = torch.linalg.matrix_norm(orthogonal(moment.unsqueeze(0))[0], ord=2)
        norm = torch.linalg.matrix_norm(part, ord=2) / error * math.sqrt(40 / 8)
        assert float(norm) == pytest.approx(0.2 * math.sqrt(64), rel=1e-4)


@pytest.mark.parametrize("base", ["adam", "adamw", "muon"])
def test_units_of_adam_fall_with_the_fan_in(base):
    rule = base_rule(base).for_tensor(False)
    assert rule.unit((9,)) == rule.unit(()) == rule.unit((5, 64)) == 1.0
    assert rule.unit((7, 4, 8, 8)) == pytest.approx(4.0**-UNIT_POWER)
    assert rule.unit((7, 256)) == rule.unit((999, 256)) == rule.unit((7, 4, 8, 8))
    assert rule.unit((999, 256), embedding=True) == 1.0
    assert rule.unit((16, 1, 3)) == 1.0  # a small fan-in raises no rate
    assert rule.unit((1, 197, 768)) == 1.0  # positions are added, and multiply nothing
    assert rule.unit((1, 256)) == pytest.approx(0.5)  # a readout of one output


def test_a_fused_matrix_has_the_unit_of_its_blocks():
    rule = base_rule("muon").for_tensor(True, blocks=4)
    assert rule.unit((4 * 16, 64)) == base_rule("muon").unit((16, 64))


def test_sgd_has_no_unit():
    assert base_rule("sgd").unit((7, 999)) == 1.0


# The unit of a layer


def test_a_layer_has_the_unit_of_its_largest_tensor_and_a_model_their_mean():
    layout = Layout(("a", "b", "c"), (0, 0, 1, 2, 2), (6, 2, 3, 4, 4))
    units = [0.5, 2.0, 3.0, 0.1, 0.2]
    assert layer_units(layout, "per_layer", units, layout.sizes) == [0.5, 3.0, 0.1]
    every = [unit for unit, size in zip(units, layout.sizes, strict=True) for _ in range(size)]
    (whole,) = layer_units(layout, "global", units, layout.sizes)
    assert whole == pytest.approx(float(np.exp(np.mean(np.log(every)))))
    assert layer_units(layout, "per_layer", units, (0, 2, 3, 4, 4))[0] == 2.0  # 0 is frozen
    assert layer_units(layout, "global", units, (0, 0, 0, 0, 0)) == [1.0]


def test_a_table_that_is_also_the_readout_is_no_mere_table():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False), nn.Embedding(3, 4))
    assert embedding_tables(model) == {model[0].weight, model[2].weight}
    assert [group.get("embedding") for group in muon_groups(model)] == [True, None, True]
    model[1].weight = model[0].weight
    assert embedding_tables(model) == {model[2].weight}
    assert [group.get("embedding") for group in muon_groups(model)] == [None, True]


# Environment and optimizer


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )


def reader() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 16), nn.Flatten(), nn.Linear(80, 8), nn.Linear(8, 3))


@functools.cache
def symbols() -> Data:
    """The data of TINY with 5 symbols of 9 as inputs."""
    inputs = torch.randint(9, (160, 5), generator=torch.Generator().manual_seed(0))
    targets = inputs[:, 0] % 3
    return Data(*(Split(inputs[i : i + 40], targets[i : i + 40]) for i in range(0, 160, 40)))


MODELS = {
    "mlp": tiny_task(functools.partial(mlp, (5, 320, 8, 3))),
    "cnn": tiny_task(cnn),
    "embedding": dataclasses.replace(tiny_task(reader), data=symbols),
}


def env_of(task: Task, lr: float, spec: ControlSpec) -> LRControlVectorEnv:
    return LRControlVectorEnv(
        task, spec, 1, initial_lr=(lr, lr), autoreset_mode=AutoresetMode.DISABLED
    )


@pytest.mark.parametrize("granularity", ["per_layer", "global"])
@pytest.mark.parametrize("base", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("name", MODELS)
def test_environment_and_optimizer_have_the_same_units(name, base, granularity):
    task = MODELS[name]
    spec = ControlSpec(
        base=base, granularity=granularity, features=("scaled_lr", "peak_lr"), decisions=4
    )
    env = env_of(task, 0.01, spec)
    observation, info = env.reset(seed=3)
    policy = Recorder(random_policy(spec, interval=3))
    model, loss_at = plain_run(task, int(info["run_seed"][0]), torch.float32)
    optimizer = PolicyOptimizer(muon_groups(model), policy, 0.01, task.horizon)
    for step in range(2 * env.inner_steps_per_decision):
        if step == env.inner_steps_per_decision:
            observation, *_ = env.step(policy.actions[0][None])
        train(optimizer, model, loss_at, [step])
        np.testing.assert_allclose(policy.observations[-1], observation[0], rtol=0, atol=1e-5)
    assert len(policy.observations) == 2
    scaled, peak = policy.observations[0].T
    np.testing.assert_allclose(10.0 ** (3.5 * (peak - scaled)), env.lr_units, rtol=1e-4)
    assert env.lr_units.shape == (env.num_layers,)
    assert (env.lr_units == 1.0).all() == (base == "sgd")


# A policy that names one number


@pytest.mark.parametrize("start", [1e-4, 3e-3, 0.1])
@pytest.mark.parametrize("base", ["adamw", "muon"])
def test_one_named_number_is_a_rate_for_each_layer(base, start):
    """Three decisions from any start, in the environment and deployed."""
    spec = ControlSpec(
        base=base,
        schedule="constant",
        decisions=6,
        action_step=math.log(16.0),
        features=("horizon", "scaled_lr"),
    )
    rates = torch.linspace(math.log(1e-4), math.log(1e-1), 5)
    policy = policy_of(RateNetwork([1, 4], rates, 0), spec, 2, 0.0, {})
    task = MODELS["mlp"]
    env = env_of(task, start, spec)
    observation, info = env.reset(seed=1)
    for _ in range(3):
        action, _ = policy.predict(torch.from_numpy(observation[0]))
        observation, _, _, _, info = env.step(action.numpy()[None])
    expected = math.sqrt(1e-4 * 1e-1) * env.lr_units  # the network names the middle at first
    assert max(expected) > 2.0 * min(expected)
    np.testing.assert_allclose(info["lr"][0], expected, rtol=0.02)

    model, loss_at = plain_run(task, 1, torch.float32)
    optimizer = make(model, policy, lr=start, total_steps=12)
    train(optimizer, model, loss_at, range(6))
    np.testing.assert_allclose(metric(optimizer, "lr"), expected, rtol=0.02)


# The guard


def test_size_alone_takes_no_trust_and_is_shown_as_far_as_it_was_seen():
    """A model of 25 million parameters under a policy that has seen 10,000 to 160,000."""
    spec = ControlSpec(features=("scaled_lr", "model_size"))
    ranges = everything(spec)
    ranges.features[:, 1] = torch.tensor([0.0, 0.3])
    guard = Guard(ranges, spec, ["0", "1"], torch.zeros(()))
    size = math.log10(25e6) / 4 - 1
    observation = torch.tensor([[[0.25, size], [-0.75, size]]])
    shown = torch.tensor([[[0.25, 0.3], [-0.75, 0.3]]])
    assert torch.equal(guard.shown(observation), shown)
    assert torch.equal(guard.shown(shown), shown)
    lr = torch.full((1, 2), 0.01)
    before = torch.zeros(1, 2, 1)
    wanted = torch.tensor([[[1.0], [-1.0]]])
    moving = torch.ones(1, 2, dtype=torch.bool)
    for _ in range(30):
        assert torch.equal(guard.decide(observation, moving, lr, before, wanted), wanted)
    assert guard.state.trust.tolist() == [[1.0, 1.0]]
    assert guard.alarm(wait=True) is None


@pytest.mark.filterwarnings("ignore:PolicyOptimizer")
def test_a_rate_is_judged_in_units():
    """0.05 is an ordinary rate for the narrow matrices and a far too large one for the wide."""
    spec = ControlSpec(base="muon", schedule="constant", features=("scaled_lr",))
    highest = (math.log10(0.1) + 3) / 3.5  # the feature at 0.1, the highest rate in LR
    ranges = ObservedRanges(
        torch.tensor([[-highest], [highest]]),
        torch.tensor([[-5.0], [5.0]]),
        torch.tensor([1e-3, 1e-1]),
    )
    policy = dataclasses.replace(random_policy(spec, interval=1), ranges=ranges)
    model = nn.Sequential(nn.Linear(4096, 16), nn.Linear(16, 16), nn.Linear(16, 2))
    x = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    optimizer = make(model, policy, lr=0.05)
    train(optimizer, model, lambda _: model(x).square().mean(), [0])
    trust = metric(optimizer, "trust")
    assert trust[0] < 0.5
    assert trust[1:] == [1.0, 1.0]
