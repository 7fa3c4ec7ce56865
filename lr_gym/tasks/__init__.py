"""Tasks: the trainings in which a controller learns and is compared."""

from lr_gym.tasks.check import check_task
from lr_gym.tasks.find import find_task
from lr_gym.tasks.from_dataset import task_from_dataset
from lr_gym.tasks.suite import SUITES, TASKS
from lr_gym.tasks.task import SPLITS, Data, Split, Task

__all__ = [
    "SPLITS",
    "SUITES",
    "TASKS",
    "Data",
    "Split",
    "Task",
    "check_task",
    "find_task",
    "task_from_dataset",
]
