"""Trainings on a device that is not the host: all tensors stay there, and the host does not wait.

Tests that need a real GPU are in test_cuda.py.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pretend_device import NAME, PretendDevice
from safetensors.torch import load_file
from tiny import STREAMS, TINY, random_policy
from torch import nn

import train_agent
from lr_gym.benchmark import loop
from lr_gym.benchmark.contestants import Baseline, DeployedPolicy
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.control.finish import Endings
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
    PolicyOptimizer,
    muon_groups,
)
from lr_gym.optim.contrib.noise import NoiseSource
from lr_gym.policies.policy import load_policy
from lr_gym.tasks import TASKS
from lr_gym.tasks.initial import initial_parameters, load_parameters
from lr_gym.training.executor import Executor
from lr_gym.tree import leaves_of
from lr_gym.types import Hyperparams

RUNS = 4
NAMES = (
    "mnist1d-mlp",
    "mnist1d-gru",
    "mnist1d-transformer",
    "digits-cnn",
    "titanic-mlp",
    "quadratic",
    "rosenbrock",
    "stream-values-4",
    "stream-classes-2",
    "stream-mnist1d-orders",
    "stream-digits-groups",
)
BASES = ("sgd", "adamw", "muon")


@pytest.fixture
def device():
    with PretendDevice() as device:
        yield device


def assert_equal(found, expected) -> None:
    for x, y in zip(leaves_of(found), leaves_of(expected), strict=True):
        assert x.device.type == NAME
        torch.testing.assert_close(x.cpu(), y, equal_nan=True)


def test_the_pretended_device_is_one(device):
    x = torch.ones(3, device=NAME)
    assert (x.sum() + 1.0).device.type == NAME
    x.copy_(torch.ones(3), non_blocking=True)
    assert device.waits == []
    x.copy_(torch.ones(3))
    torch.ones(3).to(NAME)
    assert x.cpu().tolist() == [1.0, 1.0, 1.0]
    assert float(x.sum()) == 3.0
    assert len(device.waits) == 4
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", NAMES)
def test_inner_loop_on_a_device(device, name, base):
    results = []
    for place in ("cpu", NAME):
        kind = {"dtype": torch.float64, "device": place}
        loop = Executor(TASKS[name], base=base, noise=True, weight_decay=True, **kind)
        state = loop.init(torch.arange(RUNS))
        ones = torch.ones(RUNS, loop.layout.num_layers, **kind)
        hyper, factor = (
            Hyperparams(ones * 0.01, ones * 0.9, ones * 0.1, ones * 0.1),
            torch.ones(3, RUNS, **kind),
        )
        device.waits.clear()  # loading data may take its time
        state, losses = loop.advance(state, hyper, factor)
        state, fewer = loop.advance(state, hyper, factor, np.array([3, 1, 0, 2]))
        evaluated = losses if name in STREAMS else loop.evaluate(state, "reward")
        results.append((state, losses, fewer, loop.stats(state, hyper), evaluated))
    assert device.waits == []
    assert_equal(results[1], results[0])


ENVIRONMENTS = {
    "default": {},
    "all controls": {"controls": ("lr", "momentum", "noise"), "base": "muon", "weight_decay": 0.1},
    "global": {"granularity": "global", "base": "sgd"},
    "discrete": {"action": "discrete"},
    "averages": {"average": 0.5},
}


@pytest.mark.parametrize("kind", list(ENVIRONMENTS))
def test_environment_on_a_device(device, kind):
    """Two episodes, their restarts, and a continuation from a saved state equal the CPU's."""
    envs = [
        LRControlVectorEnv(
            TINY,
            num_envs=RUNS,
            device=place,
            decisions=3,
            initial_lr=(1e-3, 1.0),
            **ENVIRONMENTS[kind],
        )
        for place in ("cpu", NAME)
    ]
    results = [env.reset(seed=3) for env in envs]
    rng = np.random.default_rng(0)
    for _ in range(7):
        shape = envs[0].action_space.shape
        action = (
            rng.integers(0, 2, shape)
            if envs[0].control_spec.mode.discrete
            else rng.uniform(-1.0, 1.0, shape)
        )
        results = [env.step(action) for env in envs]
        for found, expected in zip(results[1][:4], results[0][:4], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            results[1][4]["reward_loss"], results[0][4]["reward_loss"], rtol=1e-4
        )
    state = {name: value.cpu() for name, value in envs[1].state_dict().items()}
    expected = envs[1].step(action)[0]
    envs[1].load_state_dict(state)
    np.testing.assert_array_equal(envs[1].step(action)[0], expected)


@pytest.mark.parametrize(
    ("task", "kind"), [*((TINY, kind) for kind in ENVIRONMENTS), ("stream-values-4", "default")]
)
def test_a_decision_does_not_wait(device, task, kind):
    env = LRControlVectorEnv(task, num_envs=RUNS, device=NAME, **ENVIRONMENTS[kind])
    device.waits.clear()
    seeds = torch.arange(RUNS).to(NAME, non_blocking=True)
    state, _ = env._episodes.start(seeds, np.full((RUNS, env.num_layers), 1e-3))
    step = np.zeros(RUNS, dtype=np.int64)
    endings = Endings(np.full(RUNS, -1), np.zeros(RUNS, dtype=np.int64))
    for _ in range(2):
        action = env._read_actions(np.zeros(env.action_space.shape, env.action_space.dtype))
        interval = env._episodes.run_interval(state, action, step, endings)
        state = interval.state
        step = step + interval.taken
    assert device.waits == []


