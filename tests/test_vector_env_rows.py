"""Rows do not touch each other, and equal seeds give equal bits."""

from __future__ import annotations

import itertools

import numpy as np
from environments import assert_same, play, random_actions, run_python, tiny
from gymnasium.vector import AutoresetMode

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.envs.vector_env import LRControlVectorEnv


def test_rows_of_64_equal_rows_alone_to_the_bit():
    """Also in float32, through restarts, and while a third of the rows diverge."""
    options = {
        "base": "sgd",
        "initial_lr": (1e-2, 1e3),
        "horizon": 10,
        "decisions": 5,
    }
    runs = 64
    both = LRControlVectorEnv("mnist1d-mlp", num_envs=runs, **options)
    alone = LRControlVectorEnv("mnist1d-mlp", num_envs=1, **options)
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
    """Rows are restarted by hand at different times; the interval does not divide the horizon."""
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
controls = ("lr", "momentum", "noise")
env = LRControlVectorEnv(
    "mnist1d-mlp", num_envs=3, controls=controls, horizon=20, decisions=5, mask_loss=0.5
)
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


def test_same_seed_in_two_processes_gives_the_same_everything(capsys):
    """Curves, observations and weights are equal bit for bit."""
    exec(CURVES, {})
    assert run_python(CURVES) == capsys.readouterr().out
