"""A task whose steps take microseconds, ways to train on it, and random policies."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import nn

from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import MLPPolicy
from lr_gym.tasks import SUITES, TASKS, Data, Split, Task
from lr_gym.tasks.architectures import mlp
from lr_gym.tasks.initial import plain_model
from lr_gym.tasks.losses import cross_entropy
from lr_gym.tasks.stream import DataStream, Moments, StreamBatch
from lr_gym.training.executor import Executor
from lr_gym.training.inner_loop import minibatch
from lr_gym.types import Hyperparams


@functools.cache
def tiny_data() -> Data:
    """Four splits of 40 points in 5 dimensions, 3 classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 5, generator=generator)
    targets = (inputs @ torch.randn(5, 3, generator=generator)).argmax(1)
    return Data(*(Split(inputs[i : i + 40], targets[i : i + 40]) for i in range(0, 160, 40)))


TINY = Task(
    name="tiny",
    about="5-8-3 on random points",
    model=functools.partial(mlp, (5, 8, 3)),
    data=tiny_data,
    loss=cross_entropy,
    metrics={},
    batch_size=6,
    horizon=12,
)


# Tasks whose data are made or installed with the tests, and whose steps take milliseconds.
TABLES = (
    *("titanic", "diamonds", "flights", "babies", "concrete", "attrition", "orange-juice"),
    "weather",
)
STREAMS = tuple(
    name for suite in ("stream-train", "stream-validation", "stream") for name in SUITES[suite]
)
SMALL = tuple(
    name
    for name, task in TASKS.items()
    if task.source in ("mnist1d", "digits", "adding", "xor", *TABLES, "gaussian")
    and name not in (*SUITES["large"], *STREAMS)
)


def tiny_task(model) -> Task:
    """TINY with another model."""
    return dataclasses.replace(TINY, model=model)


def constant_hyper(loop: Executor, runs: int, lr: float = 1e-3) -> Hyperparams:
    """The same hyperparameters for every run and layer."""
    one = torch.ones(runs, loop.layout.num_layers, dtype=loop.dtype)
    return Hyperparams(one * lr, one * 0.9, one * 0.0, one * 0.0)


def advance(loop: Executor, seeds: torch.Tensor, steps: int):
    """State and losses after some steps from the start."""
    factor = torch.ones(steps, len(seeds), dtype=loop.dtype)
    return loop.advance(loop.init(seeds), constant_hyper(loop, len(seeds)), factor)


def plain_run(task: Task, run_seed: int, dtype: torch.dtype):
    """Start the run `run_seed` as a plain module.

    Returns:
        The module, and a function step -> loss of its minibatch.
    """
    seeds = torch.tensor([run_seed])
    data = task.data().to("cpu", dtype)
    model = plain_model(task, seeds, dtype)

    def loss_at(step: int) -> torch.Tensor:
        if isinstance(data, DataStream):
            batch = minibatch_of_stream(data, run_seed, step, task.batch_size, dtype)
            return task.loss(model(batch.inputs[0, 0]), batch.targets[0, 0]).mean()
        examples = len(data.gradient.inputs)
        (index,) = minibatch(seeds, torch.tensor([step]), task.batch_size, examples)
        return task.loss(model(data.gradient.inputs[index]), data.gradient.targets[index]).mean()

    return model, loss_at


def random_policy(
    spec: ControlSpec,
    interval: int = 3,
    seed: int = 0,
    scale: float = 0.7,
    outputs: int | None = None,
):
    """A policy with random weights, so that every action differs."""
    generator = torch.Generator().manual_seed(seed)
    features, outputs = len(spec.features), outputs or len(spec.controls)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * scale
    return MLPPolicy(
        spec=spec,
        interval=interval,
        weights=(draw(8, features), draw(outputs, 8)),
        biases=(draw(8), draw(outputs)),
        mean=torch.zeros(features),
        std=torch.ones(features),
    )


def minibatch_of_stream(
    stream: DataStream, run_seed: int, step: int, batch_size: int, dtype: torch.dtype
) -> StreamBatch:
    """The minibatch (1, 1, b, ...) of one run at one step, drawn alone."""
    seeds = torch.tensor([run_seed])
    steps = torch.arange(step + 1).unsqueeze(1)
    moments = stream.moments(seeds, stream.start(seeds, dtype), steps)
    now = Moments(*(values[-1:] for values in moments))
    return stream.examples(seeds.unsqueeze(0), steps[-1:], now, batch_size)


class Scale(nn.Module):
    """A module of a type that nobody knows, with a parameter of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor
