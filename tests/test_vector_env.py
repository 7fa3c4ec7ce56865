"""The environments.

Gymnasium's and SB3's own checks, episodes, divergence, independence of rows, options.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny import SMALL, TINY

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.control.action import ACTIONS, CONTROLLED, action_table
from lr_gym.control.observation import FEATURES
from lr_gym.envs.env import LRControlEnv
from lr_gym.envs.reward import REWARDS, diverged_return
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.layers import GRANULARITIES
from lr_gym.tasks import TASKS
from lr_gym.tasks.losses import cross_entropy
from lr_gym.updates.schedules import SCHEDULES, base_schedule

IDS = [f"lr_gym/{TASKS[name].env_id}" for name in SMALL]
SHORT = {"horizon": 12, "decisions": 4, "schedule": "constant"}
OPTIONS = [
    *(
        {"action": action, "granularity": granularity}
        for action, granularity in itertools.product(ACTIONS, GRANULARITIES)
    ),
    {"controls": CONTROLLED, "render_mode": "ansi"},
    {"controls": CONTROLLED, "action": "discrete", "render_mode": "rgb_array"},
    {"base": "sgd", "schedule": "cosine", "reward": "paired", "dtype": torch.float64},
    {
        "features": ("log_lr", "depth"),
        "reward": "final_log_loss",
        "mask_loss": 0.5,
        "mask_progress": 0.5,
    },
]


def tiny(num_envs=3, **options) -> LRControlVectorEnv:
    return LRControlVectorEnv(TINY, num_envs, **{**SHORT, **options})


def random_actions(env, seed=0):
    """An endless sequence of actions."""
    space = env.action_space
    space.seed(seed)
    while True:
        yield space.sample()


def play(env, steps, actions):
    """Steps of an environment that was reset.

    Lists of observations, rewards, terminations and infos.
    """
    return [env.step(next(actions)) for _ in range(steps)]


def assert_same(a, b):
    """Equal to the bit, through any nesting; NaN equals NaN."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)) or (isinstance(a, np.ndarray) and a.dtype.kind == "O"):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif a is None:
        assert b is None
    else:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# Gymnasium and SB3


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
    native = gymnasium.make_vec(IDS[0], 2, horizon=12, decisions=4)
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


# Episodes


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
    """The step that ends an episode returns the next one's first observation and keeps the last in the info."""
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
    pairs = (("discrete", "recursive"), ("discrete_residual", "residual"))
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


# Rewards


@pytest.mark.parametrize("reward", REWARDS)
def test_return_is_the_decrease_of_the_log_loss(reward):
    env = tiny(reward=reward, autoreset_mode=AutoresetMode.DISABLED, dtype=torch.float64)
    _, start = env.reset(seed=2)
    steps = play(env, 4, random_actions(env))
    rewards = np.stack([step[1] for step in steps])
    expected = np.log(start["reward_loss"]) - np.log(steps[-1][4]["reward_loss"])
    if REWARDS[reward].paired:
        adam = {
            "base": "adam",
            "initial_lr": (1e-3, 1e-3),
            "action": "residual",
            "granularity": "global",
        }
        twin = tiny(**adam, autoreset_mode=AutoresetMode.DISABLED, dtype=torch.float64)
        twin.reset(seed=2)
        end = [twin.step(np.zeros((3, 1, 1))) for _ in range(4)][-1][4]["reward_loss"]
        expected -= np.log(start["reward_loss"]) - np.log(end)
    np.testing.assert_allclose(rewards.sum(0), expected, rtol=1e-6)
    assert (rewards[:-1] != 0).all() == REWARDS[reward].dense
    assert steps[-1][4]["reward_loss"] == pytest.approx(env.evaluate("reward"))


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(
    ("base", "reason"),
    [("adamw", "loss_above_limit"), ("adam", "loss_above_limit"), ("sgd", "non_finite_loss")],
)
def test_divergence_ends_the_run_with_the_documented_return(base, reason, reward):
    env = LRControlVectorEnv(
        "mnist1d-mlp", 3, base=base, reward=reward, initial_lr=(1e3, 1e3), **SHORT
    )
    _, start = env.reset(seed=0)
    total, actions = np.zeros(3), random_actions(env)
    for _ in range(4):
        observation, rewards, terminated, _, info = env.step(next(actions))
        assert np.isfinite(rewards).all()
        assert env.observation_space.contains(observation)
        total += rewards
        if terminated.any():
            break
    final = info["final_info"]
    assert terminated.all()
    assert final["diverged"].all()
    assert set(final["divergence"]) <= {"loss_above_limit", "non_finite_loss"}
    assert reason in final["divergence"]
    assert (final["step"] < 12).all()
    expected = diverged_return(torch.from_numpy(start["reward_loss"]), 0.0, REWARDS[reward])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert not info["diverged"].any()  # training went on with the next episode
    assert np.isfinite(info["train_loss"]).all()
    env.step(next(actions))


