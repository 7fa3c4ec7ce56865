"""Random tasks that stand still at first: parities and recalls say what they claim to say."""

from __future__ import annotations

import functools

import pytest
import torch

from lr_gym.tasks.random_plateau import CHOSEN, PLATEAU_RANGES, random_plateau_task
from lr_gym.tasks.task import Data


@functools.cache
def draws(count: int = 200):
    return [random_plateau_task(number) for number in range(count)]


def first(source: str):
    return next(task for task in draws() if task.drawn["source"] == source)


def test_draws_lie_in_their_ranges():
    sources = [task.drawn["source"] for task in draws()]
    assert 70 < sources.count("parity") < 130
    for task in draws():
        drawn = task.drawn
        for name in ("examples", "horizon"):
            low, high = PLATEAU_RANGES[name]
            assert low <= drawn[name] <= high
        size = drawn["inputs"] if drawn["source"] == "parity" else drawn["inputs"] // 2
        low, high = PLATEAU_RANGES["bits" if drawn["source"] == "parity" else "length"]
        assert low <= size <= high
        assert drawn.get("chosen", CHOSEN[0]) in CHOSEN
        assert task.task.horizon == drawn["horizon"]


@pytest.mark.parametrize("source", ["parity", "recall"])
def test_the_splits_are_disjoint_parts_of_one_drawing(source):
    task = first(source)
    data = task.task.data()
    assert isinstance(data, Data)
    sizes = [len(split.inputs) for split in data.splits().values()]
    assert sizes == [task.drawn["examples"], 300, 300, 600, 300]
    again = random_plateau_task.__wrapped__(int(task.task.name.split("-")[-1])).task.data()
    for split, twin in zip(data.splits().values(), again.splits().values(), strict=True):
        assert torch.equal(split.inputs, twin.inputs)
        assert torch.equal(split.targets, twin.targets)
    if source == "recall":  # bits are few, so that examples come again
        everything = torch.cat([split.inputs for split in data.splits().values()])
        assert len(everything.unique(dim=0)) == len(everything)


def test_a_parity_is_even():
    task = first("parity")
    split = task.task.data().gradient
    minus = (split.inputs[:, : task.drawn["chosen"]] < 0).sum(1)
    assert torch.equal(split.targets, (minus % 2 == 0).long())
    assert set(split.inputs.unique().tolist()) == {-1.0, 1.0}
    one_bit = split.inputs[:, 0].mul(split.targets * 2.0 - 1.0).mean()
    assert one_bit.abs() < 0.1  # a single bit says nothing


def test_the_marked_number_is_recalled():
    split = first("recall").task.data().gradient
    numbers, marks = split.inputs.view(len(split.inputs), -1, 2).unbind(2)
    assert (marks.sum(1) == 1.0).all()
    assert torch.equal((numbers * marks).sum(1, keepdim=True), split.targets)
    assert (marks[:, marks.shape[1] // 2 :] == 0.0).all()


@pytest.mark.parametrize("source", ["parity", "recall"])
def test_a_model_reads_its_data(source):
    task = first(source).task
    outputs = task.model()(task.data().test.inputs[:4])
    loss = task.loss(outputs, task.data().test.targets[:4])
    assert loss.shape[0] == 4
