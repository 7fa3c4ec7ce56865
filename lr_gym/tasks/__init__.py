"""Tasks: what inner trainings are made of."""

from lr_gym.tasks.suite import TASKS, find_task
from lr_gym.tasks.task import SPLITS, Data, Split, Task

__all__ = ["SPLITS", "TASKS", "Data", "Split", "Task", "find_task"]
