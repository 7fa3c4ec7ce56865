"""Is a policy feedback, or only a schedule? It is compared with what it would be without observing.

    replay      each run gets the mean schedule that the policy chose in the other runs of the same
                task, layer and initial learning rate, and ends when these have ended on average; a
                policy that only plays a schedule ties
    shuffled    each run is shown the observations of another run of the same initial learning rate
    untrained   no action at all: the base optimizer and its schedule

All of them train the same seeds from the same initial learning rates, and are compared seed by seed
in log loss.

    python -m lr_gym.analysis.certificate builtin:default mnist1d-mlp
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.analysis.intervals import paired_difference
from lr_gym.control.action import FINISH_ABOVE
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import controlled_env, divergence, play
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import Policy, load_policy
from lr_gym.tasks import Task, find_task

__all__ = ["COMPARED", "FIRST_SEED", "TESTED", "certificate", "certificate_losses", "describe"]

# name of a control -> how `describe` speaks of it
CONTROLS = {
    "replay": "its own replayed mean schedule",
    "shuffled": "itself with another run's observations",
    "untrained": "the untrained policy",
}
COMPARED = tuple(CONTROLS)
# What is said before the lines of `describe`.
TESTED = (
    "This tests whether the policy needs what it observes: the same trainings were run with the "
    "mean schedule that it chose in other runs, with another run's observations, and without it."
)
# Seeds from here on are those of no training of an agent and of no selection of a policy.
FIRST_SEED = 1 << 41


def mean_of_others(offsets: Tensor, spec: ControlSpec, valid: Tensor) -> Tensor:
    """Actions that give each run the mean offsets of the other valid runs, and their mean end.

    Args:
        offsets: (T, B, L, A) offset of each control after each decision, as `play` returns them.
        spec: how the policy acts.
        valid: (B,) bool, the runs that did not diverge.

    Returns:
        (T, B, L, A) actions.
    """
    mean = _mean_of_others(offsets, valid.view(1, -1, 1, 1))
    mode = spec.mode
    if mode.recursive:  # an action changes the offset, so the change is what has to be played
        mean = torch.diff(mean, dim=0, prepend=torch.zeros_like(mean[:1]))
    actions = mean / mode.step
    if spec.finishes:
        # Once the end is decided a run keeps its offsets, so it was decided after the last decision
        # that did not end it; T stands for never.
        ends = offsets[..., -1].mean(2) > FINISH_ABOVE  # (T, B)
        decided = len(ends) - ends.flip(0).int().cumprod(0).sum(0)  # (B,)
        time = _mean_of_others(decided.to(offsets.dtype).unsqueeze(0), valid.unsqueeze(0)).round()
        finish = torch.arange(len(ends)).unsqueeze(1) >= time  # (T, B)
        actions[..., -1] = finish.to(actions.dtype).unsqueeze(2)
    return actions


def _mean_of_others(values: Tensor, valid: Tensor) -> Tensor:
    """For each run the mean of the values (T, B, ...) of the other runs that are valid."""
    weight = valid.to(values.dtype)  # (1, B, ...)
    others = (weight.sum() - weight).clamp_min(1.0)
    return ((values * weight).sum(1, keepdim=True) - values * weight) / others


def _final_losses(
    policy: Policy, env: LRControlVectorEnv, seeds: Sequence[int], split: str
) -> dict[str, NDArray[np.float64]]:
    """Final losses (B,) of the policy and of each of `COMPARED` on the same trainings."""

    def follow(observation: NDArray[np.float32], decision: int) -> Tensor:
        return policy.predict(torch.from_numpy(observation))[0]

    losses, offsets = play(env, seeds, follow, split)
    survived = torch.from_numpy(np.isfinite(losses))
    replayed = mean_of_others(offsets, policy.spec, survived).float()

    def replay(observation: NDArray[np.float32], decision: int) -> Tensor:
        return replayed[min(decision, len(replayed) - 1)]

    def shuffled(observation: NDArray[np.float32], decision: int) -> Tensor:
        return follow(np.roll(observation, 1, axis=0), decision)

    def untrained(observation: NDArray[np.float32], decision: int) -> Tensor:
        return torch.zeros_like(replayed[0])

    controls = {"replay": replay, "shuffled": shuffled, "untrained": untrained}
    compared = {name: play(env, seeds, act, split)[0] for name, act in controls.items()}
    return {"policy": losses, **compared}


def certificate_losses(
    policy: Policy,
    *tasks: str | Task,
    runs: int = 16,
    initial_lrs: Sequence[float] = (1e-4, 1e-3, 1e-2),
    horizon: int | None = None,
    split: str = "selection",
    seed: int = FIRST_SEED,
) -> dict[str, NDArray[np.float64]]:
    """Final losses of the policy and of each of `COMPARED`, paired by seed.

    Args:
        policy: a deterministic policy.
        tasks: what is trained, at least one task.
        runs: trainings from each initial learning rate, at least 2.
        initial_lrs: initial learning rates from which the policy starts.
        horizon: inner steps, None for the task's own.
        split: the split by which final losses are measured.
        seed: first row seed.

    Returns:
        Name -> (tasks x initial learning rates, runs) losses.

    Raises:
        ValueError: if there are fewer than 2 runs, or no tasks.
    """
    if runs < 2:
        raise ValueError(f"runs must be at least 2, for the mean over other runs; got {runs}")
    if not tasks:
        raise ValueError("tasks is empty: name at least one")
    seeds = [seed + i for i in range(runs)]
    found = [
        _final_losses(
            policy, controlled_env(policy.spec, task, runs, lr, horizon=horizon), seeds, split
        )
        for task, lr in itertools.product(tasks, initial_lrs)
    ]
    losses = {name: np.stack([row[name] for row in found]) for name in ("policy", *COMPARED)}
    limit = divergence(losses["untrained"])
    return {name: np.minimum(values, limit) for name, values in losses.items()}


def certificate(policy: Policy, *tasks: str | Task, **options: Any) -> dict[str, Any]:
    """The certificate as plain JSON values, to be stored with the policy.

    `differences` are policy minus control in log loss, the mean over seeds with its 95 % interval.
    The value of a seed is the mean over tasks and initial learning rates. Below 0 the policy is
    better.

    Args:
        policy: a deterministic policy.
        tasks: what is trained, at least one task.
        options: keyword arguments of `certificate_losses`.
    """
    losses = certificate_losses(policy, *tasks, **options)
    log = {
        name: np.log(np.maximum(values, 1e-8)).mean(0).tolist() for name, values in losses.items()
    }
    return {
        "task": ", ".join(find_task(task).name for task in tasks),
        "split": options.get("split", "selection"),
        "seeds": len(log["policy"]),
        "loss": {name: float(values.mean()) for name, values in losses.items()},
        "differences": {
            name: paired_difference(log["policy"], log[name])._asdict() for name in COMPARED
        },
    }


def describe(certificate: Mapping[str, Any]) -> list[str]:
    """The certificate in words: one line for each control, and the verdict."""
    lines = [
        f"The policy is {_verdict(gap)} {CONTROLS[name]}: log loss {gap['mean']:+.4f} "
        f"({gap['low']:+.4f} to {gap['high']:+.4f}), {certificate['seeds']} seeds."
        for name, gap in certificate["differences"].items()
    ]
    lines[0] = f"{lines[0].removesuffix('.')}; below 0 the policy has the lower loss."
    feedback = certificate["differences"]["replay"]["high"] < 0
    lines.append("It is feedback." if feedback else "It is not shown to be more than a schedule.")
    return lines


def _verdict(gap: Mapping[str, float]) -> str:
    if gap["high"] < 0:
        return "better than"
    return "worse than" if gap["low"] > 0 else "level with"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m lr_gym.analysis.certificate", description="Is a policy feedback?"
    )
    parser.add_argument("policy", help="file, output folder of train_agent.py, or builtin:NAME")
    parser.add_argument("tasks", nargs="+", help="names of lr_gym.tasks.TASKS")
    parser.add_argument(
        "--runs", type=int, default=16, help="trainings of each task and initial learning rate"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(TESTED)
    print(*describe(certificate(load_policy(args.policy), *args.tasks, runs=args.runs)), sep="\n")
