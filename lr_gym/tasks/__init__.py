"""Tasks: what inner trainings are made of."""

from lr_gym.tasks.suite import SUITES, TASKS, find_task
from lr_gym.tasks.task import SPLITS, Data, Split, Task

__all__ = ["SPLITS", "SUITES", "TASKS", "Data", "Split", "Task", "find_task"]