@pytest.mark.parametrize("reward", REWARDS)
def test_late_divergence_has_the_same_return(reward):
    """What a run collected before it diverged is taken back."""
    env = tiny(40, base="sgd", reward=reward, initial_lr=(0.1, 1e3), decisions=12)
    _, start = env.reset(seed=0)
    total, running = np.zeros(40), np.ones(40, dtype=bool)
    expected = diverged_return(torch.from_numpy(start["reward_loss"]), 0.0, REWARDS[reward]).numpy()
    late = 0
    for step in range(12):
        _, rewards, terminated, _, info = env.step(np.ones((40, 2, 1)))
        total += rewards * running
        if terminated.any():
            diverged = running & terminated & info["final_info"]["diverged"]
            np.testing.assert_allclose(total[diverged], expected[diverged], rtol=1e-5)
            late += diverged.sum() * (step > 2)
        running &= ~terminated
    assert late > 3


# Rows do not touch each other


def test_a_loss_below_the_optimum_is_named():
    task = dataclasses.replace(
        TINY, loss=lambda outputs, targets: cross_entropy(outputs, targets) - 100.0
    )
    with pytest.raises(
        ValueError, match=r"'tiny' starts with a loss of -9.*optimum 0.*Task.optimum"
    ):
        LRControlVectorEnv(task, 2).reset(seed=0)
    LRControlVectorEnv(dataclasses.replace(task, optimum=-100.0), 2).reset(seed=0)


def test_a_reference_that_breaks_spoils_no_reward(monkeypatch):
    """Adam at 1e-3 comes to something that is no number.

    The run that is compared with it does not.
    """
    env = LRControlVectorEnv(TINY, 2, reward="paired", horizon=12, decisions=3)
    env.reset(seed=0)
    evaluate = env._reference_loop.evaluate
    monkeypatch.setattr(
        env._reference_loop,
        "evaluate",
        lambda *rest: evaluate(*rest) * torch.tensor([1.0, math.nan]),
    )
    for _ in range(2):
        _, reward, terminated, _, _ = env.step(np.zeros(env.action_space.shape, np.float32))
        assert np.isfinite(reward).all()
        assert not terminated.any()


@pytest.mark.parametrize("reward", ["log_loss", "paired"])
def test_rows_of_64_equal_rows_alone_to_the_bit(reward):
    """Contract (b) of the environment.

    Float32, restarts included, a third of the rows diverging.
    """
    options = {
        "base": "sgd",
        "initial_lr": (1e-2, 1e3),
        "horizon": 10,
        "decisions": 5,
        "reward": reward,
    }
    runs = 64 if reward == "log_loss" else 16
    both = LRControlVectorEnv("mnist1d-mlp", runs, **options)
    alone = LRControlVectorEnv("mnist1d-mlp", 1, **options)
    starts = both.reset(seed=40)
    actions = list(itertools.islice(random_actions(both), 7))
    steps = play(both, 7, iter(actions))
    diverged = np.any(
        [step[4]["final_info"]["diverged"] for step in steps if "final_info" in step[4]], axis=0
    )
    assert runs // 4 <= diverged.sum() <= 3 * runs // 4
    for row in range(runs):
        one = slice(row, row + 1)
        first = alone.reset(seed=[40 + row])
        assert_same(first[0], starts[0][one])
        for action, step in zip(actions, steps, strict=True):
            mine = alone.step(action[one])
            for part in range(4):
                assert_same(mine[part], step[part][one])
            for key in (
                "run_seed",
                "step",
                "train_loss",
                "reward_loss",
                "lr",
                "diverged",
                "divergence",
            ):
                assert_same(mine[4][key], step[4][key][one])
            if mine[2][0]:
                assert_same(mine[4]["final_obs"][0], step[4]["final_obs"][row])
                for key, value in mine[4]["final_info"].items():
                    assert_same(value, step[4]["final_info"][key][one])


