"""Normal noise for gradients: its size, and generators whose state is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.base import wide_norm
from lr_gym.optim.distributed import own_shard, shards
from lr_gym.types import numbers_like

__all__ = [
    "NOISE_NORMS",
    "NOISE_SCALES",
    "NoiseSource",
    "gradient_sizes",
    "noise_stds_",
    "sizes_of_norms",
]

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
    return sizes_of_norms(norms, [g.numel() for g in grads], noise_scale, noise_norm)


def sizes_of_norms(
    norms: Sequence[Tensor], numels: Sequence[int], noise_scale: str, noise_norm: str
) -> list[Tensor]:
    """`gradient_sizes` from the norms () and the numbers of elements of n gradients."""
    counts = [numel if noise_scale == "rms" else 1 for numel in numels]
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

    Checkpoints know generators by the order in which their devices were first used, so that a
    training can go on on another device of the same kind.

    Args:
        seed: the seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}
        self._saved: list[Tensor] = []  # loaded states, in order of first use

    def _generator(self, device: torch.device) -> torch.Generator:
        key = str(device)
        if key not in self._generators:
            generator = torch.Generator(device).manual_seed(self.seed)
            saved = self._saved[len(self._generators) : len(self._generators) + 1]
            if saved and saved[0].shape == generator.get_state().shape:  # else another kind
                generator.set_state(saved[0])
            self._generators[key] = generator
        return self._generators[key]

    def begin(self, like: Sequence[Tensor]) -> None:
        """Make the generators of the devices of `like`; nothing is drawn."""
        for x in like:
            self._generator(x.device)

    def normal(self, like: Sequence[Tensor]) -> list[Tensor]:
        """Standard normal numbers in the shapes, dtypes and devices of `like`, in that order.

        Of a sharded tensor this rank's part is returned. All ranks draw the whole tensor from equal
        generators, so the parts fit together and equal those of one process.
        """
        draws = []
        for x in like:
            whole = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            whole.normal_(generator=self._generator(x.device))
            draws.append(own_shard(whole, x).clone() if shards(x) > 1 else whole)
        return draws

    def tensors(self) -> dict[str, Tensor]:
        """The uint8 state of each generator."""
        states = [generator.get_state() for generator in self._generators.values()]
        states += self._saved[len(states) :]
        return {f"generator_{i}": state for i, state in enumerate(states)}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore `tensors`; generators of another kind of device start anew."""
        names = sorted(name for name in tensors if name.startswith("generator_"))
        self._generators = {}
        self._saved = [tensors[name].cpu() for name in names]

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self.seed, "tensors": self.tensors()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.seed = state["seed"]
        self.load_tensors(state["tensors"])