def trained(
    device, place: str, make, steps: int, *, closure: bool = False
) -> tuple[torch.Tensor, ...]:
    """Weights after some steps of `make(model)`; waits are noted from the second step on."""
    kind = {"dtype": torch.float64}
    layers = nn.Linear(8, 200), nn.LayerNorm(200), nn.ReLU(), nn.Linear(200, 200), nn.Linear(200, 4)
    model = nn.Sequential(*layers)  # PolicyOptimizer samples the middle matrix
    model = load_parameters(model, initial_parameters(model, torch.tensor([0]), **kind))
    model = model if place == "cpu" else on_device(model)
    optimizer = make(model)
    x = torch.linspace(-1.0, 1.0, 80, **kind).view(10, 8).to(place, non_blocking=True)
    for step in range(steps):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 1:
            device.waits.clear()
        if isinstance(optimizer, PolicyOptimizer):
            optimizer.observe(loss)
        optimizer.step(*[lambda value=loss: value] * closure)
    return tuple(p.detach() for p in model.parameters())


def on_device(model: nn.Module) -> nn.Module:
    """The model with its parameters on the pretended device."""
    for module in model.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(param.detach().to(NAME)))
    return model


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the policy has learned from nothing like")
@pytest.mark.parametrize("base", BASES)
def test_deployed_policy_on_a_device(device, base):
    """The same weights as on the CPU, guard included, and no wait after the first step."""
    guarded = load_policy("builtin:default")
    spec = dataclasses.replace(guarded.spec, base=base)
    policies = [
        (dataclasses.replace(guarded, spec=spec), False),
        (random_policy(ControlSpec(base=base, controls=("lr", "momentum", "noise"))), False),
        (random_policy(ControlSpec(base=base)), base != "sgd"),
    ]
    for policy, fused in policies:
        options = {"total_steps": 20, "steps_per_epoch": 3, "fused": fused}
        make = lambda model, p=policy, o=options: PolicyOptimizer(muon_groups(model), p, **o)
        weights = [trained(device, place, make, steps=20) for place in ("cpu", NAME)]
        assert device.waits == []
        assert_equal(*reversed(weights))


OLDER = {
    "gradient agreement": lambda params: GradientAgreementOptimizer(
        torch.optim.SGD(params, 0.01), "snr"
    ),
    "adaptive upgd": lambda params: AdaptiveUPGD(params, 0.01, adaptive_noise=True),
    "garo": lambda params: GlobalAdaptiveSGD(params, 0.01, layerwise=True),
    "enhanced sgd": lambda params: EnhancedSGD(params, 0.01, noise_scale=0.1),
}


@pytest.mark.parametrize("name", list(OLDER))
def test_older_optimizers_on_a_device(device, monkeypatch, name):
    monkeypatch.setattr(
        NoiseSource,
        "_generator",
        lambda self, _: self.__dict__.setdefault("one", torch.Generator()),
    )
    make = lambda model: OLDER[name](model.parameters())
    weights = [
        trained(device, place, make, steps=12, closure=name == "enhanced sgd")
        for place in ("cpu", NAME)
    ]
    assert device.waits == ["tolist"] * (
        name == "enhanced sgd"
    )  # its Q-table is the host's, asked every ten steps
    assert_equal(*reversed(weights))


@pytest.mark.parametrize(
    "name", ["builtin:muon", "builtin:anytime", "sgd-momentum-cosine", "garo", "enhanced-sgd"]
)
def test_cell_of_the_benchmark_on_a_device(device, monkeypatch, name):
    """A task with batch norm, and optimizers with schedules.

    Torch's Adam asks the CUDA driver whether it is capturing, so test_cuda.py tests it.
    """
    monkeypatch.setattr(
        torch.__future__, "_swap_module_params_on_conversion", True
    )  # for a tensor's subclass
    contestant = Baseline(name) if name in OPTIMIZERS else DeployedPolicy(name)
    losses = []
    for place in ("cpu", NAME):
        monkeypatch.setattr(loop, "device_of", lambda task, place=place: torch.device(place))
        losses.append(
            run_cell(Cell(contestant, 1e-3, "digits-cnn", 0, test=True, horizon=12)).test_loss
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("agent", ["ppo", "dqn", "q_learning", "es", "sweep"])
def test_training_of_an_agent_on_a_device(device, tmp_path, monkeypatch, agent):
    # the mode of the pretended device is active in this thread only
    monkeypatch.setattr(ThreadPoolExecutor, "map", lambda self, *args: map(*args))
    options = f"--task quadratic --agent {agent} --num-envs 4 --timesteps 64 --decisions 4"
    options += " --horizon 16 --workers 1 --wandb disabled --selection-runs 4 --guard-runs 4"
    options += " --certificate-runs 0 --sweep.rates 3 --sweep.steps 2"
    for place in ("cpu", NAME):
        train_agent.main(
            [*options.split(), "--device", place, "--output-dir", str(tmp_path / place)]
        )
    found, expected = (
        load_file(tmp_path / place / "policy.safetensors") for place in (NAME, "cpu")
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], "device 'gpu' cannot be used here"),
        (["--device", "mtia"], "device 'mtia' cannot be used here"),
        (["--device", NAME, "--agent", "garo"], "garo trains on the CPU; got device='meta'"),
    ],
)
def test_unusable_devices_are_named(tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        train_agent.main([*options, "--output-dir", str(tmp_path)])
