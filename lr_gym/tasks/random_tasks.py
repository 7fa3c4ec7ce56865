"""Random tasks: an endless supply of small trainings for controllers to learn on, each a function of its number.

A draw decides the data and how much of them, the labels' noise, the network, batch size and horizon, and with them what
the environment should start from: base optimizer and initial learning rate. Only counter-based numbers and Python's
floats are involved, so the same number gives the same task on every machine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.rng import Stream, integers, uniform
from lr_gym.tasks import datasets
from lr_gym.tasks.losses import accuracy, cross_entropy
from lr_gym.tasks.modules import ScaledLinear
from lr_gym.tasks.task import Data, Split, Task

__all__ = ["RANGES", "SOURCES", "RandomTask", "random_task"]

# What is drawn: (low, high) log-uniform, integers rounded; a tuple of more, uniformly one of it.
RANGES: dict[str, tuple[Any, ...]] = {
    "source": ("mnist1d", "digits", "mnist1d"),
    "width": (16, 256),
    "depth": (1, 2, 3, 4),
    "activation": (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU),
    "norm": (False, False, True),
    "scale": (0.25, 4.0),
    "batch_size": (8, 128),
    "examples": (200, 3000),
    "label_noise": (0.0, 0.0, 0.1, 0.3),
    "horizon": (100, 1500),
    "base": ("sgd", "adam", "adamw"),
    "initial_lr": (1e-5, 1e-1),
}
SOURCES: dict[str, tuple[Callable[[], Data], int]] = {
    "mnist1d": (datasets.mnist1d, 40),
    "digits": (datasets.digits, 64),
}


class RandomTask(NamedTuple):
    """A draw.

    Attributes:
        task: what is trained.
        options: of LRControlVectorEnv: base optimizer and initial learning rate.
        drawn: every value, for the records.
    """

    task: Task
    options: dict[str, Any]
    drawn: dict[str, Any]


def _draw(number: int) -> dict[str, Any]:
    values = uniform(torch.tensor(number), Stream.TASK, 3, len(RANGES), dtype=torch.float64).tolist()
    drawn: dict[str, Any] = {}
    for (name, choices), u in zip(RANGES.items(), values, strict=True):
        if len(choices) > 2:
            drawn[name] = choices[int(u * len(choices))]
        else:
            low, high = choices
            value = low * math.exp(u * math.log(high / low))
            drawn[name] = round(value) if isinstance(low, int) else value
    return drawn


def _noisy(labels: Tensor, fraction: float, number: int, classes: int) -> Tensor:
    """Replace a fraction of labels (n,) by uniformly drawn ones."""
    seed, count = torch.tensor(number), len(labels)
    wrong = uniform(seed, Stream.TASK, 4, count, dtype=torch.float64) < fraction
    return torch.where(wrong, integers(seed, Stream.TASK, 5, count, classes), labels)


def _data(source: str, examples: int, fraction: float, number: int) -> Data:
    """The source with a random part of its gradient split, some of whose labels are wrong; other splits are clean."""
    data = SOURCES[source][0]()
    chosen = torch.unique(integers(torch.tensor(number), Stream.TASK, 6, examples, len(data.gradient.inputs)))
    inputs, targets = (part[chosen] for part in data.gradient)
    return data._replace(gradient=Split(inputs, _noisy(targets, fraction, number, 10)))


def _network(inputs: int, width: int, depth: int, activation: type[nn.Module], norm: bool, scale: float) -> nn.Module:
    modules: list[nn.Module] = []
    for layer in range(depth):
        modules.append(ScaledLinear(width if layer else inputs, width, scale))
        modules += [nn.LayerNorm(width)] * norm + [activation()]
    return nn.Sequential(*modules, nn.Linear(width, 10))


@functools.lru_cache(maxsize=256)
def random_task(number: int) -> RandomTask:
    """Task `random-<number>`; any integer of at least 0."""
    if number < 0:
        raise ValueError(f"the number of a random task must be at least 0; got {number}")
    drawn = _draw(number)
    shape = [drawn[name] for name in ("width", "depth", "activation", "norm", "scale")]
    inputs = SOURCES[drawn["source"]][1]
    task = Task(
        name=f"random-{number}",
        env_id=f"Random{number}-v0",
        about=", ".join(f"{k} {getattr(v, '__name__', v)}" for k, v in drawn.items()),
        model=functools.partial(_network, inputs, *shape),
        data=functools.partial(_data, drawn["source"], drawn["examples"], drawn["label_noise"], number),
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=drawn["batch_size"],
        horizon=drawn["horizon"],
        family="mlp",
        source=drawn["source"],
    )
    options = {"base": drawn["base"], "initial_lr": (drawn["initial_lr"], drawn["initial_lr"])}
    return RandomTask(task, options, drawn)
