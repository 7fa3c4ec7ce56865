"""Train an agent that controls learning rates, and save its policy.

    python train_agent.py --agent ppo --task mnist1d-mlp --output-dir runs/ppo --seed 0

The output folder holds the policy with the best selection loss (policy.safetensors), the arguments, a checkpoint that
--resume continues from, and the figures of every update (progress.jsonl, and wandb unless disabled).
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode

import lr_gym
from agents.run_folder import RunFolder
from agents.sb3 import (
    AfterUpdate,
    LayerRowsVecEnv,
    PPOConfig,
    export_policy,
    load_ppo_state,
    make_ppo,
    ppo_state,
)
from lr_gym.policy import POLICY_FILE, save_policy
from lr_gym.rollout import final_losses
from lr_gym.tracking import Tracker
from lr_gym.types import check_count
from lr_gym.vector_env import INITIAL_LR, LRControlVectorEnv

SELECTION_SEED = 1 << 40  # row seeds of the trainings that select the policy: no training ever learns from them
MAY_CHANGE = ("timesteps", "wandb", "resume")


@dataclasses.dataclass(frozen=True)
class Args:
    """Train an agent that controls learning rates, and save its policy."""

    output_dir: Path
    """New folder for policy, checkpoint and logs; one that holds a run is never overwritten."""
    agent: Literal["ppo"] = "ppo"
    """Who learns: SB3's PPO."""
    task: str = "mnist1d-mlp"
    """What is trained, a name of lr_gym.tasks.TASKS."""
    seed: int = 0
    """Of the agent and of its trainings."""
    timesteps: int = 128_000
    """Decisions to learn from; those of all layers of a run count once."""
    control: Literal["per_layer", "global"] = "per_layer"
    """One row of control per layer, or one per run."""
    controls: tuple[str, ...] = ("lr",)
    """Hyperparameters to control, a part of: lr momentum noise."""
    action: Literal["recursive", "residual"] = "recursive"
    """Whether an action moves the lr from where it is or bends the base schedule."""
    base: Literal["adamw", "adam", "sgd"] = "adamw"
    """Base optimizer."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "wsd"
    """Base schedule."""
    decisions: int = 50
    """Decisions per training."""
    horizon: int | None = None
    """Inner steps per training; the task's own by default."""
    initial_lr: tuple[float, float] = INITIAL_LR
    """Range of the initial learning rate, log-uniform."""
    mask_loss: float = 0.1
    """Fraction of runs in which the policy does not see the loss, as in scripts that never call observe()."""
    mask_progress: float = 0.1
    """Fraction of runs that do not know their horizon, as in scripts that give no total_steps."""
    reward: str = "log_loss"
    """A name of lr_gym.reward.REWARDS."""
    num_envs: int = 64
    """Trainings at a time."""
    workers: int = 2 if (os.cpu_count() or 1) > 1 else 1
    """Threads that share the trainings; the result does not depend on it."""
    selection_runs: int = 64
    """Trainings by which the policy is selected; their loss is taken on the selection split."""
    selection_every: int = 5
    """Agent updates between two selections."""
    ppo: PPOConfig = dataclasses.field(default_factory=PPOConfig)
    """PPO's hyperparameters."""
    device: str = "cpu"
    """Where the trainings run; the agent's own network stays on the CPU."""
    resume: bool = False
    """Continue the run in the output folder, bit for bit."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where you are logged in and offline elsewhere."""


def make_env(args: Args, num_envs: int, *, selection: bool) -> LRControlVectorEnv:
    """The environment that the arguments describe; the one for selection masks nothing and plays each run once."""
    return LRControlVectorEnv(
        args.task,
        num_envs,
        control=args.control,
        controls=args.controls,
        action=args.action,
        base=args.base,
        schedule=args.schedule,
        decisions=args.decisions,
        horizon=args.horizon,
        initial_lr=args.initial_lr,
        reward=args.reward,
        mask_loss=0.0 if selection else args.mask_loss,
        mask_progress=0.0 if selection else args.mask_progress,
        device=args.device,
        autoreset_mode=AutoresetMode.DISABLED if selection else AutoresetMode.SAME_STEP,
    )


