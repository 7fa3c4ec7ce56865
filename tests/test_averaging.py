"""Averaged weights: the formula, the environment's rewards, and `PolicyOptimizer.eval`."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from deployed import acting, constant, spec_of, through_file, train
from gymnasium.vector import AutoresetMode
from tiny import TINY, plain_run, random_policy, tiny_task
from torch import nn

from lr_gym.benchmark.contestants import DeployedPolicy, recipe_of
from lr_gym.benchmark.recipes import TrainingLength
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.policy import save_policy
from lr_gym.updates.averaging import snapshot_weight

POWER = 4.0
HORIZON = 12


def naive_average(snapshots, power=POWER):
    """Average of tensors, oldest first, with the weights that unrolling the recursion gives."""
    total = len(snapshots)
    weights = [
        snapshot_weight(power, t)
        * np.prod([1 - snapshot_weight(power, u) for u in range(t + 1, total + 1)])
        for t in range(1, total + 1)
    ]
    assert sum(weights) == pytest.approx(1.0)
    return sum(w * snapshot.double() for w, snapshot in zip(weights, snapshots, strict=True))


def make_env(average, task=TINY, runs=2, **options):
    options = {"decisions": 5, "schedule": "constant", "initial_lr": (0.03, 0.1), **options}
    return LRControlVectorEnv(
        task, num_envs=runs, average=average, autoreset_mode=AutoresetMode.DISABLED, **options
    )


def make_optimizer(model, **options):
    policy = acting(average=POWER, controls=("lr",))
    return PolicyOptimizer(
        model.named_parameters(), policy, **{"lr": 0.03, "total_steps": HORIZON, **options}
    )


def test_power_0_is_the_mean_and_a_large_one_the_last():
    snapshots = [torch.tensor([float(x)]) for x in (3, 1, 4, 1, 5)]
    assert naive_average(snapshots, 0.0).item() == pytest.approx(2.8)
    assert naive_average(snapshots, 1e9).item() == pytest.approx(5.0, abs=1e-6)
    assert snapshot_weight(POWER, 1) == 1.0


def test_the_environment_is_judged_by_the_mean_of_its_snapshots():
    """A shorter last interval counts as one, and averaging does not change the training."""
    env, plain = make_env(POWER), make_env(None)
    still = np.zeros((2, env.num_layers, 1))
    first = [env.reset(seed=[3, 4])[0], plain.reset(seed=[3, 4])[0]]
    assert np.array_equal(*first)
    assert np.array_equal(env.evaluate("reward"), plain.evaluate("reward"))
    snapshots, rewards = [], []
    for _ in range(6):
        observation, reward, *_, info = env.step(still)
        twin, plain_reward, *_ = plain.step(still)
        assert np.array_equal(observation, twin)
        snapshots.append([p.clone() for p in plain.runs.inner.params])
        averages = tuple(naive_average(list(each)).float() for each in zip(*snapshots, strict=True))
        expected = plain.inner.evaluate(plain.runs.inner._replace(params=averages), "selection")
        torch.testing.assert_close(
            torch.from_numpy(env.evaluate("selection")).float(), expected, rtol=1e-5, atol=0
        )
        assert np.array_equal(info["reward_loss"], env.evaluate("reward"))
        rewards.append(reward - plain_reward)
    assert np.abs(rewards).max() > 1e-4
    assert int(info["step"][0]) == HORIZON


def test_a_restarted_run_has_an_average_of_its_own():
    env, alone = make_env(POWER), make_env(POWER, runs=1)
    still = np.zeros((2, env.num_layers, 1))
    env.reset(seed=[3, 4])
    for _ in range(4):
        env.step(still)
    env.reset(options={"reset_mask": np.array([True, False])})
    alone.reset(seed=[3])
    alone.reset()  # the next episode of the row
    env.step(still)
    alone.step(still[:1])
    np.testing.assert_allclose(
        env.evaluate("selection")[:1], alone.evaluate("selection"), rtol=1e-6
    )


def test_the_environment_goes_on_with_its_average():
    env, other = make_env(POWER), make_env(POWER)
    still = np.zeros((2, env.num_layers, 1))
    env.reset(seed=[3, 4])
    env.step(still)
    other.load_state_dict(env.state_dict())
    for _ in range(2):
        env.step(still)
        other.step(still)
    assert np.array_equal(env.evaluate("selection"), other.evaluate("selection"))


def test_running_statistics_are_averaged_too():
    """Integers, which count batches, are taken from the last snapshot."""
    env = make_env(
        POWER, tiny_task(lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    )
    still = np.zeros((2, env.num_layers, 1))
    env.reset(seed=[3, 4])
    means = []
    for _ in range(3):
        env.step(still)
        means.append(env.runs.inner.buffers[0].clone())
    _, (mean, _, count) = env.runs.average
    torch.testing.assert_close(mean.double(), naive_average(means), rtol=1e-5, atol=1e-7)
    assert torch.equal(count, env.runs.inner.buffers[2])


@pytest.mark.parametrize("decisions", [4, 5])
def test_the_optimizer_shows_what_the_environment_is_judged_by(decisions):
    spec = ControlSpec(decisions=decisions, schedule="constant", average=POWER)
    policy = random_policy(spec, interval=3)
    env = make_env(POWER, runs=1, decisions=decisions, initial_lr=(0.03, 0.03), dtype=torch.float64)
    observation, info = env.reset(seed=7)
    done = False
    while not done:
        action = policy.predict(torch.from_numpy(observation[0]))[0]
        observation, _, terminated, *_ = env.step(action.numpy()[None])
        done = terminated[0]
    model, loss_at = plain_run(TINY, int(info["run_seed"][0]), torch.float64)
    optimizer = PolicyOptimizer(
        model.named_parameters(),
        policy,
        lr=0.03,
        total_steps=HORIZON,
        steps_per_epoch=40 / 6,
        weight_decay=0.0,
    )
    train(optimizer, model, loss_at, range(HORIZON))
    trained = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    for param, average, last in zip(model.parameters(), env.runs.average[0], trained, strict=True):
        torch.testing.assert_close(param, average[0], rtol=1e-9, atol=1e-12)
        assert not torch.equal(param, last)


def test_eval_and_train_go_there_and_back_bit_for_bit():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    twin = copy.deepcopy(model)
    optimizer = make_optimizer(model)
    trace = train(optimizer, model, loss_at, range(5))
    optimizer.eval()
    optimizer.eval()  # a second call changes nothing
    averages = [p.detach().clone() for p in model.parameters()]
    assert not all(torch.equal(p, q) for p, q in zip(averages, trace[-1], strict=True))
    with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
        optimizer.step()
    other = make_optimizer(
        twin
    )  # what is saved while the averages are shown goes on from the weights that are trained
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(through_file(optimizer.state_dict()))
    for each, module in ((optimizer, model), (other, twin)):
        each.train()
        each.train()
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), trace[-1], strict=True))


def test_nothing_is_done_or_seen_while_the_averages_are_shown():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make_optimizer(model)
    train(optimizer, model, loss_at, range(5))
    optimizer.eval()
    before = optimizer.state_dict()
    calls = []
    for act in (lambda: optimizer.step(lambda: calls.append(1)), lambda: optimizer.observe(1e9)):
        with pytest.raises(RuntimeError, match=r"optimizer\.train\(\)"):
            act()
    assert not calls
    after = optimizer.state_dict()
    for index, state in before["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in state.items())


@pytest.mark.filterwarnings("ignore:PolicyOptimizer. the state that was loaded was saved")
def test_any_policy_leaves_the_averages_that_another_has_shown():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make_optimizer(model)
    trace = train(optimizer, model, loss_at, range(5))
    optimizer.eval()
    other = PolicyOptimizer(
        model.named_parameters(), acting(controls=("lr",)), lr=0.03, total_steps=HORIZON
    )
    other.load_state_dict(through_file(optimizer.state_dict()))
    other.train()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trace[-1], strict=True))
    train(other, model, loss_at, range(5, 7))


def test_a_layer_frozen_in_mid_training_is_averaged_as_it_is():
    """Otherwise its last average would be shown for the rest of the training."""
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make_optimizer(model, total_steps=400)
    train(optimizer, model, loss_at, range(10))
    first = next(model.parameters())
    first.requires_grad_(False)
    first.fill_(0.123)
    train(optimizer, model, loss_at, range(10, 400))
    optimizer.eval()
    torch.testing.assert_close(first, torch.full_like(first, 0.123), rtol=0.02, atol=0)


def test_a_saved_average_goes_on():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = make_optimizer(model)
    train(optimizer, model, loss_at, range(5))
    twin, twin_loss_at = plain_run(TINY, 1, torch.float32)
    twin.load_state_dict(model.state_dict())
    other = make_optimizer(twin)
    other.load_state_dict(through_file(optimizer.state_dict()))
    for each, module, loss in ((optimizer, model, loss_at), (other, twin, twin_loss_at)):
        train(each, module, loss, range(5, HORIZON))
        each.eval()
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_half_precision_is_averaged_in_float32_through_a_file_too():
    model = nn.Linear(3, 2).bfloat16()
    optimizer = make_optimizer(model)
    for _ in range(6):
        model(torch.ones(4, 3, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
    for _ in range(2):
        average = optimizer.state[model.weight]["average"]
        assert average.dtype == torch.float32
        assert not torch.equal(average, average.bfloat16().float())
        optimizer.load_state_dict(through_file(optimizer.state_dict()))


def test_a_policy_that_averages_nothing_leaves_the_weights_alone():
    model, loss_at = plain_run(TINY, 1, torch.float32)
    optimizer = PolicyOptimizer(model.named_parameters(), constant(), lr=0.03)
    assert not optimizer.averages
    train(optimizer, model, loss_at, range(3))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    train(optimizer, model, loss_at, range(3, 5))
    assert all("average" not in state for state in optimizer.state.values())


def test_the_benchmark_judges_the_average(tmp_path):
    losses = []
    for average in (None, POWER):
        file = tmp_path / f"{average}.safetensors"
        save_policy(dataclasses.replace(constant(average=average), interval=2), file)
        outcome = run_cell(
            Cell(DeployedPolicy(str(file)), 0.03, "mnist1d-mlp", 0, test=True, horizon=40)
        )
        assert outcome.error is None
        losses.append(outcome.test_loss)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("schedule", "features", "endless"), [
    ("constant", ("peak_lr", "first_loss", "steps", "epoch_known"), True),
    ("wsd", ("peak_lr", "steps"), False),
    ("constant", ("peak_lr", "horizon"), False),
    ("constant", ("peak_lr", "passes"), False),
    ("constant", ("peak_lr", "progress_known"), False),
])  # fmt: skip
def test_the_benchmark_tells_the_end_to_those_who_ask(tmp_path, schedule, features, endless):
    """Otherwise it would measure another policy than a script without total_steps gets."""
    spec = ControlSpec(schedule=schedule, features=features, average=POWER)
    assert spec.endless == endless
    file = tmp_path / "policy.safetensors"
    save_policy(random_policy(spec), file)
    recipe = recipe_of(DeployedPolicy(str(file)))
    optimizer = recipe.make(nn.Linear(3, 2), 0.03, TrainingLength(40, 10.0))
    assert (optimizer._settings.total_steps is None) == endless


def test_specs_know_averages():
    spec = spec_of(average=16)
    assert ControlSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ValueError, match="average"):
        spec_of(average=-1.0)
