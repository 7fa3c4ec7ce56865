"""A user's own stream is checked before it trains, and what it lacks is named."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tiny import constant_hyper
from tiny_streams import task_of

from lr_gym.rng import Stream, uniform
from lr_gym.tasks import Task, check_task
from lr_gym.tasks.stream import Changes, DataStream, StreamBatch
from lr_gym.tasks.task import splits_of
from lr_gym.training.batches import compiled_draw
from lr_gym.training.executor import Executor


class Bare(DataStream):
    """A stream of one's own that is no dataclass."""

    changes, concepts = Changes(between=None), 1

    def to(self, device, dtype):
        return self

    def examples(self, run_seed, step, moments, batch_size):
        inputs = uniform(run_seed, Stream.BATCH, step, 5 * batch_size, dtype=torch.float32)
        inputs = inputs.unflatten(-1, (batch_size, 5))
        targets = (inputs.sum(-1) > 2.5).long()
        return StreamBatch(inputs, targets, torch.zeros_like(moments.weight))


def test_a_stream_of_ones_own_is_checked_and_trains():
    task = dataclasses.replace(task_of("classes"), data=Bare)
    assert check_task(task) is task
    assert compiled_draw(Bare(), 6) is None
    loop = Executor(task, base="adam")
    hyper = constant_hyper(loop, 4, 0.03)
    _, losses = loop.advance(loop.init(torch.arange(4)), hyper, torch.ones(300, 4))
    assert losses[-50:].mean() < 0.6 * losses[:5].mean()


def bare(**parts) -> Task:
    """A task on `Bare` with other attributes or methods."""
    stream = type("Own", (Bare,), parts)
    return dataclasses.replace(task_of("classes"), name="own", data=stream)


def examples(change):
    """A method `examples` whose batch is changed."""

    def method(self, run_seed, step, moments, batch_size):
        return change(Bare.examples(self, run_seed, step, moments, batch_size))

    return method


def unseeded(batch):
    return batch._replace(inputs=torch.rand_like(batch.inputs))


def mixed(batch):
    """Every run sees the mean over runs."""
    return batch._replace(inputs=batch.inputs.mean(1, keepdim=True).expand_as(batch.inputs))


WRONG = {
    "changes": (bare(changes=None), r"changes of the stream is of type NoneType, .*Changes\(\)"),
    "concepts": (bare(concepts=4), "concepts of the stream is 4, and must be 1 or a prime number"),
    "to": (bare(to=lambda *_: None), r"to\(\) of the stream returns type NoneType"),
    "tuple": (
        bare(examples=examples(tuple)),
        r"examples\(\) of the stream returns type tuple, .*StreamBatch\(inputs, targets, floor\)",
    ),
    "fails": (
        bare(examples=examples(lambda batch: 1 / 0)),
        r"examples\(\) of the stream fails on int64 of shape \(3, 2\).*ZeroDivisionError",
    ),
    "array": (
        bare(examples=examples(lambda batch: batch._replace(inputs=batch.inputs.numpy()))),
        r"the inputs that examples\(\) of the stream returns is of type ndarray",
    ),
    "shape of inputs": (
        bare(examples=examples(lambda batch: batch._replace(inputs=batch.inputs[:, :, 0]))),
        r"the inputs that .* float32 of shape \(3, 2, 5\) for K = 3 steps, B = 2 runs and b = 6",
    ),
    "shape of floor": (
        bare(examples=examples(lambda batch: batch._replace(floor=batch.floor[0]))),
        r"the floor that .* shape \(K, B\)",
    ),
    "dtype": (
        bare(examples=examples(lambda batch: batch._replace(inputs=batch.inputs.double()))),
        r"the inputs that .* float64 .* after to\(device, torch.float32\)",
    ),
    "NaN": (
        bare(examples=examples(lambda batch: batch._replace(floor=batch.floor / 0.0))),
        "the floor that .* holds 6 numbers that are NaN or infinite",
    ),
    "random": (bare(examples=examples(unseeded)), "run 0 is drawn alone at step 0"),
    "mixed": (bare(examples=examples(mixed)), "the inputs of the stream differ where run 0"),
    "model": (
        dataclasses.replace(bare(), model=lambda: torch.nn.Linear(4, 3)),
        r"the model fails on float32 of shape \(7, 5\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_stream_of_ones_own_lacks_is_named(name):
    task, message = WRONG[name]
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        check_task(task)
    assert "'own'" in str(error.value)


def test_a_stream_that_differs_from_call_to_call_is_named():
    count = itertools.count()

    def data():
        shift = 0.01 * next(count)
        change = lambda batch: batch._replace(inputs=batch.inputs + shift)
        return type("Own", (Bare,), {"examples": examples(change)})()

    with pytest.raises(ValueError, match="another stream the second time: its inputs differ"):
        check_task(dataclasses.replace(bare(), data=data))


def test_data_that_are_neither_splits_nor_a_stream_are_named():
    task = dataclasses.replace(task_of("values"), data=lambda: [1, 2])
    with pytest.raises(ValueError, match=r"type list for task 'tiny-values', .*or a stream"):
        Executor(task)
    with pytest.raises(ValueError, match="task 'tiny-values' is a stream of data"):
        splits_of(task_of("values"))
