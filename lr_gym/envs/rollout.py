"""Play a policy to the end of a batch of trainings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.spec import ControlSpec
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import Policy
from lr_gym.tasks import Task

__all__ = ["DIVERGED", "controlled_env", "divergence", "final_losses", "play"]

DIVERGED = (
    1e3  # loss that a diverged training counts as, where losses are averaged and none comes near it
)


def divergence(before: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a diverged training counts as, and a loss at most, on each task: (T, 1).

    Args:
        before: losses (T, S) of the task without what is judged, inf where they diverged; ten times
            their median is taken where that is above DIVERGED.
    """
    middle = [
        float(np.median(row[np.isfinite(row)])) if np.isfinite(row).any() else 0.0 for row in before
    ]
    return np.maximum(DIVERGED, 10.0 * np.array(middle))[:, None]


def controlled_env(
    spec: ControlSpec,
    task: str | Task,
    runs: int,
    lr: float | tuple[float, float],
    *,
    horizon: int | None = None,
    render_mode: str | None = None,
) -> LRControlVectorEnv:
    """Trainings under a saved policy's controls, nothing masked, autoreset DISABLED.

    Args:
        spec: of the policy.
        task: what is trained.
        runs: how many trainings.
        lr: their initial learning rate, or the range from which each run draws its own.
        horizon: inner steps, the task's own by default.
        render_mode: of the environment.
    """
    return LRControlVectorEnv(
        task,
        spec,
        runs,
        horizon=horizon,
        initial_lr=lr if isinstance(lr, tuple) else (lr, lr),
        render_mode=render_mode,
        autoreset_mode=AutoresetMode.DISABLED,
    )


def play(
    env: LRControlVectorEnv,
    seeds: Sequence[int],
    act: Callable[[NDArray[np.float32], int], Tensor],
    split: str,
) -> tuple[NDArray[np.float64], Tensor]:
    """Play whole trainings.

    Args:
        env: made with autoreset_mode=DISABLED.
        seeds: row seed of each training.
        act: observation (B, L, F) and number of the decision -> control values (B, L, A).
        split: one of SPLITS.

    Returns:
        Loss (B,) on the split at the end of each training, inf where it diverged, and offsets (T,
        B, L, A) of the controls after each decision.
    """
    if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
        raise ValueError(
            "whole trainings need an environment made with autoreset_mode=AutoresetMode.DISABLED"
        )
    observation, _ = env.reset(seed=seeds)
    losses = np.full(env.num_envs, np.inf)
    finished = np.zeros(env.num_envs, dtype=bool)
    offsets: list[Tensor] = []
    while not finished.all():
        action = act(observation, len(offsets))
        observation, _, terminated, _, infos = env.step(action.numpy())
        offsets.append(env.runs.control.offset.clone())
        ended = terminated & ~finished
        if ended.any():
            survived = ended & ~infos["diverged"]
            losses[survived] = env.evaluate(split)[survived]
            finished |= ended
        if (
            terminated.any() and not finished.all()
        ):  # diverged runs start over, again and again, and are not looked at
            observation, _ = env.reset(options={"reset_mask": terminated})
    return losses, torch.stack(offsets)


def final_losses(
    env: LRControlVectorEnv, policy: Policy, seeds: Sequence[int], split: str
) -> NDArray[np.float64]:
    """Final losses (B,) of `play` under a deterministic policy."""
    return play(
        env, seeds, lambda observation, _: policy.predict(torch.from_numpy(observation))[0], split
    )[0]
