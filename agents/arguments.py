"""The arguments of `train_agent.py`, and how preset, config file and command line make them."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Literal, get_args

import tyro

from agents.evolution import EvolutionConfig
from agents.q_learning import QConfig
from agents.sb3 import DQNConfig, PPOConfig
from agents.settings import apply, presets, read_yaml
from agents.sweep import SweepConfig
from lr_gym.analysis.measure_ranges import RUNS
from lr_gym.envs.vector_env import INITIAL_LR

__all__ = ["Agent", "Args", "parse"]

Agent = Literal["ppo", "dqn", "q_learning", "es", "garo", "sweep"]


@dataclasses.dataclass(frozen=True)
class Args:
    """Train an agent that controls learning rates, and save its policy."""

    output_dir: Path
    """New folder for policy, checkpoint and logs; one that holds a run is never overwritten."""
    agent: Agent = "ppo"
    """Who learns: SB3's PPO or DQN, tabular Q-learning, evolution of a small policy (es) or of
    GARO's cell (garo), or regression on sweeps of learning rates (sweep)."""
    preset: str = "default"
    """Settings by name, see agents/presets; the config file and the command line override them."""
    config: Path | None = None
    """YAML file of settings, named as these arguments are; the command line overrides it."""
    task: str = "mnist1d-mlp"
    """What is trained, a name of lr_gym.tasks.TASKS or random-<number>."""
    suite: Literal["train", "random"] | None = None
    """All training tasks at once instead of one task, or random tasks, new ones for every batch of trainings."""
    slots: int = 8
    """Random tasks at a time."""
    selection_suite: Literal["train", "validation"] | None = None
    """Tasks by which the policy is selected.

    Those learned on by default, which random ones cannot be.
    """
    init: str | None = None
    """Policy to go on from, builtin:NAME or a file, of the same controls and network; ppo only."""
    seed: int = 0
    """Of the agent and of its trainings."""
    timesteps: int = 128_000
    """Decisions to learn from; those of all layers of a run count once."""
    granularity: Literal["per_layer", "global"] = "per_layer"
    """One row of control per layer, or one per run."""
    controls: tuple[str, ...] = ("lr",)
    """Hyperparameters to control, a part of: lr momentum noise."""
    action: Literal["recursive", "residual", "discrete"] = "recursive"
    """Whether an action moves the lr from where it is or bends the base schedule."""
    action_step: float | None = None
    """Log of the largest factor on the lr per decision."""
    base: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """Base optimizer."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    """Base schedule."""
    decisions: int = 50
    """Decisions per training."""
    features: tuple[str, ...] | None = None
    """What the agent sees, names of lr_gym.control.observation.FEATURES.

    All scale-free ones by default.
    """
    average: float | None = None
    """Judge trainings by their averaged weights, about those of the last 1 / (average + 1) of the
    time: a stand-in for the decay where the end is not known."""
    horizon: int | None = None
    """Inner steps per training; the task's own by default."""
    initial_lr: tuple[float, float] = INITIAL_LR
    """Range of the initial learning rate, log-uniform."""
    mask_loss: float = 0.1
    """Fraction of runs in which the policy does not see the loss, as in scripts that never call observe()."""
    mask_progress: float = 0.1
    """Fraction of runs that do not know their horizon, as in scripts that give no total_steps."""
    mask_passes: float = 0.1
    """Fraction of runs that do not know their passes over the data, as in scripts that give no steps_per_epoch."""
    num_envs: int = 64
    """Trainings at a time; a suite shares them out among its tasks.

    Not for the agent sweep, which has its own.
    """
    workers: int = 2 if (os.cpu_count() or 1) > 1 else 1
    """Threads, or processes of the agent sweep, that share the trainings.

    The result does not depend on it.
    """
    selection_runs: int = 64
    """Trainings by which the policy is selected, on the selection split.

    Shared out among a suite's tasks.
    """
    selection_every: int = 5
    """Agent updates between two selections."""
    certificate_runs: int = 16
    """Trainings, per initial lr, by which the policy is certified as feedback or as a schedule.

    0 for none.
    """
    guard_runs: int = RUNS
    """Trainings of each task or slot that measure what the policy sees, for the deployed one's guard; 0 for none."""
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    """PPO's hyperparameters."""
    dqn: DQNConfig = dataclasses.field(default_factory=DQNConfig)
    """DQN's hyperparameters."""
    q_learning: QConfig = dataclasses.field(default_factory=QConfig)
    """Tabular Q-learning's hyperparameters."""
    evolution: EvolutionConfig = dataclasses.field(default_factory=EvolutionConfig)
    """Hyperparameters of es and garo."""
    sweep: SweepConfig = dataclasses.field(default_factory=SweepConfig)
    """Hyperparameters of learning from sweeps."""
    device: str = "cpu"
    """Where the trainings run; the agent's own network stays on the CPU."""
    compile: bool = False
    """Compile the trainings with torch's inductor: faster after a minute, equal to rounding.

    Needs a C++ compiler.
    """
    data_dir: Path | None = None
    """Folder with data that cannot be downloaded, such as cifar-10-batches-py.

    LR_GYM_DATA by default.
    """
    resume: bool = False
    """Continue the run in the output folder, bit for bit."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where you are logged in and offline elsewhere."""
    tensorboard: bool = False
    """Write the curves for TensorBoard as well, to tensorboard/ in the output folder (pip install tensorboard)."""


def parse(command: list[str]) -> Args:
    """Defaults, preset, config file and command line, the later over the earlier."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--agent")
    first.add_argument("--preset")
    first.add_argument("--config", type=Path)
    first.add_argument("--task")
    known, _ = first.parse_known_args(command)
    defaults = Args(output_dir=tyro.MISSING)
    config = read_yaml(known.config) if known.config else {}
    agent = known.agent or config.get("agent", "ppo")
    preset = known.preset or config.get("preset", "default")
    if agent in get_args(Agent):  # an unknown one is tyro's to refuse
        named = presets(agent)
        if preset not in named:
            raise ValueError(
                f"unknown preset {preset!r} of {agent}; choose from {', '.join(named)}"
            )
        defaults = apply(defaults, named[preset], f"preset {preset}")
    defaults = apply(defaults, config, str(known.config))
    args = tyro.cli(Args, args=command, default=defaults)
    task = known.task or config.get("task")
    if task is not None and args.suite is not None:  # perhaps the preset's
        raise ValueError(
            f"task {task} would not be learned on, with suite {args.suite}: leave it out, or add "
            "--suite None"
        )
    return args
