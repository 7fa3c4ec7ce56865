"""The control "finish": a policy ends trainings in the environment, and as an optimizer alike."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from deployed import through_file, train_watched
from gymnasium.vector import AutoresetMode
from tiny import TINY, plain_run, tiny_data

from lr_gym.control.finish import Endings, Finish
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.reward import potential
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.policy import MLPPolicy, constant_policy
from lr_gym.tasks.initial import initial_parameters, load_parameters
from lr_gym.training.inner_loop import minibatch

HORIZON = 60
EVERY = 5
WATCHED = dataclasses.replace(
    TINY, data=lambda: tiny_data()._replace(monitor=tiny_data().selection), horizon=HORIZON
)
SETTING = {
    "controls": ("lr", "finish"),
    "decisions": HORIZON // EVERY,
    "initial_lr": (0.01, 0.01),
    "dtype": torch.float64,
    "autoreset_mode": AutoresetMode.DISABLED,
}


def make(task=WATCHED, num_envs=3, **options) -> LRControlVectorEnv:
    return LRControlVectorEnv(task, num_envs=num_envs, **{**SETTING, **options})


def act(env, finish=(), lr=0.0):
    """Actions that end the trainings of some rows."""
    action = np.zeros(env.action_space.shape, dtype=np.float32)
    action[..., 0] = lr
    action[list(finish), :, 1] = 1.0
    return action


def run_out(env, finish, at, lr=0.0):
    """Step to the end, and end some rows at a decision; return per step rewards, infos, ended."""
    env.reset(seed=0)
    trace = []
    over = np.zeros(env.num_envs, dtype=bool)
    for decision in range(env.horizon // EVERY):
        chosen = finish if decision == at else ()
        _, reward, terminated, truncated, infos = env.step(act(env, chosen, lr))
        assert not truncated.any()
        trace.append((reward, infos, terminated))
        over |= terminated
        if over.any():
            break
    return trace


def test_endings_are_many_finishes():
    steps = np.array([0, 40, 400, 950])
    endings = Endings(np.full(4, -1), np.zeros(4, dtype=np.int64))
    endings = endings.decide(np.array([False, True, True, True]), steps, 1000)
    again = endings.decide(np.ones(4, dtype=bool), steps + 7, 1000)
    assert again.decided[0] == 7
    assert [(again.decided[i], again.length[i]) for i in (1, 2, 3)] == [
        (endings.decided[i], endings.length[i]) for i in (1, 2, 3)
    ]
    grid = np.arange(1001)[:, None].repeat(4, axis=1)
    for row, step in enumerate(steps):
        finish = Finish().decide(int(step), 1000) if row else Finish()
        assert endings.end(1000)[row] == (1000 if finish.end is None else finish.end)
        expected = [finish.factor(k) for k in range(1001)]
        np.testing.assert_allclose(endings.factor(grid)[:, row], expected)


def test_a_training_that_is_ended_falls_to_zero_and_stops():
    env = make(schedule="constant")
    trace = run_out(env, finish=(1,), at=4)
    rates = np.array([infos["lr"][1, 0] for _, infos, _ in trace])
    decided = 4 * EVERY
    length = max(round(0.25 * decided), HORIZON // 10)
    steps = np.array([infos["step"][1] for _, infos, _ in trace])
    expected = 0.01 * np.clip((decided + length - steps) / length, 0.0, 1.0)
    np.testing.assert_allclose(rates, expected)
    assert steps[-1] == decided + length
    assert [bool(terminated[1]) for _, _, terminated in trace] == [False] * (len(trace) - 1) + [
        True
    ]
    assert trace[-1][2].tolist() == [False, True, False]


def test_the_other_trainings_do_not_notice():
    with_end, without = make(), make()
    ended = run_out(with_end, finish=(1,), at=4)
    without.reset(seed=0)
    for _ in ended:
        without.step(act(without))
    for row in (0, 2):
        for mine, theirs in zip(with_end.runs.inner.params, without.runs.inner.params, strict=True):
            assert torch.equal(mine[row], theirs[row])


def test_actions_after_the_end_is_decided_change_nothing():
    one, other = make(num_envs=1), make(num_envs=1)
    for env, later in ((one, 0.0), (other, 0.7)):
        env.reset(seed=0)
        for decision in range(4):
            env.step(act(env, (0,) if decision == 3 else ()))
        terminated = np.array([False])
        while not terminated.all():
            terminated = env.step(act(env, (), later))[2]
    for mine, theirs in zip(one.runs.inner.params, other.runs.inner.params, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("why", ["masked", "no split"])
def test_nothing_ends_where_no_held_out_loss_is_known(why):
    env = make(mask_monitor=1.0) if why == "masked" else make(TINY, horizon=HORIZON)
    env.reset(seed=0)
    for _ in range(HORIZON // EVERY):
        _, _, terminated, _, infos = env.step(act(env, (0, 1, 2)))
    assert terminated.all()
    assert (infos["step"] == HORIZON).all()


def test_nothing_ends_at_the_first_decision():
    """The first held-out loss is seen at the second one."""
    env = make()
    env.reset(seed=0)
    env.step(act(env, (0, 1, 2)))
    assert (env._rows.decided == -1).all()
    env.step(act(env, (0,)))
    assert env._rows.decided.tolist() == [EVERY, -1, -1]


@pytest.mark.parametrize("price", [0.0, 0.3])
def test_the_reward_is_the_decrease_minus_the_price_of_the_steps(price):
    env = make(price=price)
    env.reset(seed=0)
    before = potential(torch.from_numpy(env.evaluate("reward")), 0.0).numpy()
    trace = run_out(env, finish=(0, 1, 2), at=3)
    after = potential(torch.from_numpy(env.evaluate("reward")), 0.0).numpy()
    total = np.sum([reward for reward, _, _ in trace], axis=0)
    share = trace[-1][1]["step"] / HORIZON
    assert (share < 0.5).all()
    np.testing.assert_allclose(total, before - after - price * share, rtol=1e-9)


def test_a_state_that_is_saved_while_the_rate_falls_goes_on_bit_for_bit():
    env, twin = make(), make()
    env.reset(seed=0)
    for decision in range(5):
        env.step(act(env, (1,) if decision == 4 else ()))
    twin.load_state_dict(env.state_dict())
    mine, theirs = env.step(act(env)), twin.step(act(twin))
    assert mine[2].tolist() == [False, True, False]
    np.testing.assert_array_equal(mine[0], theirs[0])
    np.testing.assert_array_equal(mine[2], theirs[2])
    np.testing.assert_array_equal(mine[4]["lr"], theirs[4]["lr"])


def test_a_row_that_starts_again_is_not_ended():
    env = make(autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    for decision in range(HORIZON // EVERY):
        *_, terminated, _, infos = env.step(act(env, (1,) if decision == 3 else ()))
        if terminated[1]:
            break
    assert infos["final_info"]["step"][1] < HORIZON
    assert infos["step"][1] == 0
    assert env._rows.decided.tolist() == [-1, -1, -1]


def ending_policy(spec: ControlSpec, interval: int) -> MLPPolicy:
    """A policy that moves the rate at every decision, and ends a training at its half."""
    weight = torch.zeros(2, len(spec.features))
    weight[1, spec.features.index("progress")] = 1.0
    weight[0, spec.features.index("monitor_trend")] = 3.0
    policy = constant_policy(spec, interval)
    return dataclasses.replace(policy, weights=(weight,), biases=(torch.tensor([0.1, 0.55]),))


@pytest.mark.parametrize("base", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("granularity", ["global", "per_layer"])
def test_the_environment_equals_the_optimizer(base, granularity):
    features = ("progress", "monitor_known", "monitor_trend", "loss_ratio", "update_ratio")
    env = make(num_envs=1, base=base, granularity=granularity, features=features, schedule="cosine")
    policy = ending_policy(env.control_spec, EVERY)
    observation, info = env.reset(seed=7)
    seed = torch.from_numpy(info["run_seed"])
    done = False
    while not done:
        action, _ = policy.predict(torch.from_numpy(observation[0]))
        observation, _, terminated, _, info = env.step(action.numpy()[None])
        done = bool(terminated[0])
    assert HORIZON // 2 < info["step"][0] < HORIZON

    data = WATCHED.data().to("cpu", torch.float64)
    model = WATCHED.model()
    load_parameters(model, initial_parameters(model, seed, torch.float64))
    optimizer = PolicyOptimizer(
        model.named_parameters(), policy, 0.01, HORIZON, base=base, weight_decay=0.0
    )
    steps = 0
    while not optimizer.finished:
        with torch.no_grad():
            validated = WATCHED.loss(model(data.monitor.inputs), data.monitor.targets).mean()
        rows = minibatch(seed, torch.tensor([steps]), WATCHED.batch_size, 40)[0]
        loss = WATCHED.loss(model(data.gradient.inputs[rows]), data.gradient.targets[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        if steps % EVERY == 0:
            optimizer.observe_validation(validated)
        steps += 1
    assert steps == info["step"][0]
    for param, value in zip(model.parameters(), env.runs.inner.params, strict=True):
        assert (param - value[0]).norm() <= 1e-9 * value[0].norm()


def test_a_policy_that_ends_trainings_resumes_from_its_state():
    spec = ControlSpec(controls=("lr", "finish"), decisions=12)
    policy = ending_policy(spec, EVERY)
    model = torch.nn.Linear(3, 1)
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))

    def trained(optimizer, network, steps):
        for step in steps:
            loss = network(inputs).square().mean() + 0.1
            optimizer.zero_grad()
            loss.backward()
            optimizer.observe(loss)
            optimizer.observe_validation(1.0 + step / 100)
            optimizer.step()

    optimizer = PolicyOptimizer(model.named_parameters(), policy, 0.01, HORIZON)
    trained(optimizer, model, range(35))
    assert optimizer.metrics()["finish/phase"] == 1.0
    twin = torch.nn.Linear(3, 1)
    twin.load_state_dict(model.state_dict())
    resumed = PolicyOptimizer(twin.named_parameters(), policy, 0.01, HORIZON)
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    trained(optimizer, model, range(35, 38))
    trained(resumed, twin, range(35, 38))
    assert optimizer.finished == resumed.finished
    assert torch.equal(model.weight, twin.weight)


def test_a_policy_that_is_told_no_held_out_loss_does_not_wait_for_the_device():
    policy = ending_policy(ControlSpec(controls=("lr", "finish"), decisions=12), EVERY)
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.named_parameters(), policy, 0.01, HORIZON)
    train_watched(optimizer, loss_at, 20)
    assert optimizer.metrics()["finish/phase"] == 0.0
