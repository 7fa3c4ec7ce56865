"""Contract (a): the environment at B = 1 and PolicyOptimizer are the same training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lr_gym.action import CONTROLLED
from lr_gym.control import ControlSpec
from lr_gym.inner_loop import minibatch
from lr_gym.observation import DEFAULT_FEATURES
from lr_gym.optim import PolicyOptimizer
from lr_gym.policy import MLPPolicy
from lr_gym.tasks import TASKS
from lr_gym.tasks.models import initial_parameters, load_parameters
from lr_gym.vector_env import LRControlVectorEnv

HORIZON = 50


def random_policy(spec: ControlSpec, interval: int, seed: int = 0) -> MLPPolicy:
    """A policy with random weights, so that every action differs."""
    generator = torch.Generator().manual_seed(seed)
    features, hidden, outputs = len(spec.features), 8, len(spec.controls)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.7
    return MLPPolicy(
        spec=spec,
        interval=interval,
        weights=(draw(hidden, features), draw(outputs, hidden)),
        biases=(draw(hidden), draw(outputs)),
        mean=torch.zeros(features),
        std=torch.ones(features),
    )


class Recorder:
    """A policy that remembers what it saw and did."""

    def __init__(self, policy: MLPPolicy) -> None:
        self.policy, self.observations, self.actions = policy, [], []
        self.inner = policy.predict

    def __call__(self, observation, state=None):
        action, state = self.inner(observation, state)
        self.observations.append(observation.numpy().copy())
        self.actions.append(action.numpy().copy())
        return action, state


@pytest.mark.parametrize("base", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("action", ["recursive", "residual"])
@pytest.mark.parametrize("control", ["per_layer", "global"])
def test_environment_equals_optimizer(base, action, control, monkeypatch):
    env = LRControlVectorEnv(
        "mnist1d-mlp",
        num_envs=1,
        control=control,
        controls=CONTROLLED,
        action=action,
        base=base,
        schedule="cosine",
        decisions=12,  # 4 steps each, and a shorter last interval
        horizon=HORIZON,
        weight_decay=0.01,
        dtype=torch.float64,
        initial_lr=(3e-3, 3e-3),
    )
    assert env.control_spec.features == (*DEFAULT_FEATURES, "momentum", "noise")
    policy = random_policy(env.control_spec, env.inner_steps_per_decision)

    seen, acted, lrs = [], [], []
    observation, info = env.reset(seed=7)
    run_seed, done = info["run_seed"], False
    while not done:
        seen.append(observation[0])
        action_row, _ = policy.predict(torch.from_numpy(observation[0]))
        acted.append(action_row.numpy())
        before = env.runs
        observation, _, terminated, _, info = env.step(action_row.numpy()[None])
        done = terminated[0]
        lrs.append(before.hyper.lr)  # hyperparameters before each decision
        if done:
            final = list(before.inner.params)  # updated in place
    assert len(seen) == 13

    task = TASKS["mnist1d-mlp"]
    data = task.data().to("cpu", torch.float64)
    seeds = torch.from_numpy(run_seed)
    model = task.model()
    load_parameters(model, initial_parameters(model, seeds, torch.float64))
    optimizer = PolicyOptimizer(
        model.named_parameters(),
        policy,
        lr=3e-3,
        total_steps=HORIZON,
        base=base,
        weight_decay=0.01,
        seed=int(run_seed[0]),
    )
    recorder = Recorder(policy)
    monkeypatch.setattr(MLPPolicy, "predict", lambda self, o, s=None: recorder(o, s))
    recorder.inner = lambda o, s=None: (_predict(policy, o), s)
    for step in range(HORIZON):
        index = minibatch(seeds, torch.tensor([step]), task.batch_size, len(data.gradient.inputs))[0]
        loss = task.loss(model(data.gradient.inputs[index]), data.gradient.targets[index]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()

    np.testing.assert_allclose(np.stack(recorder.observations), np.stack(seen), rtol=0, atol=1e-6)  # float32
    np.testing.assert_allclose(np.stack(recorder.actions), np.stack(acted), rtol=0, atol=1e-6)
    for param, value in zip(model.parameters(), final, strict=True):
        error = (param - value[0]).norm() / value[0].norm()
        assert error <= 1e-9


def _predict(policy: MLPPolicy, observation: torch.Tensor) -> torch.Tensor:
    x = observation
    x = torch.nn.functional.linear(x, policy.weights[0], policy.biases[0]).tanh()
    return torch.nn.functional.linear(x, policy.weights[1], policy.biases[1]).clamp(-1.0, 1.0)
