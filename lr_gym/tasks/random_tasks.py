"""Random tasks.

An endless supply of small trainings for controllers to learn on, each a function of its number.

A draw decides the data and how much of them, what is to be told, the network, batch size and
horizon, and with them what the environment should start from: base optimizer and initial learning
rate. Only counter-based numbers and Python's floats are involved, so the same number gives the same
task on every machine.
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
from lr_gym.tasks.losses import accuracy, cross_entropy, squared_error
from lr_gym.tasks.modules import LSTM, MeanOverTime, Recurrent, Residual
from lr_gym.tasks.random_tables import TABLES, columns_of, table_data
from lr_gym.tasks.tables import EXTRA
from lr_gym.tasks.task import Data, Split, Task

__all__ = ["RANGES", "RandomTask", "random_task"]

# What is drawn: (low, high) log-uniform, integers rounded; a tuple of more, uniformly one of it.
RANGES: dict[str, tuple[Any, ...]] = {
    "source": ("mnist1d", "mnist1d", "digits", "digits", "tables", "tables", "tables"),
    "network": (
        "dense",
        "dense",
        "patches",
        "convolutions",
        "convolutions",
        "recurrent",
        "lstm",
        "lstm",
    ),
    "width": (16, 1024),
    "depth": (1, 2, 3, 4),
    "activation": (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU),
    "norm": (False, False, True),
    "residual": (False, False, True),
    "patch": (1, 4, 8),
    "kernel": (3, 3, 5),
    "stride": (1, 2, 2),
    "pool": (False, False, True),
    "code": (2, 32),
    "batch_size": (8, 64),
    "examples": (500, 20_000),
    "input_scale": (0.3, 3.0),
    "classes": (2, 10),
    "loss": ("cross_entropy", "cross_entropy", "squared_error", "reconstruction"),
    "horizon": (100, 3000),
    "base": ("sgd", "adam", "adamw"),
    "initial_lr": (1e-5, 1e-1),
    "table": TABLES,
}
RECURRENCES: dict[str, Callable[[int, int], nn.Module]] = {"recurrent": Recurrent, "lstm": LSTM}
SHAPES = {"mnist1d": (40,), "digits": (8, 8)}  # of an example


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
    values = uniform(
        torch.tensor(number), Stream.TASK, 3, len(RANGES), dtype=torch.float64
    ).tolist()
    drawn: dict[str, Any] = {}
    for (name, choices), u in zip(RANGES.items(), values, strict=True):
        if len(choices) > 2:
            drawn[name] = choices[int(u * len(choices))]
        else:
            low, high = choices
            value = low * math.exp(u * math.log(high / low))
            drawn[name] = round(value) if isinstance(low, int) else value
    if (
        drawn["source"] == "digits" and drawn["loss"] == "reconstruction"
    ):  # as digits-autoencoder, of the suite test
        drawn["loss"] = "squared_error"
    if drawn["source"] == "tables":
        drawn |= _told(number, drawn)
    else:
        drawn["inputs"] = math.prod(SHAPES[drawn["source"]])
    if drawn["loss"] == "reconstruction":
        drawn |= {"network": "dense", "classes": drawn["inputs"]}
    if drawn["network"] != "dense":  # 8 to 128, since the weights are used many times
        drawn["width"] = round(8.0 * (drawn["width"] / 16.0) ** (2.0 / 3.0))
    return drawn


def _told(number: int, drawn: dict[str, Any]) -> dict[str, Any]:
    """What of a table is to be told.

    Classes, or with squared errors and a column of numbers its value.
    """
    columns = columns_of(drawn["table"])
    target = int(integers(torch.tensor(number), Stream.TASK, 12, 1, len(columns))[0])
    told, inputs = columns[target], sum(column.inputs for column in columns)
    values = drawn["loss"] == "squared_error" and not told.levels
    return {
        "network": "dense",
        "inputs": inputs - told.inputs,
        "classes": len(told.levels) or (1 if values else drawn["classes"]),
        "target": target,
    }


def _data(number: int, drawn: dict[str, Any]) -> Data:
    """The source with a random part of its gradient split."""
    if drawn["source"] == "tables":
        data = table_data(
            drawn["table"], drawn["target"], drawn["classes"], drawn["examples"], number
        )
    else:
        data = {"mnist1d": datasets.mnist1d, "digits": datasets.digits}[drawn["source"]]()
        count = len(data.gradient.inputs)
        chosen = torch.unique(
            integers(torch.tensor(number), Stream.TASK, 6, drawn["examples"], count)
        )
        data = data._replace(gradient=Split(*(part[chosen] for part in data.gradient)))
    return Data(
        *(_split(split.inputs * drawn["input_scale"], split.targets, drawn) for split in data)
    )


def _split(inputs: Tensor, targets: Tensor, drawn: dict[str, Any]) -> Split:
    if drawn["loss"] == "reconstruction":
        return Split(inputs, inputs)
    return Split(inputs, targets if targets.is_floating_point() else targets % drawn["classes"])


def _network(drawn: dict[str, Any]) -> nn.Module:
    """A perceptron of all inputs, or of each of their patches, before a readout of all patches or of their mean.

    The last of its hidden layers may instead read the patches one by one, and the readout sees its last state. Or it is
    convolutions before a readout of all positions or of their mean; or, where inputs are to be reconstructed, has a
    narrow layer in its middle.
    """
    if drawn["network"] == "convolutions":
        return _convolutions(drawn)
    inputs, width, kind, depth = drawn["inputs"], drawn["width"], drawn["network"], drawn["depth"]
    patch = inputs if kind == "dense" else drawn["patch"]
    count = inputs // patch
    modules: list[nn.Module] = [] if kind == "dense" else [nn.Unflatten(1, (count, patch))]
    fan_in = patch
    for layer in range(depth):
        if drawn["loss"] == "reconstruction" and layer == depth // 2:
            modules += [nn.Linear(fan_in, drawn["code"])]
            fan_in = drawn["code"]
        if kind in RECURRENCES and layer == depth - 1:
            modules += [RECURRENCES[kind](fan_in, width)]
            continue
        block = [
            nn.Linear(fan_in, width),
            *[nn.LayerNorm(width)] * drawn["norm"],
            drawn["activation"](),
        ]
        modules += [Residual(*block)] if drawn["residual"] and fan_in == width else block
        fan_in = width
    if kind == "patches":
        modules += [MeanOverTime()] if drawn["pool"] else [nn.Flatten()]
    whole = kind == "patches" and not drawn["pool"]
    return nn.Sequential(*modules, nn.Linear(width * count if whole else width, drawn["classes"]))


def _convolutions(drawn: dict[str, Any]) -> nn.Module:
    """Of a series or a picture, as many positions as before or half of them after each."""
    shape, width, kernel, stride = (
        SHAPES[drawn["source"]],
        drawn["width"],
        drawn["kernel"],
        drawn["stride"],
    )
    convolution, pool = ((nn.Conv1d, nn.AdaptiveAvgPool1d), (nn.Conv2d, nn.AdaptiveAvgPool2d))[
        len(shape) - 1
    ]
    modules: list[nn.Module] = [nn.Unflatten(1, (1, *shape))]
    for layer in range(drawn["depth"]):
        modules += [
            convolution(width if layer else 1, width, kernel, stride, kernel // 2),
            drawn["activation"](),
        ]
        shape = tuple(-(-size // stride) for size in shape)
    modules += [pool(1)] if drawn["pool"] else []
    return nn.Sequential(
        *modules,
        nn.Flatten(),
        nn.Linear(width * (1 if drawn["pool"] else math.prod(shape)), drawn["classes"]),
    )


def _loss(drawn: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    if drawn["loss"] == "cross_entropy":
        return cross_entropy
    if drawn["loss"] == "reconstruction" or drawn["classes"] == 1:
        return squared_error
    return lambda outputs, classes: squared_error(
        outputs, nn.functional.one_hot(classes, drawn["classes"])
    )


@functools.lru_cache(maxsize=256)
def random_task(number: int) -> RandomTask:
    """Task `random-<number>`; any integer of at least 0."""
    if number < 0:
        raise ValueError(f"the number of a random task must be at least 0; got {number}")
    drawn = _draw(number)
    loss = _loss(drawn)
    task = Task(
        name=f"random-{number}",
        env_id=f"Random{number}-v0",
        about=", ".join(f"{k} {getattr(v, '__name__', v)}" for k, v in drawn.items()),
        model=functools.partial(_network, drawn),
        data=functools.partial(_data, number, drawn),
        loss=loss,
        metrics={} if loss is squared_error else {"accuracy": accuracy},
        batch_size=drawn["batch_size"],
        horizon=drawn["horizon"],
        family={"dense": "mlp"}.get(drawn["network"], drawn["network"]),
        source=drawn["source"],
        extra=EXTRA if drawn["source"] == "tables" else "",
    )
    options = {"base": drawn["base"], "initial_lr": (drawn["initial_lr"], drawn["initial_lr"])}
    return RandomTask(task, options, drawn)
