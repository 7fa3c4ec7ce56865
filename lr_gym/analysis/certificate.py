"""Is a policy feedback, or only a schedule? It is compared with what it would be without its observations.

    replay      each run is given the mean schedule that the policy chose in the other runs of the same task, layer and
                initial learning rate; a policy that only plays a schedule ties with this
    shuffled    each run is shown the observations of another run of the same initial learning rate
    untrained   no action at all: the base optimizer and its schedule

All play the same seeds from the same initial learning rates, and are compared seed by seed in log loss.

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

from lr_gym.benchmark.metrics import paired_difference
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import controlled_env, divergence, play
from lr_gym.policies.policy import Policy, load_policy
from lr_gym.tasks import Task, find_task

__all__ = ["COMPARED", "FIRST_SEED", "certificate", "certificate_losses", "describe"]

COMPARED = ("replay", "shuffled", "untrained")
FIRST_SEED = 1 << 41  # row seeds that no agent learns from and by which no policy is selected


def mean_of_others(offsets: Tensor, spec: ControlSpec, valid: Tensor) -> Tensor:
    """Actions (T, B, L, A) that give each run the mean offsets of the other valid runs (B,) bool."""
    weight = valid.to(offsets.dtype).view(1, -1, 1, 1)
    others = (weight.sum() - weight).clamp_min(1.0)
    mean = ((offsets * weight).sum(1, keepdim=True) - offsets * weight) / others
    mode = spec.mode
    if mode.recursive:
        mean = torch.diff(mean, dim=0, prepend=torch.zeros_like(mean[:1]))
    return mean / mode.step


def certificate_losses(
    policy: Policy,
    *tasks: str | Task,
    runs: int = 16,
    initial_lrs: Sequence[float] = (1e-4, 1e-3, 1e-2),
    horizon: int | None = None,
    split: str = "selection",
    seed: int = FIRST_SEED,
) -> dict[str, NDArray[np.float64]]:
    """Final losses (tasks x initial lrs, runs) of the policy and of each of `COMPARED`, paired by seed.

    Args:
        policy: deterministic.
        tasks: what is trained, at least one.
        runs: trainings from each initial learning rate, at least 2.
        initial_lrs: from which the policy starts.
        horizon: inner steps, the task's own by default.
        split: by which final losses are taken.
        seed: first row seed.
    """
    if runs < 2:
        raise ValueError(f"runs must be at least 2, for the mean over other runs; got {runs}")
    if not tasks:
        raise ValueError("tasks is empty: name at least one")
    spec, seeds = policy.spec, [seed + i for i in range(runs)]
    columns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ("policy", *COMPARED)}
    for task, lr in itertools.product(tasks, initial_lrs):
        env = controlled_env(spec, task, runs, lr, horizon=horizon)

        def follow(observation: NDArray[np.float32], _: int) -> Tensor:
            return policy.predict(torch.from_numpy(observation))[0]

        losses, offsets = play(env, seeds, follow, split)
        replayed = mean_of_others(offsets, spec, torch.from_numpy(np.isfinite(losses))).float()
        columns["policy"].append(losses)
        columns["replay"].append(
            play(env, seeds, lambda _, t: replayed[min(t, len(replayed) - 1)], split)[0]
        )
        columns["shuffled"].append(
            play(env, seeds, lambda o, t: follow(np.roll(o, 1, axis=0), t), split)[0]
        )
        columns["untrained"].append(
            play(env, seeds, lambda *_: torch.zeros_like(replayed[0]), split)[0]
        )
    limit = divergence(np.stack(columns["untrained"]))
    return {name: np.minimum(np.stack(column), limit) for name, column in columns.items()}


def certificate(policy: Policy, *tasks: str | Task, **options: Any) -> dict[str, Any]:
    """The certificate as plain JSON values, to be stored with the policy.

    Its `differences` are policy minus control in log loss, the mean over seeds (each the mean over
    tasks and initial learning rates) with its 95 % interval: below 0 the policy is better. Options
    are `certificate_losses`'s.
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
    """The certificate in words, a line per control."""
    about = {
        "replay": "its own replayed mean schedule",
        "shuffled": "itself with another run's observations",
        "untrained": "the untrained policy",
    }
    lines = []
    for name, gap in certificate["differences"].items():
        verdict = (
            "better than" if gap["high"] < 0 else "worse than" if gap["low"] > 0 else "level with"
        )
        interval = f"{gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})"
        lines.append(
            f"The policy is {verdict} {about[name]}: log loss {interval}, {certificate['seeds']} "
            "seeds."
        )
    feedback = certificate["differences"]["replay"]["high"] < 0
    lines.append("It is feedback." if feedback else "It is not shown to be more than a schedule.")
    return lines


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
    print(*describe(certificate(load_policy(args.policy), *args.tasks, runs=args.runs)), sep="\n")
