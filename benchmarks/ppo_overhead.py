"""Share of a training's time that is not the inner trainings.

PPO's own, and that of checkpoints and logs.

PYTHONPATH=. python benchmarks/ppo_overhead.py
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import torch
import tyro

import train_agent
from agents.sb3 import make_ppo, ppo_state
from lr_gym.tracking import Tracker


@dataclasses.dataclass(frozen=True)
class Args:
    """Share of a training's time that PPO itself takes."""

    updates: int = 3
    """Rollouts and updates to time, after one to warm up."""
    workers: int = 2
    """As in train_agent.py."""


def main(args: Args) -> None:
    """Time the environment's part of `learn` and the whole."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        settings = train_agent.Args(output_dir=Path(folder), workers=args.workers, wandb="disabled")
        env, _, run_folder, config = train_agent.build(settings)
        model = make_ppo(env, settings.ppo, seed=0)
        per_update = model.n_steps * env.num_envs
        model.learn(per_update)
        inside, step_wait = 0.0, env.step_wait

        def timed() -> object:
            nonlocal inside
            start = time.perf_counter()
            result = step_wait()
            inside += time.perf_counter() - start
            return result

        env.step_wait = timed  # type: ignore[method-assign]
        start = time.perf_counter()
        model.learn(args.updates * per_update, reset_num_timesteps=False)
        total = time.perf_counter() - start
        tracker = Tracker(settings.output_dir, config, wandb="disabled", name="overhead")
        start = time.perf_counter()
        for update in range(args.updates):
            run_folder.save_checkpoint({"ppo": ppo_state(model), "progress": {"updates": update}})
            tracker.log(
                {"reward_loss": 1.0, "return": 1.0, "diverged": 0.0, "inner_steps": update}, update
            )
        saving = time.perf_counter() - start
        tracker.close()
        env.close()
        run_folder.close()
    steps = args.updates * settings.num_envs * env.envs[0].horizon
    print(
        f"{args.updates} updates of {settings.num_envs} runs, {args.workers} workers: "
        f"{total / args.updates:.2f} s each, {steps / inside:.0f} inner steps/s, "
        f"PPO itself {1 - inside / total:.1%} of the time, checkpoints and logs "
        f"{saving / total:.1%}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
