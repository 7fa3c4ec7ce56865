"""The held-out loss in the environment: which examples, which runs, and when it is shown."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny import TINY, tiny_data

from lr_gym.control.features import features_of_group
from lr_gym.envs.run_distribution import MONITORED, monitored
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import Split
from lr_gym.training.executor import Executor

FEATURES = features_of_group("monitor")


def held_out_task(examples: int = 300):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(examples, 5, generator=generator)
    targets = (inputs @ torch.randn(5, 3, generator=generator)).argmax(1)
    data = tiny_data()._replace(monitor=Split(inputs, targets))
    return dataclasses.replace(TINY, data=lambda: data)


def make(task=None, num_envs=4, **options):
    options = {"features": FEATURES, "decisions": 6, "dtype": torch.float64, **options}
    return LRControlVectorEnv(task or held_out_task(), num_envs=num_envs, **options)


def counted(env, monkeypatch) -> list[str]:
    """The splits that are evaluated from here on."""
    splits = []
    evaluate = env.inner.evaluate

    def noted(state, split, *weights):
        splits.append(split)
        return evaluate(state, split, *weights)

    monkeypatch.setattr(env.inner, "evaluate", noted)
    return splits


def steps(env, count):
    """Observations (count + 1, B, L, F) of trainings under changing actions."""
    seen = [env.reset(seed=3)[0]]
    for k in range(count):
        action = np.full(env.action_space.shape, 0.3 * (-1) ** k, dtype=np.float32)
        seen.append(env.step(action)[0])
    return np.stack(seen)


def test_the_loss_is_shown_one_decision_later():
    env = make()
    env.reset(seed=3)
    task = held_out_task()
    losses = []
    for _ in range(4):
        shown = monitored(env.runs.inner.run_seed, 300)
        row = []
        for run in range(4):
            part = Split(*(tensor[shown[run]] for tensor in task.data().monitor))
            own = dataclasses.replace(task, data=lambda part=part: tiny_data()._replace(test=part))
            loop = Executor(own, dtype=torch.float64)
            row.append(loop.evaluate(env.runs.inner, "test")[run].item())
        losses.append(row)
        observation = env.step(np.full(env.action_space.shape, 0.5, dtype=np.float32))[0]
        known = observation[..., FEATURES.index("monitor_known")]
        assert known.all()
        for run in range(4):
            logs = [math.log(loss[run]) for loss in losses]
            short, long, best = logs[0], logs[0], logs[0]
            for log in logs[1:]:
                short, long = 0.5 * short + 0.5 * log, 0.9 * long + 0.1 * log
                best = min(best, short)
            got = dict(zip(FEATURES, observation[run, 0].tolist(), strict=True))
            assert got["monitor_best"] == pytest.approx(math.tanh(2 * (short - best)), abs=1e-6)
            assert got["monitor_trend"] == pytest.approx(math.tanh(4 * (short - long)), abs=1e-6)


def test_nothing_is_known_at_the_first_decision():
    seen = steps(make(), 2)
    assert not seen[0].any()
    assert seen[1].any()


def test_nothing_is_evaluated_where_no_feature_needs_it(monkeypatch):
    env = make(features=("loss_ratio",))
    splits = counted(env, monkeypatch)
    plain = steps(env, 3)
    assert set(splits) == {"reward"}
    assert np.array_equal(plain, steps(make(TINY, features=("loss_ratio",)), 3))
    watching = make()
    splits = counted(watching, monkeypatch)
    steps(watching, 3)
    assert splits.count("monitor") == 4
    assert "selection" not in splits
    assert "test" not in splits


def test_a_task_without_monitor_split_shows_no_held_out_loss(monkeypatch):
    env = make(TINY)
    splits = counted(env, monkeypatch)
    assert not steps(env, 3).any()
    assert set(splits) == {"reward"}


def test_a_share_of_the_runs_is_never_shown_it():
    assert not steps(make(mask_monitor=1.0), 3).any()
    some = steps(make(num_envs=64, mask_monitor=0.25), 2)[1:]
    known = some[..., 0, FEATURES.index("monitor_known")]
    assert np.array_equal(known[0], known[1])
    assert 0.55 < known[0].mean() < 0.95
    assert not some[:, known[0] == 0].any()
    masks = {"mask_loss": 0.5, "mask_progress": 0.5, "mask_passes": 0.5}
    names = ("loss_known", "progress_known", "epoch_known")
    plain, masked = (
        steps(make(num_envs=32, features=names, mask_monitor=share, **masks), 1)
        for share in (0.0, 1.0)
    )
    assert np.array_equal(plain, masked)  # other masks are drawn as before
    with pytest.raises(ValueError, match="mask_monitor"):
        make(mask_monitor=1.5)


def test_the_held_out_loss_changes_no_training():
    """Evaluating leaves batch norms, random numbers and rewards alone."""
    watching, plain = make(), make(features=("loss_ratio",))
    for env in (watching, plain):
        env.reset(seed=3)
    for _ in range(4):
        results = [env.step(np.full(env.action_space.shape, 0.4)) for env in (watching, plain)]
        assert np.array_equal(results[0][1], results[1][1])
        assert np.array_equal(results[0][4]["train_loss"], results[1][4]["train_loss"])


def test_a_run_is_shown_a_part_of_the_split():
    seeds = torch.arange(400)
    shown = monitored(seeds, 20_000)
    sizes = shown.sum(1).double()
    low, high = MONITORED
    assert low <= sizes.min() < 1.1 * low
    assert 0.9 * high < sizes.max() <= high
    assert sizes.log().mean().item() == pytest.approx(math.log(low * high) / 2, abs=0.2)
    assert torch.equal(shown[7], monitored(seeds[7:8], 20_000)[0])
    # neighbours, from the last example on to the first
    begins = shown & ~shown.roll(1, dims=1)
    assert (begins.sum(1) == 1).all()
    places = begins.double().argmax(1).double() / 20_000
    assert 0.4 < places.mean() < 0.6
    assert monitored(seeds, 60).all()  # a split that is smaller is shown whole


@pytest.mark.parametrize("chunk", [4096, 70])
def test_weighted_evaluations_are_means_of_parts(chunk):
    task = dataclasses.replace(held_out_task(), chunk=chunk)
    loop = Executor(task, dtype=torch.float64)
    state = loop.init(torch.tensor([1, 2]))
    even = torch.full((2, 300), 1 / 300, dtype=torch.float64)
    torch.testing.assert_close(
        loop.evaluate(state, "monitor", even), loop.evaluate(state, "monitor")
    )
    one = torch.zeros(2, 300, dtype=torch.float64)
    one[0, 299] = one[1, 5] = 1.0
    got = loop.evaluate(state, "monitor", one)
    for run, row in ((0, 299), (1, 5)):
        part = Split(*(tensor[row : row + 1] for tensor in task.data().monitor))
        own = dataclasses.replace(task, data=lambda part=part: tiny_data()._replace(test=part))
        expected = Executor(own, dtype=torch.float64).evaluate(state, "test")[run]
        torch.testing.assert_close(got[run], expected)


def test_a_row_is_what_it_is_alone():
    together = steps(make(), 4)
    env = make(num_envs=1)
    seen = [env.reset(seed=5)[0]]
    seen += [env.step(np.full(env.action_space.shape, 0.3 * (-1) ** k))[0] for k in range(4)]
    np.testing.assert_allclose(together[:, 2:3], np.stack(seen), atol=1e-6)


def test_a_saved_environment_goes_on_with_its_held_out_losses():
    env, other = make(), make()
    steps(env, 3)
    other.load_state_dict(env.state_dict())
    action = np.full(env.action_space.shape, -0.2)
    for _ in range(2):
        assert np.array_equal(env.step(action)[0], other.step(action)[0])
