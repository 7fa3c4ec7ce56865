"""Cutting examples into splits, in the same way on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

from lr_gym.rng import Stream, random_bits
from lr_gym.tasks.task import Data, Split

__all__ = ["first_examples", "permutation", "split_examples"]


def permutation(count: int, seed: int) -> Tensor:
    """A random order of range(count), the same on every machine."""
    return torch.argsort(random_bits(torch.tensor(seed), Stream.TASK, 2, count))


def split_examples(inputs: Tensor, targets: Tensor, sizes: tuple[int, ...], seed: int = 0) -> Data:
    """Shuffle examples by a fixed seed and cut them into splits.

    Args:
        inputs: (n, ...).
        targets: (n, ...).
        sizes: number of examples of each of SPLITS; their sum is at most n.
        seed: seed of the order, which is the same on every machine.
    """
    rows = torch.split(permutation(len(inputs), seed)[: sum(sizes)], list(sizes))
    return Data(*(Split(inputs[part], targets[part]) for part in rows))


def first_examples(data: Data, sizes: tuple[int, ...]) -> Data:
    """The first examples of each split, as many as `sizes` says."""
    return Data(
        *(Split(*(part[:size] for part in split)) for split, size in zip(data, sizes, strict=True))
    )
