"""Random tasks that stand still at first, for policies that watch a held-out loss.

A network that has learned nothing yet looks like one that will learn no more. To tell them apart, a
policy has to see both. The task `random-plateau-<number>` is one of two problems:

    parity   whether a few of the bits have an even number of -1, for a fully connected network
    recall   the one number of a sequence that is marked, for a recurrent network

Both stand still at the loss of guessing, and then fall. How long they stand still depends on all
that is drawn; some never fall, and some parities are memorised without generalising.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from lr_gym.rng import Stream, integers, uniform
from lr_gym.tasks.random_tasks import RandomTask, draw, drawn_task, log_uniform
from lr_gym.tasks.splits import split_examples, with_monitor
from lr_gym.tasks.task import Data

__all__ = ["CHOSEN", "PLATEAU_RANGES", "random_plateau_task"]

PLATEAU_RANGES: dict[str, tuple[int, int]] = {
    "bits": (6, 20),
    "length": (8, 32),
    "examples": (500, 10_000),
    "horizon": (400, 2000),
}
CHOSEN = (2, 3)  # bits that count
HELD_OUT = (600, 300, 600)  # for reward and monitor, selection, and test

# Steps of Stream.HELD_OUT_TASK; smaller ones are in use elsewhere.
VALUES = 6
NUMBERS = 7
PLACES = 8


def _draw(number: int) -> dict[str, Any]:
    """What `random_task` draws, with another problem."""
    drawn = draw(number)
    kind, size, chosen, examples, horizon, cell, depth = uniform(
        torch.tensor(number), Stream.HELD_OUT_TASK, VALUES, 7, dtype=torch.float64
    ).tolist()
    drawn |= {
        "examples": log_uniform(PLATEAU_RANGES["examples"], examples),
        "horizon": log_uniform(PLATEAU_RANGES["horizon"], horizon),
        "width": min(drawn["width"], 256),
    }
    if kind < 0.5:
        bits = log_uniform(PLATEAU_RANGES["bits"], size)
        drawn |= {"source": "parity", "network": "dense", "inputs": bits}
        drawn |= {"chosen": CHOSEN[int(chosen * len(CHOSEN))]}
        return drawn | {"loss": "cross_entropy", "classes": 2}
    length = log_uniform(PLATEAU_RANGES["length"], size)
    drawn |= {"source": "recall", "network": ("recurrent", "lstm")[int(2 * cell)]}
    drawn |= {"inputs": 2 * length, "patch": 2, "depth": 1 + int(2 * depth)}
    return drawn | {"width": min(drawn["width"], 64), "loss": "squared_error", "classes": 1}


def _data(number: int, drawn: dict[str, Any]) -> Data:
    sizes = (drawn["examples"], *HELD_OUT)
    make = _parity if drawn["source"] == "parity" else _recall
    inputs, targets = make(number, sum(sizes), drawn)
    return with_monitor(split_examples(inputs, targets, sizes, number))


def _parity(number: int, count: int, drawn: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Inputs (n, bits), -1 or 1, and classes (n,)."""
    bits = drawn["inputs"]
    numbers = uniform(torch.tensor(number), Stream.HELD_OUT_TASK, NUMBERS, count * bits)
    inputs = torch.where(numbers.view(count, bits) < 0.5, -1.0, 1.0)
    # bits are exchangeable, so that the first ones serve as well as any
    even = inputs[:, : drawn["chosen"]].prod(1) > 0.0
    return inputs, even.long()


def _recall(number: int, count: int, drawn: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Inputs (n, 2 T), number in [-1, 1) and mark (0 or 1) in turn, and targets (n, 1)."""
    length = drawn["inputs"] // 2
    key = torch.tensor(number)
    draws = uniform(key, Stream.HELD_OUT_TASK, NUMBERS, count * length).view(count, length)
    numbers = 2.0 * draws - 1.0
    # the mark stands in the first half, so that the number has to be remembered
    place = integers(key, Stream.HELD_OUT_TASK, PLACES, count, length // 2).unsqueeze(1)
    marks = torch.zeros_like(numbers).scatter_(1, place, 1.0)
    return torch.stack((numbers, marks), dim=2).flatten(1), numbers.gather(1, place)


@functools.lru_cache(maxsize=256)
def random_plateau_task(number: int) -> RandomTask:
    """The task `random-plateau-<number>`, for any integer of at least 0.

    Raises:
        ValueError: if the number is negative.
    """
    drawn = _draw(number)
    data = functools.partial(_data, number, drawn)
    return drawn_task(f"random-plateau-{number}", drawn, data)
