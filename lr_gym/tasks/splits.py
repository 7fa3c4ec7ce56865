"""Cutting examples into splits, in the same way on every machine."""

from __future__ import annotations

import torch
from torch import Tensor

from lr_gym.rng import Stream, random_bits
from lr_gym.tasks.task import Data, Split

__all__ = ["first_examples", "permutation", "sizes_with_monitor", "split_examples", "with_monitor"]


def permutation(count: int, seed: int) -> Tensor:
    """A random order of range(count), the same on every machine."""
    return torch.argsort(random_bits(torch.tensor(seed), Stream.TASK, 2, count))


def split_examples(inputs: Tensor, targets: Tensor, sizes: tuple[int, ...], seed: int = 0) -> Data:
    """Shuffle examples by a fixed seed and cut them into splits.

    Args:
        inputs: (n, ...).
        targets: (n, ...).
        sizes: number of examples of the splits, in the order of SPLITS, with the monitor split or
            without; their sum is at most n.
        seed: seed of the order, which is the same on every machine.
    """
    rows = torch.split(permutation(len(inputs), seed)[: sum(sizes)], list(sizes))
    return Data(*(Split(inputs[part], targets[part]) for part in rows))


def first_examples(data: Data, sizes: tuple[int, ...]) -> Data:
    """The first examples of each split that there is, as many as `sizes` says."""
    counts = zip(data.splits().items(), sizes, strict=True)
    return Data(**{name: Split(*(part[:size] for part in split)) for (name, split), size in counts})


def with_monitor(data: Data) -> Data:
    """Data whose reward split gives the second half of its examples to the monitor split.

    The other splits stay what they are, so that figures which rest on them do too.
    """
    count = len(data.reward.inputs) - len(data.reward.inputs) // 2
    return data._replace(
        reward=Split(*(part[:count] for part in data.reward)),
        monitor=Split(*(part[count:] for part in data.reward)),
    )


def sizes_with_monitor(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes, in the order of SPLITS, of what `with_monitor` makes of four splits.

    >>> sizes_with_monitor((3000, 500, 400, 1000))
    (3000, 250, 400, 1000, 250)
    """
    gradient, reward, selection, test = sizes
    return gradient, reward - reward // 2, selection, test, reward // 2
