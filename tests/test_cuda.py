"""Tests that need a real GPU: CUDA graphs, equal results, and no waiting that torch itself sees."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from tiny import random_policy
from torch import nn

import train_agent
from lr_gym.benchmark.contestants import Baseline, DeployedPolicy
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.control.action import action_table
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optim import PolicyOptimizer, muon_groups
from lr_gym.policies.policy import load_policy
from lr_gym.tasks import TASKS
from lr_gym.training.executor import Executor
from lr_gym.tree import leaves_of
from lr_gym.types import Hyperparams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
RUNS, STEPS = 8, 5


@pytest.fixture
def no_waiting():
    """A function that makes torch raise an error wherever the host would wait for the device."""
    yield lambda mode="error": torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.set_sync_debug_mode("default")


def trained(name: str, device: str, compile: bool, calls: int = 3):
    """Executor, state and losses after a few calls of `advance`."""
    loop = Executor(
        TASKS[name], base="muon", noise=True, dtype=torch.float64, device=device, compile=compile
    )
    state = loop.init(torch.arange(RUNS))
    ones = torch.ones(RUNS, loop.layout.num_layers, dtype=torch.float64, device=device)
    losses = []
    for call in range(calls):
        hyper = Hyperparams(ones * 0.01 / (call + 1), ones * 0.9, ones * 0.1, ones * 0.0)
        state, loss = loop.advance(state, hyper, ones.new_ones(STEPS, RUNS))
        losses.append(loss)
    return loop, state, torch.cat(losses)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    "name", ["mnist1d-mlp", "mnist1d-gru", "mnist1d-transformer", "digits-cnn", "titanic-mlp"]
)
def test_gpu_equals_cpu(name, compile):
    _, expected, losses = trained(name, "cpu", compile=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fallback would warn
        loop, state, found = trained(name, "cuda", compile)
    assert (loop._graph is not None) == compile
    torch.testing.assert_close(found.cpu(), losses, rtol=1e-6, atol=1e-9)
    for x, y in zip(leaves_of(state), leaves_of(expected), strict=True):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("compile", [False, True])
def test_a_decision_does_not_wait(no_waiting, compile):
    env = LRControlVectorEnv("mnist1d-mlp", num_envs=RUNS, device="cuda", compile=compile)
    env.reset(seed=0)
    for _ in range(2):  # compiles, captures
        env.step(np.zeros(env.action_space.shape, np.float32))
    no_waiting()
    action = env._read_actions(np.zeros(env.action_space.shape, np.float32))
    env._episodes.run_interval(env.runs, action, env._rows.step, env._rows.endings)


def test_captures_are_few_over_many_episodes():
    env = LRControlVectorEnv(
        "mnist1d-mlp", num_envs=RUNS, device="cuda", compile=True, decisions=4, horizon=18
    )
    env.reset(seed=0)
    for _ in range(23):
        env.step(np.zeros(env.action_space.shape, np.float32))
    assert len(env.inner._graph._graphs) <= 2  # one of a whole interval, one of the last


POLICIES = {
    "guarded": load_policy("builtin:default"),
    "discrete": random_policy(
        ControlSpec(action="discrete"), interval=2, outputs=len(action_table(("lr",)))
    ),
    "muon": random_policy(ControlSpec(base="muon"), interval=2),
}


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the policy has learned from nothing like")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", list(POLICIES))
def test_deployed_policy_does_not_wait(no_waiting, kind, fused, dtype):
    model = nn.Sequential(nn.Linear(8, 200), nn.ReLU(), nn.Linear(200, 200), nn.Linear(200, 4)).to(
        "cuda", dtype
    )
    optimizer = PolicyOptimizer(muon_groups(model), POLICIES[kind], total_steps=20, fused=fused)
    x = torch.randn(10, 8, device="cuda", dtype=dtype)
    for step in range(6):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 2:
            no_waiting()
        optimizer.observe(loss)
        optimizer.step()


@pytest.mark.parametrize(
    "name", ["builtin:muon", "adam-wsd", "muon-wsd", "gradient-agreement", "adaptive-upgd"]
)
def test_cell_of_the_benchmark_on_a_gpu(name):
    contestant = Baseline(name) if name in OPTIMIZERS else DeployedPolicy(name)
    losses = []
    for place in ("cpu", "cuda"):
        task = dataclasses.replace(TASKS["digits-cnn"], device=place)
        losses.append(run_cell(Cell(contestant, 1e-3, task, 0, test=True, horizon=12)).test_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("workers", [1, 2])
def test_training_on_a_gpu(tmp_path, workers):
    """Two workers are two threads that capture graphs on one device."""
    options = "--task mnist1d-mlp --num-envs 8 --timesteps 64 --decisions 4 --horizon 40"
    options += " --wandb disabled --device cuda --selection-runs 4 --guard-runs 4"
    options += f" --certificate-runs 2 --compile --workers {workers}"
    train_agent.main([*options.split(), "--output-dir", str(tmp_path)])
    assert (tmp_path / "policy.safetensors").is_file()
