"""The ranges of what a policy sees and does on the tasks that it has learned on.

By these ranges the guard of a deployed policy recognises trainings unlike those.

    python -m lr_gym.analysis.measure_ranges runs/ppo mnist1d-mlp

measures the ranges for an existing policy, which has learned on the named tasks, and stores them in
its file.
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

# Seeds from here on are those of no training of an agent, no selection and no certificate.
FIRST_SEED = 3 << 40
RUNS = 32  # trainings of each task, each from an initial learning rate of its own
# Features whose whole range has been learned from, whatever the measured trainings show of it: how
# far the training is, and what the policy itself did last.
FULLY_KNOWN = ("progress", "remaining", "last_action_lr")


def observed_range(
    policy: Policy, envs: Iterable[LRControlVectorEnv], seed: int = FIRST_SEED
) -> ObservedRanges:
    """Play a policy and take the range, lowest to highest, of all that it sees and does.

    Quantiles would not do: the rarest observations, such as the first ones from the largest
    learning rate, are no outliers. Trainings that diverge are left out, because nobody wants to
    trust what led there.

    Args:
        policy: a deterministic policy.
        envs: environments with the tasks and initial learning rates that the policy learned on,
            made with autoreset_mode=DISABLED.
        seed: first row seed of each environment.

    Raises:
        ValueError: if every training diverged.
    """
    features = []
    offsets = []
    lrs = []
    for env in envs:
        seen, moved = _seen_and_done(policy, env, seed)
        features.append(seen)
        offsets.append(moved)
        lrs.append(_lr_range_in_units(env))
    feature_range = _range(np.concatenate(features))  # (2, F)
    for i, name in enumerate(policy.spec.features):
        if name in FULLY_KNOWN:
            feature_range[:, i] = torch.tensor([-1.0, 1.0])
    lows, highs = zip(*lrs, strict=True)
    lr_range = torch.tensor([min(lows), max(highs)])
    return ObservedRanges(feature_range, _range(np.concatenate(offsets)), lr_range)


def _seen_and_done(
    policy: Policy, env: LRControlVectorEnv, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.floating]]:
    """Observations (R, F) and offsets (R, A) of all decisions in trainings that do not diverge."""
    observations: list[NDArray[np.float32]] = []  # (B, L, F) each

    def act(observation: NDArray[np.float32], decision: int) -> Tensor:
        observations.append(observation)
        return policy.predict(torch.from_numpy(observation))[0]

    losses, offsets = play(env, [seed + i for i in range(env.num_envs)], act, "selection")
    alive = np.isfinite(losses)
    seen = np.stack(observations)[:, alive].reshape(-1, len(policy.spec.features))
    moved = offsets.cpu().numpy()[:, alive].reshape(-1, len(policy.spec.controls))
    return seen, moved


def _lr_range_in_units(env: LRControlVectorEnv) -> tuple[float, float]:
    """Lowest and highest initial learning rate over unit, of all layers."""
    low, high = env.initial_lr
    return low / float(env.lr_units.max()), high / float(env.lr_units.min())


def _range(rows: NDArray[np.floating]) -> Tensor:
    """Lowest and highest values (2, N) of rows (R, N), float32."""
    if not len(rows):
        raise ValueError("every training of the policy diverged: there is no range to trust")
    return torch.from_numpy(np.stack([rows.min(0), rows.max(0)]).astype(np.float32))


def main(path: str, *tasks: str) -> None:
    """Measure and store the ranges of a policy file or of a training's output folder."""
    policy = load_policy(path)
    low, high = policy.about.get("initial_lr", INITIAL_LR)
    envs = (controlled_env(policy.spec, task, RUNS, (low, high)) for task in tasks)
    file = Path(path) / POLICY_FILE if Path(path).is_dir() else Path(path)
    save_policy(dataclasses.replace(policy, ranges=observed_range(policy, envs)), file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m lr_gym.analysis.measure_ranges", description=main.__doc__
    )
    parser.add_argument("policy", help="file or output folder of train_agent.py")
    parser.add_argument(
        "tasks", nargs="+", help="tasks that it has learned on, names of lr_gym.tasks.TASKS"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    main(args.policy, *args.tasks)
