"""The tables of tasks and suites."""

from __future__ import annotations

import itertools

import pytest

from lr_gym.envs.ids import TASK_OF_ENV
from lr_gym.tasks import SUITES, TASKS, find_task
from lr_gym.tasks.random_tasks import LANGUAGE_MODEL, RANGES


def keys(name: str) -> dict[str, object]:
    task = find_task(name)
    return {"family": task.family, "source": task.source, "horizon": task.horizon}


@pytest.mark.parametrize("later", ["validation", "test"])
def test_suites_are_disjoint_by_what_they_say(later):
    """Each task differs from all tasks of earlier suites: family, source or a longer horizon."""
    earlier = list(SUITES)[: list(SUITES).index(later)]
    before = [keys(name) for suite in earlier for name in SUITES[suite]]
    draws = [
        {"family": f, "source": s, "horizon": h}
        for f, s, h in itertools.product(
            ("mlp", LANGUAGE_MODEL, *set(RANGES["network"])),
            set(RANGES["source"]),
            [RANGES["horizon"][1]],
        )
    ]
    for name in SUITES[later]:
        mine = keys(name)
        by = find_task(name).differs_by
        others = [other[by] for other in before + draws]
        if by == "horizon":
            assert mine["horizon"] > max(others), name
        else:
            assert mine[by] not in others, (name, by)


def test_random_tasks_stay_within_the_train_suite():
    assert set(RANGES["source"]) == {"mnist1d", "digits", "tables", "sequences"}
    assert RANGES["horizon"][1] <= 3000


def test_every_task_is_in_one_suite():
    named = [name for suite in SUITES.values() for name in suite]
    assert len(named) == len(set(named))
    assert set(TASKS) <= set(named)


def test_every_task_has_one_environment():
    assert sorted(TASK_OF_ENV.values()) == sorted(TASKS)
    assert all(name == task.name for name, task in TASKS.items())
