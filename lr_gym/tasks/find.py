"""Tasks by what a user writes on the command line: a name, or where a task of one's own stands."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

from lr_gym.tasks.check import check_task
from lr_gym.tasks.random_held_out import RANDOM_SUPPLIES
from lr_gym.tasks.suite import TASKS
from lr_gym.tasks.task import Task

__all__ = ["find_task"]


def find_task(task: str | Task) -> Task:
    """Find a task.

    Args:
        task: a Task, which is returned as it is; a name of TASKS; `random-<number>` or
            `random-held-out-<number>`; or the place of a task of one's own,
            `my_package.my_module:TASK`, whose module lies in the current folder or is installed.

    Raises:
        ValueError: if there is no such task; or if a task of one's own lacks something, see
            `check_task`.
        ImportError: if the module of a task of one's own imports something that is missing.
    """
    if isinstance(task, Task):
        return task
    if task in TASKS:
        return TASKS[task]
    if ":" in task:
        return _own_task(task)
    supply, _, number = task.rpartition("-")
    if supply in RANDOM_SUPPLIES and number.isdecimal():
        return RANDOM_SUPPLIES[supply](int(number)).task
    raise ValueError(
        f"unknown task {task!r}; choose from {', '.join(TASKS)}, "
        f"{', '.join(f'{supply}-<number>' for supply in RANDOM_SUPPLIES)}, or a task of your own "
        "by its place, my_package.my_module:TASK"
    )


# A benchmark asks for the same task at every training; the check loads its data.
@functools.cache
def _own_task(place: str) -> Task:
    """Import the task at `module:attribute` and check it."""
    module_name, _, attribute = place.partition(":")
    parts = [*module_name.split("."), attribute]
    if module_name.endswith(".py") or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f"task {place!r} is not the place of a task: write it as my_package.my_module:TASK, "
            "with dots for folders and without .py"
        )
    module = _import(module_name, place)
    found = getattr(module, attribute, None)
    if isinstance(found, Task):
        return check_task(found)
    tasks = [name for name, value in vars(module).items() if isinstance(value, Task)]
    what = "is missing" if found is None else f"is of type {type(found).__name__}"
    raise ValueError(
        f"task {place!r}: {attribute} {what} in {module.__file__}, and must be an "
        f"lr_gym.tasks.Task; Tasks there are: {', '.join(tasks) or 'none'}"
    )


def _import(name: str, place: str) -> ModuleType:
    """Import a module of the current folder or of an installed package."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        # It stays there, since the module may import others later. It comes last, so that a file
        # of the current folder cannot take the place of an installed module.
        sys.path.append(folder)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        if missing and error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"task {place!r}: there is no module {error.name!r}, neither in the current "
                f"folder {folder} nor installed: start in the folder that holds it"
            ) from error
        # The module is there, and something that it imports is missing.
        kind = ModuleNotFoundError if missing else ImportError
        message = f"task {place!r}: importing {name} failed: {error}"
        raise kind(message, name=error.name) from error
