"""Environments of the tiny task, and ways to play and compare them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from tiny import SMALL, STREAMS, TINY

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.control.action import ACTIONS, CONTROLLED
from lr_gym.envs.ids import TASK_OF_ENV
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.layers import GRANULARITIES

IDS = [f"lr_gym/{env_id}" for env_id, name in TASK_OF_ENV.items() if name in (*SMALL, *STREAMS)]
SHORT = {"horizon": 12, "decisions": 4, "schedule": "constant"}
OPTIONS = [
    *(
        {"action": action, "granularity": granularity}
        for action, granularity in itertools.product(ACTIONS, GRANULARITIES)
    ),
    {"controls": CONTROLLED, "render_mode": "ansi"},
    {"controls": CONTROLLED, "action": "discrete", "render_mode": "rgb_array"},
    {"base": "sgd", "schedule": "cosine", "dtype": torch.float64},
    {
        "features": ("log_lr", "depth"),
        "mask_loss": 0.5,
        "mask_progress": 0.5,
    },
]


def tiny(num_envs=3, **options) -> LRControlVectorEnv:
    return LRControlVectorEnv(TINY, num_envs=num_envs, **{**SHORT, **options})


def random_actions(env, seed=0):
    """Yield random actions without end."""
    space = env.action_space
    space.seed(seed)
    while True:
        yield space.sample()


def play(env, steps, actions):
    """Make `steps` steps of an environment that was reset; return what each step returned."""
    return [env.step(next(actions)) for _ in range(steps)]


def assert_same(a, b):
    """Assert that two nested values are equal to the bit; NaN equals NaN."""
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


def run_python(code: str) -> str:
    """Run `code` in a fresh process in the repository's root and return its output."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(
        command, cwd=root, check=True, capture_output=True, text=True, timeout=600
    ).stdout
