"""Restarts: the native vector environment behaves as Gymnasium's own, and fits its wrappers."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest
from environments import IDS, SHORT, assert_same, play, random_actions, tiny
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers
from tiny import TINY

from lr_gym.envs.env import LRControlEnv
from lr_gym.envs.vector_env import LRControlVectorEnv

# Half of these rows diverge, at different steps, so that restarts are not in step.
WILD = {"base": "sgd", "initial_lr": (1e-2, 1e6)}
RUNS = 6


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_restarts_equal_those_of_the_sync_vector_env(mode):
    make = functools.partial(LRControlEnv, TINY, **SHORT, **WILD)
    theirs = SyncVectorEnv([make] * RUNS, autoreset_mode=mode)
    ours = tiny(RUNS, autoreset_mode=mode, **WILD)
    flat = lambda observation: observation.reshape(RUNS, -1)
    assert_same(theirs.reset(seed=2)[0], flat(ours.reset(seed=2)[0]))
    ended = []
    for action, _ in zip(random_actions(theirs), range(14), strict=False):
        expected = theirs.step(action)
        got = ours.step(action.reshape(ours.action_space.shape))
        assert_same(expected[0], flat(got[0]))
        for part in range(1, 4):
            assert_same(expected[part], got[part])
        for key in ("step", "run_seed", "train_loss", "reward_loss", "diverged", "divergence"):
            assert_same(expected[4][key], got[4][key])
        ended.append(got[2])
    ends = np.array(ended).sum(0)
    assert ends.min() >= 2  # every row was restarted
    assert ends.max() > ends.min()


def test_next_step_restarts_one_step_later_without_a_reward():
    env = tiny(autoreset_mode="NextStep", render_mode="ansi")
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    same = tiny()
    observation, _ = env.reset(seed=3)
    same.reset(seed=3)
    actions = [action for action, _ in zip(random_actions(env), range(6), strict=False)]
    steps = play(env, 6, iter(actions))
    others = play(same, 5, iter([*actions[:4], actions[5]]))
    assert [step[2].tolist() for step in steps] == [[i == 3] * 3 for i in range(6)]
    assert_same(steps[3][0], np.stack(others[3][4]["final_obs"]))
    assert all(key not in steps[3][4] for key in ("final_obs", "final_info"))
    assert steps[3][4]["step"].tolist() == [12] * 3
    assert_same(steps[4][0], others[3][0])
    assert steps[4][1].tolist() == [0.0] * 3
    assert steps[4][4]["step"].tolist() == [0] * 3
    assert_same(steps[5][:2], others[4][:2])
    assert observation.shape == steps[5][0].shape
    assert all(frame.startswith("step 3/12\n") for frame in env.render())


def test_waiting_rows_survive_a_checkpoint():
    env = tiny(autoreset_mode=AutoresetMode.NEXT_STEP, **WILD)
    env.reset(seed=2)
    actions = [action for action, _ in zip(random_actions(env), range(12), strict=False)]
    steps = play(env, 12, iter(actions))
    first = next(i for i, step in enumerate(steps) if step[2].any())
    again, other = (tiny(autoreset_mode=AutoresetMode.NEXT_STEP, **WILD) for _ in range(2))
    again.reset(seed=2)
    play(again, first + 1, iter(actions))
    other.load_state_dict(again.state_dict())
    assert_same(play(other, 11 - first, iter(actions[first + 1 :])), steps[first + 1 :])


# Gymnasium's wrappers

ALL_MODES = tuple(AutoresetMode)
NO_SAME_STEP = (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)
DOUBLED = functools.partial(
    wrappers.TransformObservation, func=lambda observation: 2.0 * observation
)
WRAPPERS = [
    (wrappers.NormalizeObservation, (AutoresetMode.NEXT_STEP,)),
    (wrappers.FlattenObservation, NO_SAME_STEP),
    (functools.partial(wrappers.DtypeObservation, dtype=np.float32), NO_SAME_STEP),
    (DOUBLED, NO_SAME_STEP),
    (wrappers.NormalizeReward, ALL_MODES),
    (functools.partial(wrappers.ClipReward, min_reward=-0.1, max_reward=0.1), ALL_MODES),
    (wrappers.ClipAction, ALL_MODES),
    (
        functools.partial(
            wrappers.RescaleAction, min_action=np.float32(-2.0), max_action=np.float32(2.0)
        ),
        ALL_MODES,
    ),
    (wrappers.RecordEpisodeStatistics, ALL_MODES),
    (wrappers.DictInfoToList, ALL_MODES),
]
NAMES = [getattr(wrap, "func", wrap).__name__ for wrap, _ in WRAPPERS]


@pytest.mark.parametrize(("wrap", "modes"), WRAPPERS, ids=NAMES)
def test_wrappers_of_gymnasium_play_episodes_in_the_modes_that_they_accept(wrap, modes):
    for mode in AutoresetMode:
        plain = tiny(autoreset_mode=mode, **WILD)
        if mode not in modes:
            with pytest.raises(ValueError, match="autoreset_mode"):
                wrap(plain)
            continue
        env = wrap(plain)
        env.reset(seed=2)
        ends = np.zeros(3, dtype=np.int64)
        for action, _ in zip(random_actions(plain), range(10), strict=False):
            observation, reward, terminated, truncated, _ = env.step(action)
            assert np.isfinite(observation).all()
            assert np.isfinite(reward).all()
            ended = np.logical_or(terminated, truncated)
            ends += np.asarray(ended)
            if mode == AutoresetMode.DISABLED and ended.any():
                env.reset(options={"reset_mask": np.asarray(ended)})
        assert ends.min() >= 1


@pytest.mark.parametrize("env_id", ["lr_gym/LRControl-v0", *IDS[:1]])
def test_make_vec_restarts_as_gymnasium_does_by_default(env_id):
    options = {"task": "quadratic"} if env_id.endswith("LRControl-v0") else {}
    env = gymnasium.make_vec(env_id, num_envs=3, **options)
    assert isinstance(env.unwrapped, LRControlVectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    for wrap in (wrappers.NormalizeObservation, wrappers.RecordEpisodeStatistics):
        env = wrap(env)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[0].shape == env.observation_space.shape
    assert LRControlVectorEnv(TINY).metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
