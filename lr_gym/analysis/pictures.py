"""What a policy does, to look at.

Each layer's learning rate as a heat map, and a training as a film.
"""

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


def draw(
    policy: Policy, task: str | Task, folder: Path, *, lr: float = 1e-3, horizon: int | None = None
) -> tuple[Path, Path]:
    """Play one training and write `layer_lr.png` and `episode.gif`.

    Args:
        policy: what is shown.
        task: what is trained.
        folder: an existing one.
        lr: initial learning rate.
        horizon: inner steps, the task's own by default.

    Returns:
        The two files.
    """
    env = controlled_env(policy.spec, task, 1, lr, horizon=horizon, render_mode="rgb_array")
    observation, info = env.reset(seed=[FIRST_SEED])
    rates, frames, ended = [info["lr"][0]], [env.render()[0]], False
    while not ended:
        action, _ = policy.predict(torch.from_numpy(observation))
        observation, _, terminated, _, info = env.step(action.numpy())
        ended = bool(terminated[0])
        rates.append(info["lr"][0])
        frames.append(env.render()[0])
    picture, film = folder / "layer_lr.png", folder / "episode.gif"
    write_atomically(picture, _heat_map(np.array(rates), env.inner.layout.names, env.horizon))
    write_atomically(film, _film(frames))
    return picture, film


def _heat_map(rates: NDArray[np.float64], names: tuple[str, ...], horizon: int) -> bytes:
    """PNG of learning rates (T, L), layers downwards, on a log scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.5 + 0.25 * len(names)), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    values = np.log10(np.maximum(rates.T, 1e-12))
    image = axes.imshow(values, aspect="auto", extent=(0, horizon, len(names), 0), cmap="viridis")
    axes.set(xlabel="inner step", yticks=[i + 0.5 for i in range(len(names))], yticklabels=names)
    low, high = math.floor(values.min()), math.ceil(values.max())
    figure.colorbar(image, label="log10 learning rate", ticks=list(range(low, high + 1)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _film(frames: list[Any]) -> bytes:
    """Looping GIF of RGB frames (height, width, 3), ten a second."""
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=100, loop=0)
    return buffer.getvalue()
