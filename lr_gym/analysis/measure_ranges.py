"""What a policy sees on its tasks.

The ranges by which the guard of the deployed policy tells the unknown.

    python -m lr_gym.analysis.measure_ranges runs/ppo mnist1d-mlp

measures them for an existing policy, which has learned on the tasks that are named, and stores them
in its file.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.envs.rollout import controlled_env, play
from lr_gym.envs.vector_env import INITIAL_LR, LRControlVectorEnv
from lr_gym.policies.policy import POLICY_FILE, Policy, load_policy, save_policy
from lr_gym.policies.ranges import ObservedRanges

__all__ = ["FIRST_SEED", "RUNS", "observed_range"]

FIRST_SEED = (
    3 << 40
)  # row seeds that no agent learns from, by which no policy is selected or certified
RUNS = 32  # trainings of each task, from initial learning rates of their own


def observed_range(
    policy: Policy, envs: Iterable[LRControlVectorEnv], seed: int = FIRST_SEED
) -> ObservedRanges:
    """Play a deterministic policy and take the range of all that it sees and does, lowest to highest.

    No quantiles: the rarest observations, such as the first ones from the largest learning rate, are no outliers.
    Trainings that diverge are left out: nobody wants to trust what led there. How far the training is and what the
    policy itself did last have been learned from in full, whatever these trainings show of it.

    Args:
        policy: deterministic.
        envs: what it learned on: their tasks and initial learning rates; made with autoreset_mode=DISABLED.
        seed: first row seed of each environment.

    Raises:
        ValueError: where every training diverged.
    """
    spec = policy.spec
    observations, offsets, lrs = [], [], []
    for env in envs:
        shown: list[NDArray[np.float32]] = []

        def act(
            observation: NDArray[np.float32], _: int, shown: list[NDArray[np.float32]] = shown
        ) -> Tensor:
            shown.append(observation)
            return policy.predict(torch.from_numpy(observation))[0]

        losses, moved = play(env, [seed + i for i in range(env.num_envs)], act, "selection")
        alive = np.isfinite(losses)
        observations.append(np.stack(shown)[:, alive].reshape(-1, len(spec.features)))
        offsets.append(moved.cpu().numpy()[:, alive].reshape(-1, len(spec.controls)))
        lrs.append(env.initial_lr)
    features = _range(np.concatenate(observations))
    for i, name in enumerate(spec.features):
        if name in ("progress", "remaining", "last_action_lr"):
            features[:, i] = torch.tensor([-1.0, 1.0])
    lows, highs = zip(*lrs, strict=True)
    return ObservedRanges(
        features, _range(np.concatenate(offsets)), torch.tensor([min(lows), max(highs)])
    )


def _range(rows: NDArray[np.floating]) -> Tensor:
    """Low and high (2, N) of rows (R, N), float32."""
    if not len(rows):
        raise ValueError("every training of the policy diverged: there is no range to trust")
    return torch.from_numpy(np.stack([rows.min(0), rows.max(0)]).astype(np.float32))


def main(path: str, *tasks: str) -> None:
    """Measure and store the ranges of a policy file or of a training's output folder."""
    policy = load_policy(path)
    low, high = policy.about.get("initial_lr", INITIAL_LR)
    envs = (controlled_env(policy.spec, task, RUNS, (low, high)) for task in tasks)
    file = Path(path) / POLICY_FILE if Path(path).is_dir() else Path(path)
    save_policy(dataclasses.replace(policy, seen=observed_range(policy, envs)), file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m lr_gym.analysis.measure_ranges", description=main.__doc__
    )
    parser.add_argument("policy", help="file or output folder of train_agent.py")
    parser.add_argument(
        "tasks", nargs="+", help="that it has learned on, names of lr_gym.tasks.TASKS"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    main(args.policy, *args.tasks)
