"""An endless suite: every new batch of trainings is on random tasks that nobody has seen before.

A batch has slots. Each slot keeps its number of layers, since a vector environment has a fixed number of rows; width,
activation, batch size, data, label noise, horizon and initial scale are drawn anew. Horizons are rounded to whole
intervals, so that all trainings have the same number of decisions and end together. Tasks that would take far longer
than the others of their batch are passed over.
"""

from __future__ import annotations

import dataclasses

import torch

from lr_gym.rng import Stream, integers
from lr_gym.tasks import Task
from lr_gym.tasks.models import build_model
from lr_gym.tasks.random_tasks import random_task

__all__ = ["random_batch"]

FIRST = 1 << 20  # smaller numbers are left to named suites
COUNT = 1 << 30
DEAREST = 5_000_000_000  # operations of a training: one task in three needs more, and those would take most of the time
UPDATE = 32  # products that cost as much as to move a weight


def layers_of(number: int) -> int:
    """Modules with parameters of task `random-<number>`: hidden layers, their norms, and the output."""
    drawn = random_task(number).drawn
    depth = int(drawn["depth"])
    normed = depth - int(drawn["network"] == "recurrent")
    return depth + int(drawn["norm"]) * normed + 1


def operations_of(number: int, horizon: int | None = None) -> int:
    """Products of weights in all forward passes of training on task `random-<number>`, and its updates as products."""
    task, _, drawn = random_task(number)
    patches = 1 if drawn["network"] == "dense" else drawn["inputs"] // drawn["patch"]
    weights = sum(p.numel() for p in build_model(task).parameters())
    return (horizon or task.horizon) * weights * (task.batch_size * patches + UPDATE)


def random_batch(seed: int, generation: int, slots: int, decisions: int, horizon: int | None = None) -> list[Task]:
    """The tasks of a batch, a function of its arguments; slot i has as many layers in every generation.

    Args:
        seed: of the suite.
        generation: of the batch, from 0.
        slots: tasks in a batch.
        decisions: of each training; horizons become multiples of it.
        horizon: inner steps of every task; drawn by default.
    """
    tasks = []
    for slot in range(slots):
        first = _number(seed, 0, slot, 0)
        number, attempt = _number(seed, generation, slot, 0), 0
        while layers_of(number) != layers_of(first) or operations_of(number, horizon) > DEAREST:
            attempt += 1
            number = _number(seed, generation, slot, attempt)
        task = random_task(number).task
        steps = task.horizon if horizon is None else horizon
        tasks.append(dataclasses.replace(task, horizon=max(1, round(steps / decisions)) * decisions))
    return tasks


def _number(seed: int, generation: int, slot: int, attempt: int) -> int:
    place = (generation * 4096 + slot) * 4096 + attempt
    return FIRST + int(integers(torch.tensor(seed), Stream.TASK, 7 + place, 1, COUNT)[0])
