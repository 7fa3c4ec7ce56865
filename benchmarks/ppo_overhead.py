"""Share of a training's time that PPO itself takes, and that checkpoints and logs take.

    python -m benchmarks.ppo_overhead

The rest is the environment's: the inner trainings, which any agent has to pay for.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro

import train_agent
from agents import arguments
from agents.sb3 import LayerRowsVecEnv, PPOLearner
from lr_gym.tracking import Tracker


@dataclasses.dataclass(frozen=True)
class Args:
    """Share of a training's time that PPO itself takes."""

    updates: int = 3
    """Rollouts and updates to time, after one to warm up."""
    workers: int = 2
    """Threads that share the trainings, as in train_agent.py."""
    num_envs: int = 64
    """Trainings at a time, as in train_agent.py."""
    horizon: int | None = None
    """Inner steps of a training; the task's own by default."""


class Stopwatch:
    """Seconds spent in a function, over all calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """The function, timed."""

        def timed() -> Any:
            start = time.perf_counter()
            result = function()
            self.seconds += time.perf_counter() - start
            return result

        return timed


def main(args: Args) -> None:
    """Time the environment's part of the updates and the whole."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments.Args(
            output_dir=Path(folder),
            workers=args.workers,
            num_envs=args.num_envs,
            horizon=args.horizon,
            wandb="disabled",
        )
        learner, _, run_folder, config = train_agent.build(settings)
        assert isinstance(learner, PPOLearner)
        env = learner.model.get_env()
        assert isinstance(env, LayerRowsVecEnv)
        learner.update()  # warms up
        watch = Stopwatch()
        env.step_wait = watch.around(env.step_wait)  # type: ignore[method-assign]
        start = time.perf_counter()
        for _ in range(args.updates):
            learner.update()
        total = time.perf_counter() - start
        tracker = Tracker(settings.output_dir, config, wandb="disabled", name="overhead")
        start = time.perf_counter()
        for update in range(args.updates):
            run_folder.save_checkpoint({"learner": learner.state_dict()})
            tracker.log({"reward_loss": 1.0, "diverged": 0.0}, update)
        saving = time.perf_counter() - start
        horizon = env.envs[0].horizon
        tracker.close()
        env.close()
        run_folder.close()
    steps = args.updates * args.num_envs * horizon
    print(
        f"{args.updates} updates of {args.num_envs} runs, {args.workers} workers: "
        f"{total / args.updates:.2f} s each, {steps / watch.seconds:.0f} inner steps/s, "
        f"PPO itself {1 - watch.seconds / total:.1%} of the time, checkpoints and logs "
        f"{saving / total:.1%}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
