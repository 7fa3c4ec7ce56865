"""The environments pass the checks of Gymnasium and SB3; spaces, pictures, wrong options."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from environments import IDS, OPTIONS, SHORT, assert_same, play, random_actions, run_python, tiny
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny import TINY

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.control.action import ACTIONS, action_table
from lr_gym.control.features import FEATURES
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.env import LRControlEnv
from lr_gym.envs.spaces import ActionReader
from lr_gym.envs.vector_env import LRControlVectorEnv


@pytest.mark.parametrize("env_id", IDS)
def test_registered_environment_passes_both_checks(env_id):
    env = gymnasium.make(env_id)
    check_env(env.unwrapped)
    sb3_check_env(env.unwrapped)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_pass_both_checks(options):
    env = LRControlEnv(TINY, **{**SHORT, **options})
    env.spec = gymnasium.envs.registration.EnvSpec(
        "Tiny-v0",
        entry_point=LRControlEnv,
        kwargs={"task": TINY, **SHORT, **options},
        disable_env_checker=True,
    )
    check_env(env)
    sb3_check_env(env, skip_render_check=False)


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec_is_natively_batched(env_id):
    env = gymnasium.make_vec(env_id, num_envs=3, horizon=12, decisions=4)
    assert isinstance(env.unwrapped, LRControlVectorEnv)
    assert env.num_envs == 3
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)


def test_module_prefix_makes_the_environment_in_a_fresh_process():
    code = f"import gymnasium; print(gymnasium.make('lr_gym:{IDS[0]}').observation_space.shape)"
    assert run_python(code).strip().startswith("(")


def test_sync_vector_env_of_single_environments_equals_the_native_batch():
    single = gymnasium.make_vec(
        IDS[0],
        2,
        "sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        horizon=12,
        decisions=4,
    )
    native = gymnasium.make_vec(
        IDS[0], 2, autoreset_mode=AutoresetMode.SAME_STEP, horizon=12, decisions=4
    )
    observations = [env.reset(seed=[5, 9])[0].reshape(2, -1) for env in (single, native)]
    assert_same(*observations)
    for actions, _ in zip(random_actions(native), range(3), strict=False):
        steps = [env.step(actions.reshape(env.action_space.shape)) for env in (single, native)]
        for part in range(1, 4):
            assert_same(steps[0][part], steps[1][part])
        assert_same(steps[0][0].reshape(2, -1), steps[1][0].reshape(2, -1))


def test_vector_wrapper_sees_whole_episodes():
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(tiny())
    env.reset(seed=0)
    steps = play(env, 4, random_actions(env))
    returns = sum(step[1] for step in steps)
    np.testing.assert_allclose(steps[-1][4]["episode"]["r"], returns, rtol=1e-6)
    assert steps[-1][4]["episode"]["l"].tolist() == [4, 4, 4]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_spaces_are_what_the_options_say(options):
    env = tiny(**options)
    controls = options.get("controls", ("lr",))
    layers = 1 if options.get("granularity") == "global" else 2
    features = len(options.get("features", env.control_spec.features))
    assert env.observation_space.shape == (3, layers, features)
    assert set(env.control_spec.features) <= set(FEATURES)
    if ACTIONS[options.get("action", "recursive")].discrete:
        assert env.action_space.shape == (3, layers)
        assert (env.single_action_space.nvec == len(action_table(controls))).all()
    else:
        assert env.action_space.shape == (3, layers, len(controls))
        assert env.action_space.low.min() == -1
        assert env.action_space.high.max() == 1
    observation, _ = env.reset(seed=0)
    for step in play(env, 5, random_actions(env)):
        assert env.observation_space.contains(step[0])
    assert env.observation_space.contains(observation)


def test_render_ansi_names_every_layer():
    env = tiny(render_mode="ansi", initial_lr=(1e-3, 1e-3))
    env.reset(seed=0)
    env.step(np.full((3, 2, 1), 1.0))
    frames = env.render()
    assert len(frames) == 3
    for frame in frames:
        assert frame.startswith("step 3/12\n")
        assert "loss" in frame
        for name in env.inner.layout.names:
            line = next(line for line in frame.splitlines() if line.startswith(f"lr {name}"))
            assert "0.004" in line


def test_layers_start_from_the_learning_rates_given():
    env = tiny()
    lr = np.array([[1e-3, 1e-2], [3e-3, 3e-2], [1e-2, 1e-1]])
    infos = env.reset(seed=0, options={"initial_lr": lr})[1]
    np.testing.assert_allclose(infos["lr"], lr, rtol=1e-6)


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_render_survives_divergence_and_zero_lr(mode):
    env = tiny(
        2,
        render_mode=mode,
        initial_lr=(1e-3, 1e8),
        base="sgd",
        schedule="linear",
        autoreset_mode=AutoresetMode.DISABLED,
    )
    env.reset(seed=0)
    ended, frames = np.zeros(2, dtype=bool), []
    for action, _ in zip(random_actions(env), range(4), strict=False):
        if ended.any():
            env.reset(options={"reset_mask": ended})
        ended = env.step(action)[2]
        frames.append(env.render())
    if mode == "rgb_array":
        assert all(
            f.shape == (320, 640, 3) and f.dtype == np.uint8 for frame in frames for f in frame
        )
        assert (frames[0][0] != frames[1][0]).any()


def test_render_without_a_mode_names_the_option():
    env = tiny()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="render_mode"):
        env.render()


# Wrong options

WRONG = [
    ("task", "mnist"), ("num_envs", 0), ("num_envs", 2.0), ("num_envs", True),
    ("horizon", 0), ("horizon", 2.5), ("decisions", 0), ("decisions", "4"),
    ("granularity", "tensor"), ("controls", ("momentum",)), ("controls", "lr"),
    ("action", "absolute"), ("base", "lion"), ("schedule", "step"),
    ("features", ("depht",)),
    ("initial_lr", (0.0, 1.0)), ("initial_lr", (1e-2, 1e-3)), ("initial_lr", (1e-3, math.inf)),
    ("initial_lr", (math.nan, math.nan)), ("initial_lr", 1e-3), ("initial_lr", (1e-3, 1e-2, 1e-1)),
    ("initial_lr", ("1e-3", "1e-2")), ("mask_passes", 1.5),
    ("weight_decay", -0.1), ("weight_decay", math.nan), ("weight_decay", None),
    ("mask_loss", -0.1), ("mask_loss", math.nan), ("mask_progress", 1.1),
    ("mask_progress", "half"), ("dtype", torch.int64), ("dtype", torch.float16),
    ("dtype", torch.bfloat16), ("render_mode", "human"),
    ("autoreset_mode", "Never"), ("max_episode_steps", 100),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), WRONG, ids=str)
def test_wrong_option_is_named(option, value):
    named = "control" if option == "controls" else "feature" if option == "features" else option
    with pytest.raises(ValueError, match=named):
        LRControlVectorEnv(**{"task": TINY, option: value})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seed": [1, 2]}, "seed"),
        ({"options": {"reset_mask": [True]}}, "reset_mask"),
        ({"options": {"mask": [True] * 3}}, "reset_mask"),
        ({"options": {"initial_lr": [0.1]}}, "initial_lr"),
        ({"options": {"initial_lr": [0.1, 0.1, 0.0]}}, "initial_lr"),
        ({"options": {"initial_lr": [[0.1]] * 3}}, "initial_lr"),
    ],
)
def test_wrong_reset_is_named(arguments, named):
    env = tiny()
    with pytest.raises(ValueError, match=named):
        env.reset(**arguments)


@pytest.mark.parametrize("action", ACTIONS)
def test_wrong_actions_are_refused(action):
    env = tiny(action=action)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must have shape"):
        env.step(np.zeros((2, 2, 1)))
    if ACTIONS[action].discrete:
        for index in (-1, 7):
            actions = np.zeros((3, 2), dtype=np.int64)
            actions[1, 0] = index
            with pytest.raises(ValueError, match=rf"indices in \[0, 7\); row 1 has \[{index}, 0\]"):
                env.step(actions)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_actions_that_are_not_finite_are_refused(action, broken):
    """The error names the row, and nothing was trained."""
    env, twin = tiny(action=action), tiny(action=action)
    env.reset(seed=0), twin.reset(seed=0)
    zeros = np.zeros((3, 2, 1))
    actions = zeros.copy()
    actions[2, 1] = broken
    with pytest.raises(ValueError, match="finite numbers; row 2"):
        env.step(actions)
    assert_same(env.step(zeros), twin.step(zeros))
    single = LRControlEnv(TINY, **SHORT)
    single.reset(seed=0)
    with pytest.raises(ValueError, match="row 0"):
        single.step(np.array([0.0, broken]))


def test_the_check_of_actions_reads_nothing_from_the_device():
    reader = ActionReader(ControlSpec(), 3, 2, torch.device("meta"))  # it has no numbers to read
    with pytest.raises(ValueError, match="row 1"):
        reader([[[0.0], [0.0]], [[0.0], [math.nan]], [[0.0], [0.0]]])


def test_actions_are_clipped():
    env, twin = tiny(), tiny()
    env.reset(seed=0), twin.reset(seed=0)
    assert_same(env.step(np.full((3, 2, 1), 1e300)), twin.step(np.ones((3, 2, 1))))
