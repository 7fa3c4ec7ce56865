"""All tasks by name, and the suites of tasks: for learning, for selection and for reporting."""

from __future__ import annotations

from lr_gym.tasks.suite_held_out import HELD_OUT, HELD_OUT_VALIDATION
from lr_gym.tasks.suite_large import LARGE
from lr_gym.tasks.suite_stream import STREAM, STREAM_TRAIN, STREAM_VALIDATION
from lr_gym.tasks.suite_test import TEST
from lr_gym.tasks.suite_train import TRAIN
from lr_gym.tasks.suite_validation import VALIDATION
from lr_gym.tasks.task import Task

__all__ = ["SUITES", "TASKS"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(*TRAIN, *VALIDATION, *TEST, *LARGE),
        *(*HELD_OUT_VALIDATION, *HELD_OUT),
        *(*STREAM_TRAIN, *STREAM_VALIDATION, *STREAM),
    )
}

# Suite -> names of its tasks. Each task of `validation` differs from every task of `train`, and
# each task of `test` and of `large` from every one of both, in what its row calls `differs_by`.
# So does each task of `held-out-validation` from every task of `train`, and each task of `held-out`
# from every one of `train`, `validation` and `held-out-validation`.
# Eight random tasks are in the suite by name; all others may be learned on as well, since none of
# them can be a task of a later suite.
SUITES: dict[str, tuple[str, ...]] = {
    "train": (
        *(task.name for task in TRAIN),
        *(f"random-{number}" for number in range(8)),
    ),
    "validation": tuple(task.name for task in VALIDATION),
    "test": tuple(task.name for task in TEST),
    "large": tuple(task.name for task in LARGE),
    "held-out-validation": tuple(task.name for task in HELD_OUT_VALIDATION),
    "held-out": tuple(task.name for task in HELD_OUT),
    "stream-train": tuple(task.name for task in STREAM_TRAIN),
    "stream-validation": tuple(task.name for task in STREAM_VALIDATION),
    "stream": tuple(task.name for task in STREAM),
}
