"""Scores of policies, and of fixed learning rates, on the suite `validation`.

This is how we choose between candidates for a built-in policy. The score is the interquartile mean,
over tasks and trainings, of log(loss / the task's median loss under the base schedule alone),
exponentiated; 1 is as good as no control, less is better. Each training of a policy starts from a
learning rate of its own, log-uniform in 3e-5..1e-1. SCHEDULE:LR is AdamW under that schedule, and
always starts from that rate, which favours it.

    python -m experiments.validation_score builtin:default runs/ppo wsd:3e-3 wsd:1e-2:sgd
    python -m experiments.validation_score builtin:anytime constant:3e-3:adamw:16

Before 2026-11-28 the suite was: --tasks mnist1d-cnn titanic-mlp titanic-mlp-long rosenbrock
diamonds-mlp flights-mlp
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.benchmark.above_optimum import above_optimum
from lr_gym.benchmark.scores import relative_loss
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import DIVERGED, controlled_env, final_losses
from lr_gym.envs.vector_env import INITIAL_LR
from lr_gym.policies.policy import Policy, constant_policy, load_policy
from lr_gym.tasks import SUITES
from lr_gym.updates.schedules import SCHEDULES

FIRST_SEED = 1 << 40  # the row seeds with which train_agent.py selects
SUITE = tuple(SUITES["validation"])


def losses(
    policy: Policy, lr: float | tuple[float, float], runs: int, tasks: Sequence[str] = SUITE
) -> NDArray[np.float64]:
    """Final selection losses (tasks, runs) of a policy."""
    seeds = [FIRST_SEED + i for i in range(runs)]
    envs = (controlled_env(policy.spec, task, runs, lr) for task in tasks)
    return np.stack(
        [np.minimum(final_losses(env, policy, seeds, "selection"), DIVERGED) for env in envs]
    )


def alone(runs: int, tasks: Sequence[str] = SUITE) -> NDArray[np.float64]:
    """`losses` of the base schedule alone."""
    return losses(constant_policy(ControlSpec(), 10), INITIAL_LR, runs, tasks)


def scheduled(
    runs: int,
    tasks: Sequence[str],
    schedule: str,
    lr: str,
    base: str = "adamw",
    average: str | None = None,
) -> NDArray[np.float64]:
    """`losses` of a base optimizer under a schedule, of averaged weights or the last."""
    spec = ControlSpec(
        schedule=schedule, base=base, average=None if average is None else float(average)
    )
    return losses(constant_policy(spec, 10), float(lr), runs, tasks)


def candidate(name: str, runs: int, tasks: Sequence[str]) -> NDArray[np.float64]:
    """`losses` of a policy, or of SCHEDULE:LR[:BASE[:AVERAGE]]."""
    if name.partition(":")[0] in SCHEDULES:
        return scheduled(runs, tasks, *name.split(":"))
    return losses(load_policy(name), INITIAL_LR, runs, tasks)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("candidates", nargs="+", help="policies, or SCHEDULE:LR[:BASE[:AVERAGE]]")
    parser.add_argument("--runs", type=int, default=16, help="trainings on each task")
    parser.add_argument(
        "--tasks", nargs="+", default=SUITE, help="tasks to use instead of the suite"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    before = above_optimum(alone(args.runs, args.tasks), args.tasks)
    print("| candidate | score |", " | ".join(args.tasks), "|")
    print("|---" * (2 + len(args.tasks)) + "|")
    for name in args.candidates:
        found = candidate(name, args.runs, args.tasks)
        score = relative_loss(above_optimum(found, args.tasks), before)
        medians = " | ".join(f"{median:.4g}" for median in np.median(found, axis=1))
        print(f"| {name} | {score:.3f} | {medians} |", flush=True)


if __name__ == "__main__":
    main()
