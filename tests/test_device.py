"""Nothing is left on the host, and the device is never waited for: shown with tensors that only pretend to be on one.

Fake tensors know their device, refuse to be mixed with those of another, and refuse to be read; a mode around them sees
every copy between host and device. What only a real GPU can show is in test_cuda.py.
"""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import random_policy
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lr_gym.control import ControlSpec
from lr_gym.inner_loop import InnerLoop
from lr_gym.optim import PolicyOptimizer, muon_groups
from lr_gym.policy import MLPPolicy
from lr_gym.rows import leaves_of
from lr_gym.tasks import TASKS
from lr_gym.types import Hyperparams
from lr_gym.vector_env import LRControlVectorEnv

RUNS = 4
NAMES = ("mnist1d-mlp", "mnist1d-gru", "mnist1d-transformer", "digits-cnn", "titanic-mlp", "quadratic", "rosenbrock")
DATA = {name: TASKS[name].data() for name in NAMES}
SPECS = [ControlSpec(base=base, controls=("lr", "momentum", "noise")) for base in ("sgd", "adamw", "muon")]
POLICIES = {spec.base: random_policy(spec, interval=2) for spec in SPECS}


class Waits(TorchDispatchMode):
    """Notes whatever makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), out))
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if copies and (moved := {given[-1].device.type, made[0].device.type}) == {"cpu", "cuda"}:
            later = kwargs.get("non_blocking") or True in args[2:]
            if not later or made[0].device.type == "cpu":
                self.found.append((func, moved))
        elif func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.found.append((func, None))
        return out


@pytest.fixture
def device(monkeypatch):
    """In it tensors may be made on "cuda", and the notes of what was waited for."""
    # Autograd's backward wants a real device; its operations are on those of forward, which are seen.
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, leaves: tuple(torch.empty_like(x) for x in leaves))
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        yield waits


def task_of(name: str):
    return dataclasses.replace(TASKS[name], data=lambda: DATA[name])


def assert_on_cuda(tree) -> None:
    assert {x.device.type for x in leaves_of(tree)} == {"cuda"}


def test_waiting_is_noticed(device):
    x = torch.ones(3, device="cuda")
    with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
        bool(x.sum() > 0)
    x.cpu()
    torch.ones(3).to("cuda")
    x.copy_(torch.ones(3))
    assert len(device.found) == 3, device.found
    torch.ones(3).to("cuda", non_blocking=True)
    x.copy_(torch.ones(3), non_blocking=True)
    torch.zeros_like(x).copy_(x)
    assert len(device.found) == 3
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(3)


@pytest.mark.parametrize("base", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("name", NAMES)
def test_inner_loop_stays_on_the_device(device, name, base):
    loop = InnerLoop(task_of(name), base=base, noise=True, weight_decay=True, device="cuda")
    state = loop.init(torch.arange(RUNS))
    ones = torch.ones(RUNS, loop.layout.num_layers, device="cuda")
    hyper, factor = Hyperparams(ones, ones, ones, ones), torch.ones(3, RUNS, device="cuda")
    device.found.clear()  # loading data may take its time
    state, losses = loop.advance(state, hyper, factor)
    state, fewer = loop.advance(state, hyper, factor, np.array([3, 1, 0, 2]))
    assert_on_cuda((state, losses, fewer, tuple(loop.stats(state, hyper)), loop.evaluate(state, "reward")))
    assert device.found == []


ENVIRONMENTS = {
    "default": {},
    "all controls": {"controls": ("lr", "momentum", "noise"), "base": "muon", "weight_decay": 0.1},
    "global": {"control": "global", "base": "sgd"},
    "discrete": {"action": "discrete"},
    "against Adam": {"reward": "paired"},
    "averages": {"average": 0.5},
}


@pytest.mark.parametrize("kind", list(ENVIRONMENTS))
def test_a_decision_does_not_wait(device, kind):
    env = LRControlVectorEnv(task_of("mnist1d-mlp"), RUNS, device="cuda", **ENVIRONMENTS[kind])
    device.found.clear()
    env._runs = env._fresh(torch.arange(RUNS).to("cuda", non_blocking=True), np.full(RUNS, 1e-3))
    assert device.found == []
    for _ in range(2):
        action = env._action_tensor(np.zeros(env.action_space.shape, env.action_space.dtype))
        assert_on_cuda((env._decided(action), env._runs))
    assert device.found == []


@pytest.mark.parametrize("base", list(POLICIES))
def test_deployed_policy_does_not_wait(device, base, monkeypatch):
    monkeypatch.setattr(MLPPolicy, "__post_init__", lambda self: None)  # reads weights, when they come to the device
    with torch.device("cuda"):
        model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = PolicyOptimizer(muon_groups(model), POLICIES[base], total_steps=20, weight_decay=0.1)
    optimizer.observe(torch.ones((), device="cuda"))
    device.found.clear()  # setting up may take its time
    for _ in range(5):
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.observe(torch.ones((), device="cuda"))
        optimizer.step()
    assert_on_cuda((*model.parameters(), *leaves_of(optimizer._live.control)))
    assert device.found == []
