"""Random tasks that memorise: few examples, and wrong targets in the gradient split alone."""

from __future__ import annotations

import functools
import hashlib
import math

import pytest
import torch

from lr_gym.tasks import find_task
from lr_gym.tasks.random_held_out import (
    FEW,
    HELD_OUT_RANGES,
    RANDOM_SUPPLIES,
    WRONG,
    random_held_out_task,
)
from lr_gym.tasks.random_tasks import LANGUAGE_MODEL, drawn_data, random_task
from lr_gym.tasks.task import Data, Split
from lr_gym.tasks.wrong_targets import with_wrong_targets

# Number -> checksum of random_task(number). Its data are whole numbers but for a scale.
CHECKSUMS = {
    1: "02c074f596b60084",
    3: "3fdc92ff315b111e",
    5: "9f8125390ba28bd5",
    6: "6ea0e8237d14ee06",
}
ANEW = {"examples", "wrong", "horizon"}


@functools.cache
def draws(count: int = 600):
    return [random_held_out_task(number) for number in range(count)]


def number_with(kind: str) -> int:
    """The first number of such a task whose targets are wrong."""
    fits = {
        "classes": lambda d: d["source"] == "mnist1d" and d["loss"] == "cross_entropy",
        "one-hot": lambda d: d["source"] == "digits" and d["loss"] == "squared_error",
        "values": lambda d: d["source"] == "tables" and d["classes"] == 1,
        "table": lambda d: d["source"] == "tables" and d["loss"] == "cross_entropy",
        "sequences": lambda d: d["network"] == LANGUAGE_MODEL,
    }[kind]
    return next(
        number for number, d in enumerate(draws()) if d.drawn["wrong"] > 0.1 and fits(d.drawn)
    )


@pytest.mark.parametrize("number", CHECKSUMS)
def test_other_random_tasks_are_bit_for_bit_what_they_were(number):
    task, options, _ = random_task(number)
    about = (task.name, task.batch_size, task.horizon, task.family, task.source, options)
    checksum = hashlib.sha256(task.about.encode())
    checksum.update(repr(about).encode())
    for split in task.data().splits().values():
        for tensor in split:
            checksum.update(tensor.contiguous().numpy().tobytes())
    assert checksum.hexdigest()[:16] == CHECKSUMS[number]


def test_it_is_the_random_task_with_a_few_other_draws():
    for number, mine in enumerate(draws(100)):
        theirs = random_task(number)
        assert mine.options == theirs.options
        assert mine.drawn.keys() == theirs.drawn.keys() | {"wrong"}
        assert all(mine.drawn[key] == theirs.drawn[key] for key in theirs.drawn.keys() - ANEW)
        assert (mine.task.family, mine.task.source) == (theirs.task.family, theirs.task.source)


def test_shares_and_ranges_are_as_stated():
    drawn = [d.drawn for d in draws()]
    few = [
        mine["examples"]
        for number, mine in enumerate(drawn)
        if mine["examples"] != random_task(number).drawn["examples"]
    ]
    assert len(few) / len(drawn) == pytest.approx(FEW, abs=0.05)
    labelled = [d["wrong"] for d in drawn if d["loss"] != "reconstruction"]
    assert all(d["wrong"] == 0.0 for d in drawn if d["loss"] == "reconstruction")
    wrong = [share for share in labelled if share]
    assert len(wrong) / len(labelled) == pytest.approx(WRONG, abs=0.06)
    found = {"examples": few, "wrong": wrong, "horizon": [d["horizon"] for d in drawn]}
    for name, (low, high) in HELD_OUT_RANGES.items():
        values = found[name]
        assert low <= min(values) <= max(values) <= high
        below = sum(value < math.sqrt(low * high) for value in values) / len(values)
        assert 0.4 < below < 0.6, name


@pytest.mark.parametrize("kind", ["classes", "one-hot", "values", "table", "sequences"])
def test_as_many_targets_are_wrong_as_drawn_and_only_in_the_gradient_split(kind):
    number = number_with(kind)
    task, _, drawn = random_held_out_task(number)
    data, clean = task.data(), drawn_data(number, drawn)
    for name, split in data.splits().items():
        theirs = clean.splits()[name]
        assert torch.equal(split.inputs, theirs.inputs)
        assert name == "gradient" or torch.equal(split.targets, theirs.targets)
    mine, right = data.gradient.targets, clean.gradient.targets
    changed = (mine != right).flatten(1).any(1) if mine.ndim > 1 else mine != right
    expected = round(drawn["wrong"] * len(right))
    if kind in ("values", "sequences"):  # of two examples with equal targets neither is changed
        assert 0 < changed.sum() <= expected
        assert torch.equal(mine.sort(0).values, right.sort(0).values)
    else:
        assert changed.sum() == expected
        assert 0 <= mine.min() <= mine.max() < drawn["classes"]
    assert torch.equal(task.data().gradient.targets, mine)


def test_a_wrong_class_is_any_other_class():
    """Each of the further classes is as likely as the others."""
    right = Split(torch.zeros(4000, 1), torch.arange(4000) % 5)
    data = with_wrong_targets(Data(right, right, right, right), 0.5, 5, seed=3)
    further = (data.gradient.targets - right.targets) % 5
    counts = torch.bincount(further, minlength=5)
    assert counts[0] == 2000
    assert ((counts[1:] - 500).abs() < 80).all()


@pytest.mark.parametrize("supply", RANDOM_SUPPLIES)
def test_a_name_finds_the_task(supply):
    assert find_task(f"{supply}-7") is RANDOM_SUPPLIES[supply](7).task
    assert find_task(f"{supply}-7").name == f"{supply}-7"
    with pytest.raises(ValueError, match="at least 0; got -1"):
        RANDOM_SUPPLIES[supply](-1)
    with pytest.raises(ValueError, match=f"unknown task.*{supply}-<number>"):
        find_task(f"{supply}-x")


def test_all_data_are_finite():
    """Medians and deviations of few rows are numbers too."""
    for task, _, drawn in draws(60):
        if drawn["source"] == "tables" and drawn["examples"] < 200:
            for split in task.data().splits().values():
                assert split.inputs.isfinite().all()
                assert split.targets.isfinite().all()
