"""Pictures of what a policy does: layers' learning rates as a heat map, a training as a film."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.analysis.certificate import FIRST_SEED
from lr_gym.envs.rollout import controlled_env
from lr_gym.files import write_atomically
from lr_gym.policies.policy import Policy
from lr_gym.tasks import Task

__all__ = ["draw"]

FRAME_MILLISECONDS = 100


def draw(
    policy: Policy, task: str | Task, folder: Path, *, lr: float = 1e-3, horizon: int | None = None
) -> tuple[Path, Path]:
    """Play one training and write `layer_lr.png` and `episode.gif`.

    Args:
        policy: the policy that is shown.
        task: what is trained.
        folder: an existing folder for the files.
        lr: initial learning rate.
        horizon: inner steps, None for the task's own.

    Returns:
        The two files.
    """
    env = controlled_env(policy.spec, task, 1, lr, horizon=horizon, render_mode="rgb_array")
    observation, info = env.reset(seed=[FIRST_SEED])
    rates = [info["lr"][0]]  # (L,) each
    frames = [env.render()[0]]
    ended = False
    while not ended:
        action, _ = policy.predict(torch.from_numpy(observation))
        observation, _, terminated, truncated, info = env.step(action.numpy())
        ended = bool(terminated[0] or truncated[0])
        rates.append(info["lr"][0])
        frames.append(env.render()[0])
    picture = folder / "layer_lr.png"
    film = folder / "episode.gif"
    write_atomically(picture, _heat_map(np.array(rates), env.inner.layout.names, env.horizon))
    write_atomically(film, _film(frames))
    return picture, film


def _heat_map(rates: NDArray[np.float64], names: tuple[str, ...], horizon: int) -> bytes:
    """PNG of learning rates (T, L) on a log scale: time to the right, layers downwards."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.5 + 0.25 * len(names)), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    values = np.log10(np.maximum(rates.T, 1e-12))
    image = axes.imshow(values, aspect="auto", extent=(0, horizon, len(names), 0), cmap="viridis")
    axes.set(xlabel="inner step", yticks=[i + 0.5 for i in range(len(names))], yticklabels=names)
    ticks = list(range(math.floor(values.min()), math.ceil(values.max()) + 1))
    figure.colorbar(image, label="log10 learning rate", ticks=ticks)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _film(frames: list[Any]) -> bytes:
    """Looping GIF of RGB frames (height, width, 3)."""
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=FRAME_MILLISECONDS,
        loop=0,
    )
    return buffer.getvalue()
