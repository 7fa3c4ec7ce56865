"""Train an agent that controls learning rates, and save its policy.

    python train_agent.py --agent ppo --task mnist1d-mlp --output-dir runs/ppo --seed 0

The output folder holds the policy with the best selection loss (policy.safetensors), the arguments,
a checkpoint that --resume continues from, and the figures of every update (progress.jsonl, and
wandb unless it is disabled).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lr_gym
from agents.arguments import Args
from agents.command_line import parse
from agents.environments import (
    RANDOM_SUITES,
    learning_tasks,
    make_env,
    selection_runs,
    selection_tasks,
)
from agents.learner import Learner
from agents.table import AGENTS, build_learner
from lr_gym.analysis.certificate import TESTED, certificate, describe
from lr_gym.analysis.measure_ranges import observed_range
from lr_gym.analysis.pictures import draw
from lr_gym.benchmark.scores import relative_loss
from lr_gym.console import Pace, duration
from lr_gym.engine import Engine, open_engine, run_here
from lr_gym.envs.rollout import divergence
from lr_gym.optional import require
from lr_gym.policies.policy import POLICY_FILE, load_policy, save_policy
from lr_gym.run_folder import RunFolder
from lr_gym.tracking import Tracker

# A training of fewer updates than this is not long enough to learn, and a warning says so.
FEW_UPDATES = 3
# figures of an update that are printed
SHOWN = ("reward_loss", "diverged", "selection_loss")
# number of batches of random tasks on which the guard's ranges are measured
GUARD_BATCHES = 8
# first row seed of the trainings that select the policy: no agent learns from row seeds this high
SELECTION_SEED = 1 << 40
# arguments that may change when a run is resumed, since the policy does not depend on them
MAY_CHANGE = (
    "output_dir",
    "engine",
    "ray_address",
    "wandb",
    "tensorboard",
    "resume",
    "config",
    "data_dir",
    "certificate_runs",
    "guard_runs",
)


def main(command: list[str]) -> None:
    """Read the arguments, build the agent, and train it."""
    torch.set_num_threads(1)  # the workers are the parallelism
    with contextlib.ExitStack() as stack:
        try:
            args = parse(command)
            if args.data_dir is not None:
                os.environ["LR_GYM_DATA"] = str(args.data_dir)
            engine = stack.enter_context(open_engine(args.engine, args.workers, args.ray_address))
            learner, updates, folder, config = build(args, engine)
            stack.callback(folder.close)
            if updates < FEW_UPDATES:
                print(few_updates(args, updates))
        except (ValueError, ImportError, OSError) as error:
            sys.exit(f"error: {error}")
        try:
            train(args, learner, updates, folder, config)
        except OSError as error:  # most likely the disk is full
            sys.exit(
                f"error: {error}; what was saved before is intact: mend that, then continue with "
                f"--resume --output-dir {args.output_dir}"
            )
        except KeyboardInterrupt:
            sys.exit(f"stopped; continue with --resume --output-dir {args.output_dir}")


def build(args: Args, engine: Engine = run_here) -> tuple[Learner, int, RunFolder, dict[str, Any]]:
    """Build everything that a training needs, and claim its output folder.

    Args:
        args: The arguments.
        engine: Plays the sweeps of the agent sweep.

    Returns:
        The learner, its number of updates, the output folder, and the arguments as plain values.

    Raises:
        ValueError: Something is wrong with the arguments; the message says what.
        ImportError: A package is missing; the message says how to install it.
    """
    if args.tensorboard:
        require("tensorboard", "tensorboard")
    learner, updates = build_learner(args, engine)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(args).items()}
    folder = RunFolder(args.output_dir, config, resume=args.resume, may_change=MAY_CHANGE)
    return learner, updates, folder, config


def few_updates(args: Args, updates: int) -> str:
    """The warning about a training that is too short to learn anything."""
    made = "1 update" if updates == 1 else f"{updates} updates"
    return (
        f"warning: --timesteps {args.timesteps} makes only {made}, too few to learn from: raise "
        "it to get dozens of updates, or make each update smaller by fewer --num-envs"
    )


def train(
    args: Args, learner: Learner, updates: int, folder: RunFolder, config: dict[str, Any]
) -> None:
    """Make the updates, then measure the policy that was selected.

    Args:
        args: The arguments.
        learner: The agent.
        updates: Number of updates; a resumed run makes those that are missing.
        folder: The output folder.
        config: The arguments as plain values, for wandb.
    """
    # a resumed run gets the same losses again, since nothing has been learned yet
    before = selection_losses(learner, selection_runs(args))
    progress: dict[str, Any] = {"updates": 0, "best": math.inf, "seconds": 0.0}
    checkpoint = folder.load_checkpoint() if args.resume else None
    if checkpoint is not None:
        learner.load_state_dict(checkpoint["learner"])
        progress |= checkpoint["progress"]
    tracker = Tracker(
        args.output_dir,
        config,
        wandb=args.wandb,
        tensorboard=args.tensorboard,
        name=f"{args.agent}-{args.suite or args.task}",
        resume_step=progress["updates"] if args.resume else None,
    )
    with contextlib.closing(tracker):
        make_updates(args, learner, updates, folder, tracker, progress, before)
        file = args.output_dir / POLICY_FILE
        if AGENTS[args.agent].saves_policy and args.guard_runs:
            store_ranges(file, args)
        if AGENTS[args.agent].saves_policy and args.certificate_runs:
            store_certificate(file, args)
            task = selection_tasks(args)[0]
            policy = load_policy(file)
            tracker.save_pictures(draw(policy, task, args.output_dir, horizon=args.horizon))
        tracker.save_file(file, "policy")
    print(f"best selection loss {progress['best']:.4f}; policy saved to {file}")


def make_updates(
    args: Args,
    learner: Learner,
    updates: int,
    folder: RunFolder,
    tracker: Tracker,
    progress: dict[str, Any],
    before: NDArray[np.float64],
) -> None:
    """Make the updates that are missing; select and save the policy on the way.

    Args:
        args: The arguments.
        learner: The agent.
        updates: Number of updates of the whole run.
        folder: Keeps the checkpoint, which is written after every update.
        tracker: Logs the figures of every update.
        progress: Updates made, best selection loss and seconds until now; changed in place.
        before: (tasks, runs) losses of the trainings that select, before anything was learned.
    """
    first_update = progress["updates"] + 1
    earlier_seconds = progress["seconds"]
    start = time.monotonic()
    pace = Pace(sys.stdout)
    for update in range(first_update, updates + 1):
        row = learner.update()
        elapsed = time.monotonic() - start
        progress |= {"updates": update, "seconds": earlier_seconds + elapsed}
        if update % args.selection_every == 0 or update == updates:
            row["selection_loss"] = select(learner, before)
            if row["selection_loss"] < progress["best"]:
                progress["best"] = row["selection_loss"]
                learner.save(
                    args.output_dir / POLICY_FILE,
                    about(args, update, row["selection_loss"], progress["seconds"]),
                )
        folder.save_checkpoint({"learner": learner.state_dict(), "progress": dict(progress)})
        tracker.log(row, update)
        if pace.due(last=update == updates):
            seconds = (time.monotonic() - start) / (update - first_update + 1)
            speed = args.timesteps / updates / seconds
            left = duration(seconds * (updates - update))
            figures = progress_figures(row, progress["best"])
            print(
                f"update {update}/{updates}  {figures}  {speed:.0f} decisions/s  {left} left",
                flush=True,
            )


def progress_figures(row: Mapping[str, float], best: float) -> str:
    """The figures of an update that are printed.

    Args:
        row: All figures of the update.
        best: Best selection loss until now, by which the policy is judged; inf before the first.
    """
    shown = {key: row[key] for key in SHOWN if key in row}
    if math.isfinite(best):
        shown["best_selection_loss"] = best
    return "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())


def selection_losses(learner: Learner, runs: int) -> NDArray[np.float64]:
    """Losses (tasks, runs) of the trainings that select the policy, inf where they diverged."""
    return learner.selection_losses([SELECTION_SEED + i for i in range(runs)])


def select(learner: Learner, before: NDArray[np.float64]) -> float:
    """The figure by which the policy is selected; less is better.

    On one task it is the mean loss on the selection split. On several tasks it is `relative_loss`,
    by which `evaluate.py` ranks too. A diverged training counts as `divergence` says.

    Args:
        learner: The learner of the policy.
        before: (tasks, runs) losses of the same trainings before anything was learned.
    """
    limit = divergence(before)
    losses = np.minimum(selection_losses(learner, before.shape[1]), limit)
    if len(before) == 1:
        return float(losses.mean())
    # Of several tasks none has a loss below 0, but by chance that of a stream above its floor.
    return relative_loss(losses.clip(min=0.0), np.minimum(before, limit).clip(min=0.0))


def about(args: Args, update: int, selection_loss: float, seconds: float) -> dict[str, Any]:
    """What the policy's file tells about its training, which took `seconds` until now."""
    return {
        "tasks": args.suite or args.task,
        "selection_tasks": [task.name for task in selection_tasks(args)],
        "agent": args.agent,
        "init": args.init,
        "seed": args.seed,
        "updates": update,
        "selection_loss": selection_loss,
        "cost": f"{seconds / 60.0:.1f} minutes, {args.workers} workers",
        "initial_lr": list(args.initial_lr),
        "lr_gym": lr_gym.__version__,
        "torch": torch.__version__,
    }


def store_ranges(file: Path, args: Args) -> None:
    """Measure what the policy sees on the tasks it has learned on, and store it in its file."""
    policy = load_policy(file)
    if policy.ranges is not None:  # those of the policy that it was made from
        return
    # compiling would take longer than these few trainings
    args = dataclasses.replace(args, control=policy.spec, compile=False)
    batches = GUARD_BATCHES if args.suite in RANDOM_SUITES else 1
    runs = max(1, args.guard_runs // batches)
    tasks = (task for batch in range(batches) for task in learning_tasks(args, batch))
    envs = (make_env(args, task, runs, selection=True) for task in tasks)
    try:
        save_policy(dataclasses.replace(policy, ranges=observed_range(policy, envs)), file)
    except ValueError as error:
        print(f"the policy will have no guard: {error}")


def store_certificate(file: Path, args: Args) -> None:
    """Find out whether the policy is feedback or a schedule; print it and store it in its file."""
    print(TESTED, flush=True)
    policy = load_policy(file)
    result = certificate(
        policy, *selection_tasks(args), runs=args.certificate_runs, horizon=args.horizon
    )
    save_policy(dataclasses.replace(policy, about={**policy.about, "certificate": result}), file)
    print(*describe(result), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
