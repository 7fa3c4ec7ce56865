"""An endless suite: every new batch of trainings is on random tasks that nobody has seen before.

A batch has slots. Each slot keeps its number of layers, since a vector environment has a fixed
number of rows; data, kind of network, width, activation, batch size and horizon are drawn anew.
Horizons are rounded to whole intervals, so that all trainings have the same number of decisions and
end together. Tasks that would take far longer than the others of their batch are passed over.
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
from lr_gym.updates.rules import NEWTON_SCHULZ_STEPS, base_rule

__all__ = ["random_batch"]

FIRST = 1 << 20  # smaller numbers are left to named suites
COUNT = 1 << 30
# operations of a training: one task in four needs more, and those would take most of the time
DEAREST = 5_000_000_000
UPDATE = 32  # products that cost as much as to move a weight
IN_MATRICES = 5  # products of Muon's matrices that cost as much as one of a minibatch


class Measured(NamedTuple):
    """Sizes of a random task.

    Attributes:
        layers: modules with parameters: hidden layers, their norms, and the output.
        weights: of the model.
        products: of weights in a forward pass of one example.
        orthogonal: products in an update of Muon's, at most.
    """

    layers: int
    weights: int
    products: int
    orthogonal: int


@functools.lru_cache(maxsize=4096)
def measured(number: int) -> Measured:
    """Sizes of task `random-<number>`, found without a number being multiplied."""
    found: list[tuple[int, int, int]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        first, *_ = own = list(module.parameters(recurse=False))
        times = (
            inputs[0].shape[1] if isinstance(module, nn.RNNBase) else output.numel() // len(first)
        )
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
    """Products of weights in all forward passes of training on task `random-<number>`, and its updates as products."""
    task, sizes = random_task(number).task, measured(number)
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
    dearest: int = DEAREST,
) -> list[Task]:
    """The tasks of a batch, a function of its arguments.

    Slot i has as many layers in every generation.

    Args:
        seed: of the suite.
        generation: of the batch, from 0.
        slots: tasks in a batch.
        decisions: of each training; horizons become multiples of it.
        horizon: inner steps of every task; drawn by default.
        base: optimizer, of which only the cost matters.
        dearest: operations of a training at most.
    """
    tasks = []
    for slot in range(slots):
        first = _number(seed, 0, slot, 0)
        number, attempt = _number(seed, generation, slot, 0), 0
        while (
            measured(number).layers != measured(first).layers
            or operations_of(number, horizon, base) > dearest
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
    place = (generation * 4096 + slot) * 4096 + attempt
    return FIRST + int(integers(torch.tensor(seed), Stream.TASK, 7 + place, 1, COUNT)[0])
