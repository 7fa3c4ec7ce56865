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

# The loss of a diverged training where losses are averaged; no other loss comes near it.
DIVERGED = 1e3


def divergence(before: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest loss (T, 1) that a training counts with on each task, diverged or not.

    It is DIVERGED, or ten times the median of `before` where that is more.

    Args:
        before: (T, S) final losses of S trainings of each of T tasks, to compare with; inf where a
            training diverged.
    """
    limits = []
    for losses in before:
        finite = losses[np.isfinite(losses)]
        limits.append(max(DIVERGED, 10.0 * float(np.median(finite))) if len(finite) else DIVERGED)
    return np.array(limits)[:, None]


def controlled_env(
    spec: ControlSpec,
    task: str | Task,
    runs: int,
    lr: float | tuple[float, float],
    *,
    horizon: int | None = None,
    render_mode: str | None = None,
) -> LRControlVectorEnv:
    """Make an environment for a saved policy.

    Nothing is masked, and runs that ended wait for a reset.

    Args:
        spec: spec of the policy.
        task: what is trained.
        runs: number of trainings.
        lr: initial learning rate of all runs, or the range from which each run draws its own.
        horizon: inner steps of a training; the task's own by default.
        render_mode: render mode of the environment.
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
        env: environment made with autoreset_mode=DISABLED.
        seeds: row seed of each training.
        act: function (observation (B, L, F), number of the decision) -> values (B, L, A).
        split: split on which the final losses are taken, one of SPLITS.

    Returns:
        Loss (B,) at the end of each training, inf where it diverged, and offsets (T, B, L, A) of
        the controls after each decision; a training that is over keeps those of its end.

    Raises:
        ValueError: for an environment that restarts runs by itself.
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
        observation, _, terminated, truncated, infos = env.step(action.numpy())
        offset = env.runs.control.offset
        if finished.any():
            over = torch.from_numpy(finished).to(offset.device).view(-1, 1, 1)
            offset = torch.where(over, offsets[-1], offset)
        offsets.append(offset.clone())
        restarting = terminated | truncated
        ended = restarting & ~finished
        if ended.any():
            survived = ended & ~infos["diverged"]
            losses[survived] = env.evaluate(split)[survived]
            finished |= ended
        # The environment steps all rows together, so runs that are over start again. What they do
        # then does not count.
        if restarting.any() and not finished.all():
            observation, _ = env.reset(options={"reset_mask": restarting})
    return losses, torch.stack(offsets)


def final_losses(
    env: LRControlVectorEnv, policy: Policy, seeds: Sequence[int], split: str
) -> NDArray[np.float64]:
    """Final losses (B,) of `play` under a deterministic policy."""

    def act(observation: NDArray[np.float32], _: int) -> Tensor:
        return policy.predict(torch.from_numpy(observation))[0]

    return play(env, seeds, act, split)[0]
