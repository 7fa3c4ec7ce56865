"""Problems for recurrent networks, which have to remember what they read long ago.

A network first learns what is true without remembering anything. Then it stands still for a while,
until it remembers the first of two places that count.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lr_gym.rng import Stream, integers, uniform
from lr_gym.tasks.splits import split_examples, with_monitor
from lr_gym.tasks.task import Data

__all__ = ["LENGTH", "SIZES", "adding", "marked_xor"]

LENGTH = 40  # numbers of an example of `adding`, T
SIZES = (6_000, 1_000, 500, 1_000)  # before half of the reward split becomes the monitor split

# Steps of Stream.HELD_OUT_TASK, one for each purpose; smaller ones are in use elsewhere.
NUMBERS = 3
FIRST = 4
SECOND = 5


@functools.cache
def adding(length: int = LENGTH, seed: int = 0) -> Data:
    """The adding problem (Hochreiter & Schmidhuber 1997): two marked numbers are added.

    Args:
        length: numbers of an example, T.
        seed: seed of numbers and marks.

    Returns:
        Inputs (n, 2 T), number in [-1, 1) and mark (0 or 1) in turn, and targets (n, 1), the sum of
        the two marked numbers. The mean squared error of always guessing 0 is 2/3.
    """
    count = sum(SIZES)
    draw = uniform(torch.tensor(seed), Stream.HELD_OUT_TASK, NUMBERS, count * length)
    numbers = 2.0 * draw.view(count, length) - 1.0
    inputs, chosen = _marked(numbers, seed)
    return with_monitor(split_examples(inputs, chosen.sum(1, keepdim=True), SIZES))


@functools.cache
def marked_xor(length: int, seed: int = 1) -> Data:
    """The XOR problem (Hochreiter & Schmidhuber 1997): whether the signs of two numbers differ.

    Args:
        length: numbers of an example, T.
        seed: seed of numbers and marks.

    Returns:
        Inputs (n, 2 T), number and mark (0 or 1) in turn, and targets (n,), class 1 where the two
        marked numbers have different signs. One of them alone says nothing about the class. The
        sizes of the numbers lie in [0.5, 1.5), so that no two examples are equal.
    """
    count = sum(SIZES)
    draw = uniform(torch.tensor(seed), Stream.HELD_OUT_TASK, NUMBERS, count * length)
    numbers = 2.0 * draw.view(count, length) - 1.0
    inputs, chosen = _marked(numbers + torch.where(numbers < 0.0, -0.5, 0.5), seed)
    return with_monitor(split_examples(inputs, (chosen.prod(1) < 0.0).long(), SIZES))


def _marked(numbers: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mark one number in the first half of each example and one in the second.

    Args:
        numbers: (n, T).
        seed: seed of the marks.

    Returns:
        Inputs (n, 2 T), number and mark (0 or 1) in turn; and the marked numbers (n, 2).
    """
    key = torch.tensor(seed)
    count, length = numbers.shape
    half = length // 2
    first = integers(key, Stream.HELD_OUT_TASK, FIRST, count, half)
    second = half + integers(key, Stream.HELD_OUT_TASK, SECOND, count, length - half)
    places = torch.stack((first, second), dim=1)
    marks = torch.zeros_like(numbers).scatter_(1, places, 1.0)
    return torch.stack((numbers, marks), dim=2).flatten(1), numbers.gather(1, places)
