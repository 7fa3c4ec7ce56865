"""Train an agent that controls learning rates, and save its policy.

    python train_agent.py --agent ppo --task mnist1d-mlp --output-dir runs/ppo --seed 0

The output folder holds the policy with the best selection loss (policy.safetensors), the arguments,
a checkpoint that --resume continues from, and the figures of every update (progress.jsonl, and
wandb unless disabled).
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lr_gym
from agents.arguments import Args, parse
from agents.build import RANDOM, build_learner, learning_tasks, make_env, selection_tasks
from agents.learner import Learner
from agents.run_folder import RunFolder
from lr_gym.analysis.certificate import certificate, describe
from lr_gym.analysis.measure_ranges import observed_range
from lr_gym.analysis.pictures import draw
from lr_gym.benchmark.scores import relative_loss
from lr_gym.envs.rollout import divergence
from lr_gym.optional import require
from lr_gym.policies.policy import POLICY_FILE, load_policy, save_policy
from lr_gym.tracking import Tracker
from lr_gym.types import check_count

SHOWN = ("reward_loss", "diverged", "selection_loss")  # figures that are printed at every update
GUARD_BATCHES = (
    8  # of random tasks, that share out the trainings by which the guard's ranges are measured
)
SELECTION_SEED = (
    1 << 40
)  # row seeds of the trainings that select the policy: no training ever learns from them
MAY_CHANGE = (
    "output_dir",
    "wandb",
    "tensorboard",
    "resume",
    "config",
    "data_dir",
    "certificate_runs",
    "guard_runs",
)


def build(args: Args) -> tuple[Learner, int, RunFolder, dict[str, Any]]:
    """Agent, its updates, output folder and the arguments as plain values.

    A ValueError says what is wrong.
    """
    for name in (
        "timesteps",
        "num_envs",
        "slots",
        "workers",
        "selection_runs",
        "selection_every",
        "decisions",
    ):
        check_count(name, getattr(args, name))
    if args.horizon is not None:
        check_count("horizon", args.horizon)
    for group in ("ppo", "dqn", "q_learning", "evolution", "sweep"):
        options = getattr(args, group)
        for field in dataclasses.fields(options):
            if field.type == "int":
                check_count(f"{group}.{field.name}", getattr(options, field.name))
    for name in ("certificate_runs", "guard_runs"):
        if getattr(args, name) < 0:
            raise ValueError(f"{name} must be at least 0; got {getattr(args, name)}")
    if not 0 <= args.seed < 1 << 20:
        raise ValueError(f"seed must lie in [0, {1 << 20}); got {args.seed}")
    if args.tensorboard:
        require("tensorboard", "tensorboard")
    learner, updates = build_learner(args)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(args).items()}
    folder = RunFolder(args.output_dir, config, resume=args.resume, may_change=MAY_CHANGE)
    return learner, updates, folder, config


def about(args: Args, update: int, selection_loss: float, seconds: float) -> dict[str, Any]:
    """Where a policy comes from, `seconds` after its training began."""
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


def select(learner: Learner, before: NDArray[np.float64]) -> float:
    """How good the policy is on the selection split, less is better.

    On one task the mean loss; on several `relative_loss`, the statistic by which `evaluate.py`
    ranks. What a diverged training counts as, `divergence` says.

    Args:
        learner: with a policy.
        before: (tasks, runs) losses of the same trainings before anything was learned.
    """
    limit = divergence(before)
    losses = np.minimum(selection_losses(learner, before.shape[1]), limit)
    return (
        float(losses.mean())
        if len(before) == 1
        else relative_loss(losses, np.minimum(before, limit))
    )


def selection_losses(learner: Learner, runs: int) -> NDArray[np.float64]:
    """Losses (tasks, runs) of the trainings that select, inf where they diverged."""
    return learner.selection_losses([SELECTION_SEED + i for i in range(runs)])


def train(
    args: Args, learner: Learner, updates: int, folder: RunFolder, config: dict[str, Any]
) -> None:
    """Update after update, selecting and saving the policy on the way."""
    runs = max(1, args.selection_runs // len(selection_tasks(args)))
    progress: dict[str, Any] = {"updates": 0, "best": math.inf, "seconds": 0.0}
    before = selection_losses(
        learner, runs
    )  # known again after a resume: nothing here depends on what was learned
    checkpoint = folder.load_checkpoint() if args.resume else None
    if checkpoint is not None:
        learner.load_state_dict(checkpoint["learner"])
        progress |= checkpoint["progress"]
    name = f"{args.agent}-{args.suite or args.task}"
    resume_step = progress["updates"] if args.resume else None
    tracker = Tracker(
        args.output_dir,
        config,
        wandb=args.wandb,
        tensorboard=args.tensorboard,
        name=name,
        resume_step=resume_step,
    )
    start, begun, before_that = time.monotonic(), progress["updates"], progress["seconds"]

    for update in range(begun + 1, updates + 1):
        row = learner.update()
        progress |= {"updates": update, "seconds": before_that + time.monotonic() - start}
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
        left = (time.monotonic() - start) / (update - begun) * (updates - update)
        shown = [f"{key.replace('_', ' ')} {row[key]:.4g}" for key in SHOWN if key in row]
        print(f"update {update}/{updates}  {'  '.join(shown)}  {left:.0f} s left", flush=True)

    file = args.output_dir / POLICY_FILE
    if args.agent != "garo" and args.guard_runs:
        remember_range(file, args)
    if args.agent != "garo" and args.certificate_runs:
        look_at(file, args)
        tracker.save_pictures(
            draw(load_policy(file), selection_tasks(args)[0], args.output_dir, horizon=args.horizon)
        )
    tracker.save_file(file, "policy")
    tracker.close()
    folder.close()
    print(f"best selection loss {progress['best']:.4f}; policy saved to {file}")


def remember_range(file: Path, args: Args) -> None:
    """Measure what the selected policy sees on the tasks it has learned on, and store it with the policy."""
    args = dataclasses.replace(
        args, compile=False
    )  # compiling for these few would cost more than it saves
    policy = load_policy(file)
    batches = GUARD_BATCHES if args.suite == RANDOM else 1
    runs = max(1, args.guard_runs // batches)
    tasks = (task for batch in range(batches) for task in learning_tasks(args, batch))
    envs = (make_env(args, task, runs, selection=True) for task in tasks)
    try:
        save_policy(dataclasses.replace(policy, seen=observed_range(policy, envs)), file)
    except ValueError as error:
        print(f"the policy will have no guard: {error}")


def look_at(file: Path, args: Args) -> None:
    """Find out whether the selected policy is feedback, print it, and store it with the policy."""
    print("is it feedback, or a schedule?", flush=True)
    policy = load_policy(file)
    result = certificate(
        policy, *selection_tasks(args), runs=args.certificate_runs, horizon=args.horizon
    )
    save_policy(dataclasses.replace(policy, about={**policy.about, "certificate": result}), file)
    print(*describe(result), sep="\n")


def main(command: list[str]) -> None:
    """Build, then train."""
    torch.set_num_threads(1)  # the workers are the parallelism
    try:
        args = parse(command)
        if args.data_dir is not None:
            os.environ["LR_GYM_DATA"] = str(args.data_dir)
        parts = build(args)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    try:
        train(args, *parts)
    except OSError as error:  # a full disk, most likely
        sys.exit(
            f"error: {error}; what was saved before is intact: mend that, then continue with "
            "--resume"
        )
    except KeyboardInterrupt:
        sys.exit("stopped; continue with the same command and --resume")


if __name__ == "__main__":
    main(sys.argv[1:])