def test_desynchronised_rows_equal_rows_alone():
    """Rows restarted by hand at different times, with an interval that does not divide the horizon."""
    options = {"horizon": 11, "autoreset_mode": AutoresetMode.DISABLED, "schedule": "cosine"}
    env, actions = tiny(**options), iter(np.zeros((9, 3, 2, 1), dtype=np.float32) + 0.3)
    env.reset(seed=0)
    env.step(next(actions))
    env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(next(actions))
    step = env.step(next(actions))
    assert step[4]["step"].tolist() == [6, 4, 6]
    alone = tiny(1, **options)
    alone.reset(seed=[1]), alone.reset()
    for _ in range(2):
        mine = alone.step(np.full((1, 2, 1), 0.3, dtype=np.float32))
    assert_same(mine[0], step[0][1:2])
    assert_same(mine[4]["train_loss"], step[4]["train_loss"][1:2])


CURVES = """
import hashlib, torch
torch.set_num_threads(1)
from lr_gym.envs.vector_env import LRControlVectorEnv
env = LRControlVectorEnv("mnist1d-mlp", 3, controls=("lr", "momentum", "noise"), horizon=20, decisions=5,
                         reward="paired", mask_loss=0.5)
digest = hashlib.sha256(env.reset(seed=11)[0].tobytes())
env.action_space.seed(0)
for _ in range(8):
    observation, reward, _, _, info = env.step(env.action_space.sample())
    for array in (observation, reward, info["train_loss"], info["lr"]):
        digest.update(array.tobytes())
for name, tensor in sorted(env.state_dict().items()):
    digest.update(tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def run_python(code: str) -> str:
    """Output of a fresh process in the repository's root."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True, timeout=600
    ).stdout


def test_same_seed_in_two_processes_gives_the_same_everything(capsys):
    """Contract (d): curves, observations, weights, bit for bit."""
    exec(CURVES, {})
    assert run_python(CURVES) == capsys.readouterr().out


# Saving


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_state_continues_bit_for_bit(base, reward, tmp_path):
    options = {
        "base": base,
        "reward": reward,
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
    with pytest.raises(ValueError, match=r"other options.*runs\."):
        tiny(**other).load_state_dict(env.state_dict())


def test_no_state_before_the_first_reset():
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        tiny().state_dict()


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_go_on_alike(how):
    copied = copy.deepcopy if how == "deepcopy" else lambda env: pickle.loads(pickle.dumps(env))
    env = LRControlVectorEnv("quadratic", 3, horizon=20)
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


# Masks and pictures


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
    ("task", "mnist"), ("num_envs", 0), ("num_envs", 2.0), ("num_envs", True), ("horizon", 0), ("horizon", 2.5),
    ("decisions", 0), ("decisions", "4"), ("granularity", "tensor"), ("controls", ("momentum",)), ("controls", "lr"),
    ("action", "absolute"), ("base", "lion"), ("schedule", "step"), ("features", ()), ("features", ("depht",)),
    ("initial_lr", (0.0, 1.0)), ("initial_lr", (1e-2, 1e-3)), ("initial_lr", (1e-3, math.inf)),
    ("initial_lr", (math.nan, math.nan)), ("initial_lr", 1e-3), ("initial_lr", (1e-3, 1e-2, 1e-1)),
    ("initial_lr", ("1e-3", "1e-2")), ("mask_passes", 1.5),
    ("weight_decay", -0.1), ("weight_decay", math.nan), ("weight_decay", None),
    ("reward", "accuracy"), ("mask_loss", -0.1), ("mask_loss", math.nan), ("mask_progress", 1.1),
    ("mask_progress", "half"), ("dtype", torch.int64), ("dtype", torch.float16),
    ("dtype", torch.bfloat16), ("render_mode", "human"),
    ("autoreset_mode", AutoresetMode.NEXT_STEP), ("max_episode_steps", 100),
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
            with pytest.raises(ValueError, match="indices"):
                env.step(np.full((3, 2), index))


def test_nan_actions_leave_the_lr_alone():
    env, twin = tiny(), tiny()
    env.reset(seed=0), twin.reset(seed=0)
    broken, zero = env.step(np.full((3, 2, 1), np.nan)), twin.step(np.zeros((3, 2, 1)))
    assert env.observation_space.contains(broken[0])
    assert_same(broken[4], zero[4])
    second = env.step(np.zeros((3, 2, 1)))[0], twin.step(np.zeros((3, 2, 1)))[0]
    assert_same(*second)


def test_what_a_step_returned_stays_when_the_runs_start_anew():
    env = LRControlVectorEnv(TINY, num_envs=2, dtype=torch.float64, decisions=3)
    env.reset(seed=0)
    observation, rewards, _, _, infos = env.step(np.zeros(env.action_space.shape))
    kept = [observation.copy(), rewards.copy(), *(value.copy() for value in infos.values())]
    env.reset(seed=9)
    for before, now in zip(kept, [observation, rewards, *infos.values()], strict=True):
        np.testing.assert_array_equal(before, now)
