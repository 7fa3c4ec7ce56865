"""An environment is saved, copied and continued bit for bit."""

from __future__ import annotations

import copy
import itertools
import pickle

import gymnasium
import pytest
import torch
from environments import assert_same, play, random_actions, tiny

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.control.action import CONTROLLED
from lr_gym.envs.vector_env import LRControlVectorEnv


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_state_continues_bit_for_bit(base, tmp_path):
    options = {
        "base": base,
        "controls": CONTROLLED,
        "initial_lr": (1e-2, 1e4),
        "mask_loss": 0.5,
    }
    env = tiny(8, **options)
    env.reset(seed=3)
    actions = list(itertools.islice(random_actions(env), 12))
    play(env, 5, iter(actions))
    assert (
        len(set(env.state_dict()["host.step"].tolist())) > 1
    )  # rows that diverged are out of step
    torch.save(env.state_dict(), tmp_path / "state.pt")
    expected = play(env, 7, iter(actions[5:]))
    again = tiny(8, **options)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(play(again, 7, iter(actions[5:])), expected)
    assert_same(again.reset(), env.reset())


def test_state_keeps_the_initial_lr_that_a_reset_named():
    env, again = tiny(), tiny()
    env.reset(seed=0, options={"initial_lr": [1e-3] * env.num_envs})
    again.load_state_dict(env.state_dict())
    actions = list(itertools.islice(random_actions(env), 40))
    assert_same(play(env, 40, iter(actions)), play(again, 40, iter(actions)))  # through autoresets


@pytest.mark.parametrize(
    "other",
    [{"num_envs": 4}, {"base": "sgd"}, {"controls": ("lr", "momentum")}, {"average": 1.0}],
    ids=str,
)
def test_a_state_of_other_options_is_refused(other):
    env = tiny()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"other options.*(runs|host)\."):
        tiny(**other).load_state_dict(env.state_dict())


def test_no_state_before_the_first_reset():
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        tiny().state_dict()


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_go_on_alike(how):
    copied = copy.deepcopy if how == "deepcopy" else lambda env: pickle.loads(pickle.dumps(env))
    env = LRControlVectorEnv("quadratic", num_envs=3, horizon=20)
    env.reset(seed=0)
    play(env, 2, random_actions(env))
    assert_same(play(copied(env), 3, random_actions(env)), play(env, 3, random_actions(env)))


def test_state_is_a_copy():
    env = tiny()
    env.reset(seed=0)
    state = env.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    play(env, 2, random_actions(env))
    assert_same(state, before)
    env.load_state_dict(state)
    play(env, 2, random_actions(env))
    assert_same(state, before)
