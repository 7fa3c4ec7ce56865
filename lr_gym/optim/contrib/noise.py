"""Normal noise for gradients: its size, and generators whose state is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.base import wide_norm
from lr_gym.types import numbers_like

__all__ = ["NOISE_NORMS", "NOISE_SCALES", "NoiseSource", "gradient_sizes", "noise_stds_"]

NOISE_SCALES = ("rms", "norm")
NOISE_NORMS = ("parameter", "global")


def gradient_sizes(grads: Sequence[Tensor], noise_scale: str, noise_norm: str) -> list[Tensor]:
    """The size S of each gradient, in float32.

    Args:
        grads: gradients of any shapes.
        noise_scale: "norm" makes S = ||g||. "rms" makes S = ||g|| / sqrt(n): noise with that std
            for each element is as long as g itself.
        noise_norm: "parameter" measures each tensor alone. "global" measures all tensors together,
            without those that are not finite, and gives all of them that size.
    """
    norms = [wide_norm(g) for g in grads]
    counts = [g.numel() if noise_scale == "rms" else 1 for g in grads]
    if noise_norm == "parameter":
        return [norm * count**-0.5 for norm, count in zip(norms, counts, strict=True)]
    squares = torch.stack([norm.to(norms[0]).square() for norm in norms])
    finite = squares.isfinite()
    count: Tensor | float = 1.0
    if noise_scale == "rms":
        count = torch.where(finite, numbers_like(counts, squares), 0.0).sum()
    size = (torch.where(finite, squares, 0.0).sum() / count).sqrt()
    return [size.to(norm) for norm in norms]


def noise_stds_(
    sizes: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    *,
    sigma: float,
    beta: float,
    floor: float,
) -> list[Tensor]:
    """The std max(sigma * S, floor) of the noise on each tensor.

    S is averaged over time. The average starts at 0 and is divided by 1 - beta^t. (The user's
    document starts it at 1 *and* divides, which makes the first noise 1000 times too large for
    beta 0.999.) A state without the average starts with the present size.

    Args:
        sizes: present size S of each gradient.
        states: state of each parameter. Its "noise_size" holds the average and is updated.
        sigma: factor on the size.
        beta: decay of the average; 0 for no average.
        floor: smallest std.
    """
    stds = []
    for size, state in zip(sizes, states, strict=True):
        step = state["step"]
        if beta > 0:
            if "noise_size" not in state:
                state["noise_size"] = size * (1 - beta ** (step - 1))
            size = state["noise_size"].lerp_(size, 1 - beta) / (1 - beta**step)
        stds.append((sigma * size).clamp_min(floor))
    return stds


class NoiseSource:
    """One `torch.Generator` for each device, all started from one seed.

    The global generators are never touched. A torch generator is used instead of `lr_gym.rng`,
    because it draws normal numbers about six times faster, and an optimizer has no batch of runs
    whose rows must be reproducible one by one.

    Args:
        seed: the seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}

    def _generator(self, device: torch.device) -> torch.Generator:
        key = str(device)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[key]

    def normal(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Standard normal numbers in the shapes, dtypes and devices of `like`, in that order."""
        return [
            torch.empty(x.shape, dtype=x.dtype, device=x.device).normal_(
                generator=self._generator(x.device)
            )
            for x in like
        ]

    def state_dict(self) -> dict[str, Any]:
        """The seed, and the uint8 state of each generator."""
        return {
            "seed": self.seed,
            "generators": {k: g.get_state() for k, g in self._generators.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`; generators of devices that this machine lacks start anew."""
        self.seed = int(state_dict["seed"])
        self._generators = {}
        for key, state in state_dict["generators"].items():
            device = torch.device(key)
            if device.type == "cpu" or (
                device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
            ):
                self._generator(device).set_state(state.cpu())

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.load_state_dict(state)
