"""The endless suite: every batch of trainings is on new random tasks.

A batch has slots. The task of a slot always has the same number of layers, since a vector
environment has a fixed number of rows; data, kind of network, width, activation, batch size and
horizon are drawn anew. Horizons are rounded to whole intervals, so that all trainings have the same
number of decisions and end together. Tasks that would take far longer than the others of their
batch are left out.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.layers import muon_matrices
from lr_gym.rng import Stream, integers
from lr_gym.tasks import Task
from lr_gym.tasks.random_tasks import random_task
from lr_gym.updates.muon import NEWTON_SCHULZ_STEPS
from lr_gym.updates.rules import base_rule

__all__ = ["random_batch"]

FIRST = 1 << 20  # smaller numbers of random tasks belong to the named suites
COUNT = 1 << 30
# operations of a training: one task in four needs more, and these would take most of the time
MAX_OPERATIONS = 5_000_000_000
UPDATE = 32  # the update of one weight costs as much as this many products of a forward pass
IN_MATRICES = 5  # this many products of Muon's matrices cost as much as one of a forward pass
SLOTS = 4096  # more than a batch ever has
ATTEMPTS = 4096  # more than a slot ever needs to find a task


class Measured(NamedTuple):
    """Sizes of a random task.

    Attributes:
        layers: Number of modules with parameters: hidden layers, their norms, and the output.
        weights: Number of weights of the model.
        products: Products of weights in a forward pass of one example.
        orthogonal: Products in the matrices of one update of Muon, at most.
    """

    layers: int
    weights: int
    products: int
    orthogonal: int


@functools.lru_cache(maxsize=4096)
def measured(number: int) -> Measured:
    """Sizes of task `random-<number>`, found on the meta device, where nothing is computed."""
    found: list[tuple[int, int, int]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.RNNBase):
            times = inputs[0].shape[1]  # a recurrent network uses its weights at every time step
        else:
            times = output.numel() // len(own[0])  # places of a convolution, or 1
        weights = sum(p.numel() for p in own)
        found.append((1, weights, times * weights))

    task, _, drawn = random_task(number)
    with torch.device("meta"):
        model = task.model()
        for module in model.modules():
            if list(module.parameters(recurse=False)):
                module.register_forward_hook(look)
        model(torch.zeros(1, drawn["inputs"]))
    matrices = [p.flatten(1).shape for p in muon_matrices(model)]
    orthogonal = sum(
        NEWTON_SCHULZ_STEPS * (2 * rows * columns + min(rows, columns) ** 2) * min(rows, columns)
        for rows, columns in matrices
    )
    layers, weights, products = map(sum, zip(*found, strict=True))
    return Measured(layers, weights, products, orthogonal)


def operations_of(number: int, horizon: int | None = None, base: str = "adamw") -> int:
    """Cost of a training on task `random-<number>`, in products of weights in forward passes.

    Args:
        number: Number of the random task.
        horizon: Steps of the training; by default the task's own.
        base: Base optimizer, whose updates count too.
    """
    task = random_task(number).task
    sizes = measured(number)
    orthogonal = sizes.orthogonal // IN_MATRICES if base_rule(base).family == "muon" else 0
    return (horizon or task.horizon) * (
        task.batch_size * sizes.products + UPDATE * sizes.weights + orthogonal
    )


def random_batch(
    seed: int,
    generation: int,
    slots: int,
    decisions: int,
    horizon: int | None = None,
    base: str = "adamw",
    max_operations: int = MAX_OPERATIONS,
) -> list[Task]:
    """The tasks of a batch. The same arguments give the same tasks.

    Args:
        seed: Seed of the suite.
        generation: Number of the batch, from 0.
        slots: Tasks in a batch. The task of a slot has as many layers in every batch.
        decisions: Decisions of a training. Horizons become multiples of it.
        horizon: Steps of every training; drawn by default.
        base: Base optimizer, whose cost counts.
        max_operations: Largest number of operations of a training.
    """
    tasks = []
    for slot in range(slots):
        layers = measured(_number(seed, 0, slot, 0)).layers
        attempt = 0
        number = _number(seed, generation, slot, attempt)
        while (
            measured(number).layers != layers
            or operations_of(number, horizon, base) > max_operations
        ):
            attempt += 1
            number = _number(seed, generation, slot, attempt)
        task = random_task(number).task
        steps = task.horizon if horizon is None else horizon
        tasks.append(
            dataclasses.replace(task, horizon=max(1, round(steps / decisions)) * decisions)
        )
    return tasks


def _number(seed: int, generation: int, slot: int, attempt: int) -> int:
    """Number of the random task at a place of the suite."""
    place = (generation * SLOTS + slot) * ATTEMPTS + attempt
    return FIRST + int(integers(torch.tensor(seed), Stream.TASK, 7 + place, 1, COUNT)[0])
