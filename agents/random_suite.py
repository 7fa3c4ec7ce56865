"""The endless suite: every batch of trainings is on new random tasks.

A batch has slots. The task of a slot always has the same number of layers, since a vector
environment has a fixed number of rows; data, kind of network, width, activation, batch size and
horizon are drawn anew. Horizons are rounded to whole intervals, so that all trainings have the same
number of decisions and end together. Tasks that would take far longer than the others of their
batch are left out. This would leave out all large models, so one slot in eight is for them, with
shorter horizons.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.layers import muon_matrices
from lr_gym.rng import Stream, integers
from lr_gym.tasks import Task
from lr_gym.tasks.modules import Position
from lr_gym.tasks.random_tasks import LANGUAGE_MODEL, RandomTask, random_task
from lr_gym.updates.muon import NEWTON_SCHULZ_STEPS
from lr_gym.updates.rules import base_rule

__all__ = ["random_batch"]

FIRST = 1 << 20  # smaller numbers of random tasks belong to the named suites
COUNT = 1 << 30
# operations of a training: one task in four needs more, and these would take most of the time
MAX_OPERATIONS = 5_000_000_000
# One slot in so many is for models of LARGE weights. Their trainings are shortened, to no fewer
# than SHORTEST steps, so that they take at most LONGER times as many operations as others.
LARGE_EVERY = 8
LARGE = (200_000, 2_000_000)
SHORTEST = 60
LONGER = 2
UPDATE = 32  # the update of one weight costs as much as this many products of a forward pass
IN_MATRICES = 5  # this many products of Muon's matrices cost as much as one of a forward pass
SLOTS = 4096  # more than a batch ever has
ATTEMPTS = 4096  # more than a slot ever needs to find a task


Supply = Callable[[int], RandomTask]


class Counted(NamedTuple):
    """What a random task's modules say.

    Attributes:
        layers: Number of modules with parameters: hidden layers, their norms, and the output.
        weights: Number of weights of the model.
    """

    layers: int
    weights: int


class Measured(NamedTuple):
    """What a random task's training computes.

    Attributes:
        products: Products of weights in a forward pass of one example.
        orthogonal: Products in the matrices of one update of Muon, at most.
    """

    products: int
    orthogonal: int


@functools.lru_cache(maxsize=1)  # a task that `counted` lets pass is measured next
def _model(number: int, supply: Supply) -> nn.Module:
    """The model of a task on the meta device, where nothing is computed."""
    task = supply(number).task
    with torch.device("meta"):
        return task.model()


@functools.lru_cache(maxsize=4096)
def counted(number: int, supply: Supply = random_task) -> Counted:
    """Layers and weights of the random task of a number."""
    own = [list(module.parameters(recurse=False)) for module in _model(number, supply).modules()]
    sizes = [sum(p.numel() for p in params) for params in own if params]
    return Counted(len(sizes), sum(sizes))


@functools.lru_cache(maxsize=4096)
def measured(number: int, supply: Supply = random_task) -> Measured:
    """Products of the random task of a number, found by a forward pass on the meta device."""
    found: list[int] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own = list(module.parameters(recurse=False))
        weights = sum(p.numel() for p in own)
        if isinstance(module, nn.Embedding | Position):
            found.append(output.numel())  # each number is looked up or added
        elif isinstance(module, nn.RNNBase):
            found.append(inputs[0].shape[1] * weights)  # they are used at every time step
        else:
            found.append(output.numel() // len(own[0]) * weights)  # places of a convolution, or 1

    drawn = supply(number).drawn
    model = _model(number, supply)
    hooks = [
        module.register_forward_hook(look)
        for module in model.modules()
        if list(module.parameters(recurse=False))
    ]
    symbols = drawn["network"] == LANGUAGE_MODEL
    with torch.device("meta"):
        model(torch.zeros(1, drawn["inputs"], dtype=torch.int64 if symbols else None))
    for hook in hooks:
        hook.remove()
    matrices = [p.flatten(1).shape for p in muon_matrices(model)]
    orthogonal = sum(
        NEWTON_SCHULZ_STEPS * (2 * rows * columns + min(rows, columns) ** 2) * min(rows, columns)
        for rows, columns in matrices
    )
    return Measured(sum(found), orthogonal)


def operations_of(
    number: int,
    horizon: int | None = None,
    base: str = "adamw",
    supply: Supply = random_task,
) -> int:
    """Cost of a training on a random task, in products of weights in forward passes.

    Args:
        number: Number of the random task.
        horizon: Steps of the training; by default the task's own.
        base: Base optimizer, whose updates count too.
        supply: Random task of a number.
    """
    task = supply(number).task
    sizes = measured(number, supply)
    weights = counted(number, supply).weights
    orthogonal = sizes.orthogonal // IN_MATRICES if base_rule(base).family == "muon" else 0
    return (horizon or task.horizon) * (
        task.batch_size * sizes.products + UPDATE * weights + orthogonal
    )


class _Batches(NamedTuple):
    """What all batches of a suite have in common; the fields are arguments of `random_batch`."""

    seed: int
    decisions: int
    horizon: int | None
    base: str
    max_operations: int
    supply: Supply

    def training(self, number: int, large: bool) -> tuple[int, int]:
        """Operations and steps, in whole intervals, of a training on a task."""
        steps = self.supply(number).task.horizon if self.horizon is None else self.horizon
        intervals = max(1, round(steps / self.decisions))
        cost = operations_of(
            number, self.decisions, self.base, self.supply
        )  # of an interval of one step
        if large and self.horizon is None:
            shortest = -(-SHORTEST // self.decisions)
            intervals = max(min(intervals, self.most(large) // cost), shortest)
        return intervals * cost, intervals * self.decisions

    def most(self, large: bool) -> int:
        """Operations that a training may take."""
        return self.max_operations * (LONGER if large else 1)

    def find(self, generation: int, slot: int, large: bool, layers: int) -> tuple[int, int]:
        """Number and steps of the first task that fits a slot; 0 stands for any `layers`.

        Where all large models cost too much, as they may under Muon, it is the cheapest of them.

        Raises:
            ValueError: If none of ATTEMPTS tasks fits.
        """
        cheapest: tuple[int, int, int] | None = None  # operations, number, steps
        for attempt in range(ATTEMPTS):
            number = _number(self.seed, generation, slot, attempt)
            if layers not in (0, counted(number, self.supply).layers):
                continue
            if large and not LARGE[0] <= counted(number, self.supply).weights <= LARGE[1]:
                continue
            operations, steps = self.training(number, large)
            if operations <= self.most(large):
                return number, steps
            if large and (cheapest is None or operations < cheapest[0]):
                cheapest = operations, number, steps
        if cheapest is not None:
            return cheapest[1:]
        raise ValueError(
            f"none of {ATTEMPTS} random tasks fits slot {slot} ({layers or 'any number of'} layers"
            f"{', a large model' if large else ''}) within horizon={self.horizon} and "
            f"max_operations={self.max_operations}: lower the horizon or raise max_operations"
        )


@functools.lru_cache(maxsize=256)
def _layers(batches: _Batches, slot: int, large: bool) -> int:
    """Number of layers of all tasks of a slot: that of its first one."""
    if not large:  # whatever it costs, so that deep networks are not rarer than they are drawn
        return counted(_number(batches.seed, 0, slot, 0), batches.supply).layers
    return counted(batches.find(0, slot, large, layers=0)[0], batches.supply).layers


def random_batch(
    seed: int,
    generation: int,
    slots: int,
    decisions: int,
    horizon: int | None = None,
    base: str = "adamw",
    max_operations: int = MAX_OPERATIONS,
    supply: Supply = random_task,
    *,
    large_models: bool = True,
) -> list[Task]:
    """The tasks of a batch. The same arguments give the same tasks.

    Args:
        seed: Seed of the suite.
        generation: Number of the batch, from 0.
        slots: Tasks in a batch. The task of a slot has as many layers in every batch.
        decisions: Decisions of a training. Horizons become multiples of it.
        horizon: Steps of every training; drawn by default.
        base: Base optimizer, whose cost counts.
        max_operations: Largest number of operations of a training, and half of that of a large
            model's.
        supply: Random task of a number.
        large_models: Whether every eighth slot holds a large model.

    Raises:
        ValueError: If no task fits a slot, since the horizon is too long or the operations are too
            few.
    """
    batches = _Batches(seed, decisions, horizon, base, max_operations, supply)
    tasks = []
    for slot in range(slots):
        large = large_models and slot % LARGE_EVERY == LARGE_EVERY - 1
        number, steps = batches.find(generation, slot, large, _layers(batches, slot, large))
        tasks.append(dataclasses.replace(supply(number).task, horizon=steps))
    return tasks


def _number(seed: int, generation: int, slot: int, attempt: int) -> int:
    """Number of the random task at a place of the suite."""
    place = (generation * SLOTS + slot) * ATTEMPTS + attempt
    return FIRST + int(integers(torch.tensor(seed), Stream.TASK, 7 + place, 1, COUNT)[0])
