"""What trainings are judged by, in words: the test loss, or on streams the online loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["ONLINE", "TEST", "judged_by", "task_judged_by"]

TEST = "test loss"
ONLINE = "online loss"


def task_judged_by(entry: Mapping[str, Any]) -> str:
    """The name of the loss on one task, from its entry in results.json."""
    return ONLINE if entry.get("stream") else TEST


def judged_by(entries: Iterable[Mapping[str, Any]]) -> str:
    """The name of the loss on all tasks, from their entries in results.json."""
    found = {task_judged_by(entry) for entry in entries}
    return "test or online loss" if len(found) > 1 else next(iter(found), TEST)
