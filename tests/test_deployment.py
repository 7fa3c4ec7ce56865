"""Contract (a): the environment at B = 1 and PolicyOptimizer are the same training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from lr_gym.control.action import CONTROLLED
from lr_gym.control.features import FEATURES, features_of_group
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import controlled_env
from lr_gym.envs.run_distribution import monitored
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.policy import MLPPolicy
from lr_gym.tasks import TASKS
from lr_gym.tasks.initial import initial_parameters, load_parameters
from lr_gym.training.inner_loop import minibatch
from lr_gym.updates.rules import RULES

HORIZON = 50
TASK_FEATURES = features_of_group("task")


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
        self.policy, self.spec, self.interval = policy, policy.spec, policy.interval
        self.observations, self.actions = [], []

    def to(self, device):
        return self

    def predict(self, observation, state=None):
        action, state = self.policy.predict(observation, state)
        self.observations.append(observation.numpy().copy())
        self.actions.append(action.numpy().copy())
        return action, state


@pytest.mark.parametrize("base", RULES)
@pytest.mark.parametrize("action", ["recursive", "residual"])
@pytest.mark.parametrize("granularity", ["per_layer", "global"])
@pytest.mark.parametrize(
    "controls", [CONTROLLED, ("lr",)], ids=["all", "lr"]
)  # of lr alone, torch's kernels update
@pytest.mark.parametrize(
    "features", [tuple(FEATURES), TASK_FEATURES], ids=["features", "of the task"]
)  # gradient only
def test_environment_equals_optimizer(base, action, granularity, controls, features):
    env = LRControlVectorEnv(
        "mnist1d-mlp",
        num_envs=1,
        granularity=granularity,
        controls=controls,
        action=action,
        base=base,
        schedule="cosine",
        decisions=12,  # 4 steps each, and a shorter last interval
        horizon=HORIZON,
        weight_decay=0.01,
        dtype=torch.float64,
        initial_lr=(3e-3, 3e-3),
        features=features,
        action_step=0.2,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    assert env.control_spec.gradient_only == (features is TASK_FEATURES)
    policy = random_policy(env.control_spec, env.inner_steps_per_decision)

    seen, acted = [], []
    observation, info = env.reset(seed=7)
    run_seed, done = info["run_seed"], False
    while not done:
        seen.append(observation[0])
        action_row, _ = policy.predict(torch.from_numpy(observation[0]))
        acted.append(action_row.numpy())
        observation, _, terminated, _, info = env.step(action_row.numpy()[None])
        done = terminated[0]
    assert len(seen) == 13

    task = TASKS["mnist1d-mlp"]
    data = task.data().to("cpu", torch.float64)
    seeds = torch.from_numpy(run_seed)
    model = task.model()
    load_parameters(model, initial_parameters(model, seeds, torch.float64))
    recorder = Recorder(policy)
    optimizer = PolicyOptimizer(
        model.named_parameters(),
        recorder,
        lr=3e-3,
        total_steps=HORIZON,
        base=base,
        weight_decay=0.01,
        seed=int(run_seed[0]),
        steps_per_epoch=len(data.gradient.inputs) / task.batch_size,
    )
    (part,) = monitored(seeds, len(data.monitor.inputs)).unbind()  # what this run is shown
    for step in range(HORIZON):
        with torch.no_grad():
            validated = task.loss(model(data.monitor.inputs[part]), data.monitor.targets[part])
        index = minibatch(seeds, torch.tensor([step]), task.batch_size, len(data.gradient.inputs))[
            0
        ]
        loss = task.loss(model(data.gradient.inputs[index]), data.gradient.targets[index]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        if step % env.inner_steps_per_decision == 0:  # seen at the next decision
            optimizer.observe_validation(validated.mean())

    np.testing.assert_allclose(
        np.stack(recorder.observations), np.stack(seen), rtol=0, atol=1e-6
    )  # float32
    np.testing.assert_allclose(np.stack(recorder.actions), np.stack(acted), rtol=0, atol=1e-6)
    for param, value in zip(model.parameters(), env.runs.inner.params, strict=True):
        error = (param - value[0]).norm() / value[0].norm()
        assert error <= 1e-9


def test_a_policys_own_step_and_bound_are_the_environments():
    spec = ControlSpec(action_step=0.3, action_bound=0.1)
    assert controlled_env(spec, "mnist1d-mlp", 1, 0.01).control_spec == spec
