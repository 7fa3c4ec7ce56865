"""docs/tasks.md is what the table says."""

from __future__ import annotations

from pathlib import Path

from lr_gym.tasks import TASKS
from lr_gym.tasks.__main__ import document


def test_the_page_is_current():
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
    assert page == document(), "run: python -m lr_gym.tasks > docs/tasks.md"


def test_every_task_has_its_row():
    assert all(f"| `{name}` |" in document() for name in TASKS)
