"""TASKS: every task by name, a literal table."""

from __future__ import annotations

import functools

from lr_gym.tasks import datasets
from lr_gym.tasks.models import mlp
from lr_gym.tasks.task import Task, accuracy, cross_entropy

__all__ = ["TASKS", "find_task"]

_ROWS = (
    Task(
        name="mnist1d-mlp",
        env_id="MNIST1D-MLP-v0",
        about="MNIST-1D, fully connected 40-100-100-10",
        model=functools.partial(mlp, (40, 100, 100, 10)),
        data=datasets.mnist1d,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=64,
        horizon=500,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def find_task(task: str | Task) -> Task:
    """Look up a task by name; a ValueError lists the valid names. A Task passes through."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
    return TASKS[task]
