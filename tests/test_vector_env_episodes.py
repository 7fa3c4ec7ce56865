"""Episodes: when they begin and end, what seeds and resets decide, what a step returns."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from environments import assert_same, play, random_actions, tiny
from gymnasium.vector import AutoresetMode
from tiny import TINY

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.control.action import ACTIONS, CONTROLLED, action_table
from lr_gym.control.features import FEATURES
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.updates.schedules import SCHEDULES, base_schedule


@pytest.mark.parametrize(
    ("horizon", "decisions"), [(12, 4), (13, 4), (3, 10), (1, 1), (7, 7), (10, 1)]
)
def test_decisions_cover_the_horizon_exactly(horizon, decisions):
    env = tiny(2, horizon=horizon, decisions=decisions)
    interval = max(1, horizon // decisions)
    assert env.inner_steps_per_decision == interval
    env.reset(seed=0)
    ends = [*range(interval, horizon, interval), horizon]
    for end, step in zip(ends, play(env, len(ends), random_actions(env)), strict=True):
        _, _, terminated, truncated, info = step
        final = info.get("final_info", info)
        assert final["step"].tolist() == [end, end]
        assert terminated.tolist() == [end == horizon] * 2
        assert not truncated.any()


def test_same_step_autoreset():
    """The step that ends an episode returns the first observation of the next one.

    The last observation of the ended episode is in the info.
    """
    env = tiny()
    env.reset(seed=3)
    steps = play(env, 4, random_actions(env))
    assert all("final_obs" not in step[4] for step in steps[:3])
    observation, _, terminated, _, info = steps[3]
    assert terminated.all()
    assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [True] * 3
    assert info["step"].tolist() == [0, 0, 0]
    assert info["final_info"]["step"].tolist() == [12, 12, 12]
    assert (info["run_seed"] != info["final_info"]["run_seed"]).all()

    still = tiny(autoreset_mode=AutoresetMode.DISABLED)
    still.reset(seed=3)
    last = play(still, 4, random_actions(still))[3]
    assert_same(list(info["final_obs"]), list(last[0]))
    assert_same(info["final_info"], last[4])
    after, after_info = still.reset()
    assert_same(observation, after)
    assert_same(info["run_seed"], after_info["run_seed"])


def test_disabled_autoreset_refuses_to_step_ended_runs_and_resets_by_mask():
    env = tiny(8, autoreset_mode=AutoresetMode.DISABLED, initial_lr=(1e-2, 1e6), base="sgd")
    observation, _ = env.reset(seed=3)
    actions, ended = random_actions(env), np.zeros(8, dtype=bool)
    while not ended.any():
        observation, _, ended, _, info = env.step(next(actions))
    assert not ended.all()  # a row diverged before the others were done
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(next(actions))
    after, after_info = env.reset(options={"reset_mask": ended})
    assert_same(after[~ended], observation[~ended])
    assert (after[ended] != observation[ended]).any()
    assert_same(after_info["step"], np.where(ended, 0, info["step"]))
    env.step(next(actions))


def test_step_before_reset_is_refused():
    for call in (tiny().step, tiny(render_mode="ansi").render):
        with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
            call(*([np.zeros((3, 2, 1))] if call.__name__ == "step" else []))


def test_resets_without_a_seed_go_on_and_differ():
    env = tiny()
    seeds = [env.reset(seed=seed)[1]["run_seed"].tolist() for seed in (0, None, None, 0)]
    assert seeds[0] == seeds[3]
    assert len({run for row in seeds[:3] for run in row}) == 9


def test_row_seeds_count_up_from_an_integer():
    env = tiny()
    assert_same(env.reset(seed=5), env.reset(seed=[5, 6, 7]))
    assert_same(env.reset(seed=5)[0][1:], env.reset(seed=6)[0][:2])


def test_a_seed_and_a_mask_seed_those_runs_only():
    env = tiny()
    env.reset(seed=0)
    play(env, 2, random_actions(env))
    observation, info = env.reset(seed=7, options={"reset_mask": [True, False, False]})
    assert_same(info["step"] == 0, [True, False, False])
    fresh, fresh_info = tiny().reset(seed=7)
    assert_same(observation[0], fresh[0])
    assert info["run_seed"][0] == fresh_info["run_seed"][0]
    assert_same(env.reset(options={"reset_mask": [False] * 3})[0], observation)
    assert_same(
        tiny().reset(seed=7, options={"reset_mask": [True, False, False]})[0], fresh
    )  # the first starts all


def test_initial_lr_may_be_given_for_one_reset():
    env = tiny(initial_lr=(1e-4, 1e-2))
    drawn = env.reset(seed=0)[1]["lr"]
    given = env.reset(seed=0, options={"initial_lr": [0.1, 0.2, 0.3]})[1]
    np.testing.assert_allclose(given["lr"][:, 0], [0.1, 0.2, 0.3], rtol=1e-6)
    assert_same(given["run_seed"], env.reset(seed=0)[1]["run_seed"])
    assert_same(env.reset(seed=0)[1]["lr"], drawn)


def test_passes_are_known_or_masked():
    features = ("passes", "passes_known", "horizon", "model_size")
    seen = [tiny(features=features, mask_passes=mask).reset(seed=0)[0][:, 0] for mask in (0.0, 1.0)]
    assert (seen[0][:, :2] != 0).all()
    assert (seen[1][:, :2] == 0).all()
    assert_same(seen[0][:, 2:], seen[1][:, 2:])


def test_initial_lr_is_log_uniform_in_its_range():
    env = tiny(500, initial_lr=(1e-4, 1e-2))
    _, info = env.reset(seed=0)
    logs = np.log10(info["lr"])
    assert (logs[:, 0] == logs[:, 1]).all()
    assert logs.min() >= -4.001
    assert logs.max() <= -1.999
    assert abs(logs.mean() + 3) < 0.1
    assert abs(logs.std() - 2 / 12**0.5) < 0.05


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reported_lr_is_initial_lr_times_schedule_times_actions(schedule):
    env = tiny(initial_lr=(1e-2, 1e-2), schedule=schedule, dtype=torch.float64)
    env.reset(seed=0)
    multiplier, actions = np.ones((3, 2)), random_actions(env)
    for decision in range(1, 5):
        action = next(actions)
        multiplier = multiplier * np.exp(action[..., 0].astype(float) * math.log(4))
        info = env.step(action)[4]
        factor = float(base_schedule(schedule)(decision / 4))
        np.testing.assert_allclose(
            info.get("final_info", info)["lr"], 1e-2 * multiplier * factor, rtol=1e-6
        )


def test_discrete_action_is_its_row_of_the_table():
    pairs = (("discrete", "recursive"),)
    for discrete, continuous in pairs:
        a, b = (
            tiny(action=discrete, controls=CONTROLLED),
            tiny(action=continuous, controls=CONTROLLED),
        )
        a.reset(seed=0), b.reset(seed=0)
        for index, _ in zip(random_actions(a), range(4), strict=False):
            scale = ACTIONS[discrete].step / ACTIONS[continuous].step
            discretely, continuously = (
                a.step(index),
                b.step(action_table(CONTROLLED).numpy()[index] * scale),
            )
            np.testing.assert_allclose(discretely[1], continuously[1], rtol=1e-6)
            np.testing.assert_allclose(discretely[4]["lr"], continuously[4]["lr"], rtol=1e-6)


def test_returned_arrays_are_the_callers_own():
    env = tiny()
    env.reset(seed=0)
    actions = random_actions(env)
    first = env.step(next(actions))
    before = [
        np.array(first[0]),
        np.array(first[1]),
        {key: np.array(value) for key, value in first[4].items()},
    ]
    env.step(next(actions))
    assert_same([first[0], first[1], first[4]], before)
    first[0][:] = 7
    first[4]["step"][:] = 7
    assert env.state_dict()["host.step"].tolist() == [6, 6, 6]


@pytest.mark.parametrize("hidden", ["loss", "progress"])
@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_masks_hide_a_fraction_of_the_runs_for_whole_episodes(hidden, fraction):
    env = tiny(300, features=tuple(FEATURES), **{f"mask_{hidden}": fraction})
    shown = [env.reset(seed=0)[0], *(step[0] for step in play(env, 3, random_actions(env)))]
    column = tuple(FEATURES).index(f"{hidden}_known")
    known = np.stack([observation[:, 0, column] for observation in shown])
    assert (known == known[0]).all()
    assert abs(1 - known.mean() - fraction) <= (0.1 if 0 < fraction < 1 else 0)
    for i, (name, feature) in enumerate(FEATURES.items()):
        if feature.needs == hidden:
            assert not shown[-1][known[0] == 0, :, i].any(), name
            assert shown[-1][known[0] == 1, :, i].all(), name


def test_masks_do_not_change_the_training():
    plain, masked = tiny(), tiny(mask_loss=1.0, mask_progress=1.0)
    plain.reset(seed=0), masked.reset(seed=0)
    for action, _ in zip(random_actions(plain), range(3), strict=False):
        assert_same(plain.step(action)[4]["train_loss"], masked.step(action)[4]["train_loss"])


def test_what_a_step_returned_stays_when_the_runs_start_anew():
    env = LRControlVectorEnv(TINY, num_envs=2, dtype=torch.float64, decisions=3)
    env.reset(seed=0)
    observation, rewards, _, _, infos = env.step(np.zeros(env.action_space.shape))
    kept = [observation.copy(), rewards.copy(), *(value.copy() for value in infos.values())]
    env.reset(seed=9)
    for before, now in zip(kept, [observation, rewards, *infos.values()], strict=True):
        np.testing.assert_array_equal(before, now)
