"""Play a policy to the end of a batch of trainings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from lr_gym.control import ControlSpec
from lr_gym.policy import Policy
from lr_gym.tasks import Task
from lr_gym.vector_env import LRControlVectorEnv

__all__ = ["controlled_env", "final_losses"]


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
        runs,
        control=spec.control,
        controls=spec.controls,
        action=spec.action,
        action_step=spec.action_step,
        base=spec.base,
        schedule=spec.schedule,
        decisions=spec.decisions,
        features=spec.features,
        horizon=horizon,
        initial_lr=lr if isinstance(lr, tuple) else (lr, lr),
        render_mode=render_mode,
        autoreset_mode=AutoresetMode.DISABLED,
    )


def final_losses(env: LRControlVectorEnv, policy: Policy, seeds: Sequence[int], split: str) -> NDArray[np.float64]:
    """Loss on a split at the end of each training, inf where it diverged: (B,).

    Args:
        env: made with autoreset_mode=DISABLED.
        policy: plays deterministically.
        seeds: row seed of each training.
        split: one of SPLITS.
    """
    if env.metadata["autoreset_mode"] != AutoresetMode.DISABLED:
        raise ValueError("final_losses needs an environment made with autoreset_mode=AutoresetMode.DISABLED")
    observation, _ = env.reset(seed=seeds)
    losses = np.full(env.num_envs, np.inf)
    finished = np.zeros(env.num_envs, dtype=bool)
    while not finished.all():
        action, _ = policy.predict(torch.from_numpy(observation))
        observation, _, terminated, _, infos = env.step(action.numpy())
        ended = terminated & ~finished
        if ended.any():
            survived = ended & ~infos["diverged"]
            losses[survived] = env.evaluate(split)[survived]
            finished |= ended
            if not finished.all():  # diverged runs start over and are not looked at again
                observation, _ = env.reset(options={"reset_mask": terminated})
    return losses
