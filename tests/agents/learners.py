"""A small learner of every agent, by name: the contract's tests run over them."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from tiny import TINY

from agents.branches import BranchConfig, BranchLearner
from agents.evolution import EvolutionConfig
from agents.evolved_policy import EvolutionLearner
from agents.garo import GaroLearner, GaroTrainings
from agents.learner import Learner
from agents.q_learning import QConfig, QLearner
from agents.sb3 import DQNConfig, DQNLearner, LayerRowsVecEnv, PPOConfig, PPOLearner
from agents.sweep import SweepConfig, SweepLearner
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import Task

SETTING = {"horizon": 12, "decisions": 4, "schedule": "constant"}
UPDATES = 6
AGENTS = (
    "ppo",
    "ppo_twins",
    "dqn",
    "q_learning",
    "es",
    "pes",
    "garo",
    "garo_pes",
    "sweep",
    "branches",
)
SWEEP = SweepConfig(
    rates=6, samples=3, hidden=(8, 8), steps=30, learning_rate=0.02, weight_decay=0.0
)
BRANCHES = BranchConfig(
    actions=3, follow=2, hidden=(8,), steps=30, learning_rate=0.02, remembered=3
)
SWEEP_FEATURES = ("first_loss", "scaled_lr", "horizon", "steps")


def sweep_env(setting: dict[str, Any], update: int, slot: int) -> LRControlVectorEnv:
    """The same small task at every update."""
    return LRControlVectorEnv(
        TINY, num_envs=SWEEP.rates, autoreset_mode=AutoresetMode.DISABLED, **setting
    )


def make_learner(agent: str, *runs: int, seed: int = 0, task: Task = TINY, **options) -> Learner:
    """A learner in environments of these numbers of runs, (4, 2) by default."""
    runs = runs or (4, 2)
    window = 2 if agent.endswith("pes") else None
    evolution = EvolutionConfig(hidden=(4,), window=window)
    if agent.startswith("garo"):
        horizon = SETTING["horizon"]
        shares, selection = (
            [GaroTrainings(TINY, n, layerwise=True, horizon=horizon) for n in counts]
            for counts in (runs, (3,))
        )
        return GaroLearner(
            shares, selection, evolution, decisions=4, threads=2, seed=seed, updates=UPDATES
        )
    setting = {**SETTING, **options}
    if agent == "sweep":
        setting["features"] = SWEEP_FEATURES
        selection = [
            LRControlVectorEnv(TINY, num_envs=3, autoreset_mode=AutoresetMode.DISABLED, **setting)
        ]
        make = functools.partial(sweep_env, setting)
        return SweepLearner(make, len(runs), selection, SWEEP, seed=seed, updates=UPDATES)
    if agent == "branches":
        setting["granularity"] = "global"
        envs = [LRControlVectorEnv(TINY, num_envs=3 * n, **setting) for n in runs]
        selection = [
            LRControlVectorEnv(TINY, num_envs=3, autoreset_mode=AutoresetMode.DISABLED, **setting)
        ]
        return BranchLearner(envs, selection, BRANCHES, threads=2, seed=seed, updates=UPDATES)
    if agent == "dqn":
        setting["action"] = "discrete"
    if agent == "q_learning":
        setting.setdefault("features", ("update_ratio", "depth", "progress"))
    twins = 2 if agent == "ppo_twins" else 1
    env = LayerRowsVecEnv(
        [LRControlVectorEnv(task, num_envs=n, **setting) for n in runs], twins=twins
    )
    env.seed(seed << 20)
    selection = [
        LRControlVectorEnv(task, num_envs=3, autoreset_mode=AutoresetMode.DISABLED, **setting)
    ]
    ppo = PPOConfig(hidden=(16, 16), n_epochs=2, minibatches=2, learning_rate=0.02)
    kinds = {
        "ppo": (PPOLearner, ppo),
        "ppo_twins": (PPOLearner, ppo),
        "dqn": (
            DQNLearner,
            DQNConfig(hidden=(16,), batch_size=32, buffer_size=150, target_update=3),
        ),
        "q_learning": (QLearner, QConfig()),
        "es": (EvolutionLearner, evolution),
        "pes": (EvolutionLearner, evolution),
    }
    learner, config = kinds[agent]
    return learner(env, selection, config, seed=seed, updates=UPDATES)


def flat_state(state, name=""):
    """Leaves of a nested state by path."""
    if isinstance(state, dict):
        return {
            k: v
            for key, value in state.items()
            for k, v in flat_state(value, f"{name}.{key}").items()
        }
    if isinstance(state, (list, tuple)):
        return {
            k: v
            for i, value in enumerate(state)
            for k, v in flat_state(value, f"{name}.{i}").items()
        }
    return {name: state}


def assert_equal_states(one, other):
    one, other = flat_state(one), flat_state(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), other[name].nan_to_num()), name
        elif isinstance(value, float) and math.isnan(value):
            assert math.isnan(other[name]), name
        else:
            assert value == other[name], name
