"""Small streams of every kind that change every few steps, and tasks on them."""

from __future__ import annotations

import dataclasses
import functools

import torch
from tiny import TINY

from lr_gym.tasks import Task
from lr_gym.tasks.architectures import mlp
from lr_gym.tasks.losses import squared_error
from lr_gym.tasks.stream import Changes, DataStream
from lr_gym.tasks.stream_kinds import (
    ClassStream,
    GroupStream,
    OrderedStream,
    PermutedStream,
    ValueStream,
)

OFTEN = Changes(between=(3.0, 30.0), gradual=0.5, width=(2.0, 20.0), recurring=0.5)
POOL, INPUTS, CONCEPTS, CLASSES = 40, 5, 7, 3


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pool() -> torch.Tensor:
    return torch.randn(POOL, INPUTS, generator=generator(), dtype=torch.float64)


@functools.cache
def values() -> ValueStream:
    table = torch.randn(CONCEPTS + 1, POOL, generator=generator(), dtype=torch.float64)
    return ValueStream(pool(), table, changes=OFTEN)


@functools.cache
def classes() -> ClassStream:
    table = torch.randint(CLASSES, (CONCEPTS, POOL), generator=generator())
    return ClassStream(pool(), table, CLASSES, noise=(0.05, 0.4), changes=OFTEN)


@functools.cache
def permuted() -> PermutedStream:
    orders = torch.rand(CONCEPTS, INPUTS, generator=generator()).argsort(1)
    targets = torch.randint(CLASSES, (POOL,), generator=generator())
    return PermutedStream(pool(), targets, orders, changes=OFTEN)


@functools.cache
def groups() -> GroupStream:
    """Group i shows the class i."""
    inputs = pool()[: 3 * 13].view(3, 13, INPUTS)
    return GroupStream(inputs, torch.arange(3).unsqueeze(1).expand(3, 13), changes=OFTEN)


@functools.cache
def ordered() -> OrderedStream:
    return OrderedStream(pool(), torch.arange(POOL) % CLASSES)


KINDS = {
    "values": values,
    "classes": classes,
    "permuted": permuted,
    "groups": groups,
    "ordered": ordered,
}


def task_of(kind: str) -> Task:
    """TINY on a stream."""
    task = dataclasses.replace(TINY, name=f"tiny-{kind}", data=KINDS[kind])
    if kind == "values":
        model = functools.partial(mlp, (INPUTS, 8, 1))
        return dataclasses.replace(task, model=model, loss=squared_error)
    return task


def batches(stream: DataStream, seeds: torch.Tensor, steps: int, batch_size: int = 6):
    """The first minibatches (K, B, b, ...) of runs with seeds (B,), and their moments."""
    number = torch.arange(steps).unsqueeze(1).expand(steps, len(seeds))
    return stream.draw(seeds, stream.start(seeds, torch.float64), number, batch_size)
