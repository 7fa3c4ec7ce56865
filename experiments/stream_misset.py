"""Does a policy for streams find its way from a wrong initial learning rate?

Each stream is trained from initial learning rates that are 0.01 to 100 times 1e-3. The figures are
mean losses above the floor after the first tenth of the stream, and how far the logarithm is above
that of the initial rate which did best on that stream, the mean over runs.

    python -m experiments.stream_misset builtin:stream stream-mnist1d-labels stream-flights
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.analysis.certificate import FIRST_SEED
from lr_gym.envs.rollout import controlled_env
from lr_gym.policies.policy import Policy, load_policy

FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)
RATE = 1e-3


def course(policy: Policy, task: str, seeds: Sequence[int], lr: float) -> NDArray[np.float64]:
    """Loss above the floor (decisions, runs) of each interval, infinite once a run has diverged."""
    env = controlled_env(policy.spec, task, len(seeds), lr)
    observation, _ = env.reset(seed=seeds)
    decisions = -(-env.horizon // env.inner_steps_per_decision)
    alive = np.ones(len(seeds), dtype=bool)
    losses = []
    for _ in range(decisions):
        action = policy.predict(torch.from_numpy(observation))[0]
        observation, reward, terminated, truncated, _ = env.step(action.numpy())
        alive &= ~terminated
        losses.append(np.where(alive, -reward, np.inf))
        if terminated.any() and not truncated.any():
            observation, _ = env.reset(options={"reset_mask": terminated})
    return np.array(losses)


def main() -> None:
    """Print the figures of each stream."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", help="file, output folder of train_agent.py, or builtin:NAME")
    parser.add_argument("tasks", nargs="+", help="names of streams")
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(args.policy)
    seeds = [FIRST_SEED + i for i in range(args.runs)]
    for task in args.tasks:
        late = {}
        for factor in FACTORS:
            losses = course(policy, task, seeds, RATE * factor)
            late[factor] = losses[len(losses) // 10 :].mean(0)
        best = min(late.values(), key=np.mean)
        gaps = {str(f): float(np.mean(np.log(loss / best))) for f, loss in late.items()}
        means = {str(f): float(loss.mean()) for f, loss in late.items()}
        print(json.dumps({"task": task, "loss": means, "log_minus_best": gaps}), flush=True)


if __name__ == "__main__":
    main()