def build(args: Args) -> tuple[LayerRowsVecEnv, LRControlVectorEnv, RunFolder, dict[str, Any]]:
    """Environments, output folder and the arguments as plain values; a ValueError says what is wrong with them."""
    for name in ("timesteps", "num_envs", "workers", "selection_runs", "selection_every"):
        check_count(name, getattr(args, name))
    if args.num_envs % args.workers:
        raise ValueError(f"num_envs={args.num_envs} must be a multiple of workers={args.workers}")
    shares = [args.num_envs // args.workers] * args.workers
    env = LayerRowsVecEnv([make_env(args, share, selection=False) for share in shares])
    selection_env = make_env(args, args.selection_runs, selection=True)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(args).items()}
    folder = RunFolder(args.output_dir, config, resume=args.resume, may_change=MAY_CHANGE)
    return env, selection_env, folder, config


def train(
    args: Args,
    env: LayerRowsVecEnv,
    selection_env: LRControlVectorEnv,
    folder: RunFolder,
    config: dict[str, Any],
) -> None:
    """Agent -> train, selecting and saving the policy on the way."""
    task, first = selection_env.task, env.envs[0]
    selection_seeds = [SELECTION_SEED + i for i in range(args.selection_runs)]
    model = make_ppo(env, args.ppo, seed=args.seed)
    progress: dict[str, Any] = {"updates": 0, "best": math.inf}
    checkpoint = folder.load_checkpoint() if args.resume else None
    if checkpoint is not None:
        load_ppo_state(model, checkpoint["ppo"])
        progress = checkpoint["progress"]
    resume_step = progress["updates"] if args.resume else None
    tracker = Tracker(
        args.output_dir, config, wandb=args.wandb, name=f"{args.agent}-{task.name}", resume_step=resume_step
    )
    per_update = model.n_steps * args.num_envs
    total = max(1, round(args.timesteps / per_update))
    start, begun = time.monotonic(), progress["updates"]

    def after_update() -> None:
        progress["updates"] += 1
        update, episodes = progress["updates"], env.episodes
        env.episodes = []
        row = {key: float(np.mean([episode[key] for episode in episodes])) for key in episodes[0]}
        row |= {"inner_steps": update * args.num_envs * first.horizon}
        row |= {"action_std": float(model.policy.log_std.detach().exp().mean())}
        if update % args.selection_every == 0 or update == total:
            policy = export_policy(model, first.control_spec, first.inner_steps_per_decision, {})
            losses = final_losses(selection_env, policy, selection_seeds, "selection")
            row["selection_loss"] = float(losses.mean())
            if row["selection_loss"] < progress["best"]:
                progress["best"] = row["selection_loss"]
                about = {
                    "tasks": [task.name],
                    "agent": args.agent,
                    "seed": args.seed,
                    "updates": update,
                    "inner_steps": row["inner_steps"],
                    "selection_loss": row["selection_loss"],
                    "initial_lr": list(args.initial_lr),
                    "lr_gym": lr_gym.__version__,
                    "torch": torch.__version__,
                }
                save_policy(dataclasses.replace(policy, about=about), args.output_dir / POLICY_FILE)
        folder.save_checkpoint({"ppo": ppo_state(model), "progress": dict(progress)})
        tracker.log(row, update)
        left = (time.monotonic() - start) / (update - begun) * (total - update)
        selection = f"  selection loss {row['selection_loss']:.4f}" if "selection_loss" in row else ""
        print(
            f"update {update}/{total}  reward loss {row['reward_loss']:.4f}  diverged {row['diverged']:.0%}"
            f"{selection}  {left:.0f} s left",
            flush=True,
        )

    if progress["updates"] < total:
        model.learn(
            total * model.n_steps * env.num_envs - model.num_timesteps,
            callback=AfterUpdate(after_update),
            reset_num_timesteps=checkpoint is None,
        )
    tracker.save_file(args.output_dir / POLICY_FILE, "policy")
    tracker.close()
    env.close()
    folder.close()
    print(f"best selection loss {progress['best']:.4f}; policy saved to {args.output_dir / POLICY_FILE}")


def main(args: Args) -> None:
    """Build, then train."""
    torch.set_num_threads(1)  # the workers are the parallelism
    try:
        parts = build(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    train(args, *parts)


if __name__ == "__main__":
    main(tyro.cli(Args))
