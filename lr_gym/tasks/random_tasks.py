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

from lr_gym.rng import Stream, integers, normal, uniform
from lr_gym.tasks import datasets
from lr_gym.tasks.losses import accuracy, cross_entropy, squared_error
from lr_gym.tasks.modules import MeanOverTime, Recurrent, Residual, ScaledLinear
from lr_gym.tasks.random_tables import TABLES, columns_of, table_data
from lr_gym.tasks.tables import EXTRA
from lr_gym.tasks.task import Data, Split, Task

__all__ = ["RANGES", "RandomTask", "random_task"]

# What is drawn: (low, high) log-uniform, integers rounded; a tuple of more, uniformly one of it.
RANGES: dict[str, tuple[Any, ...]] = {
    "source": ("mnist1d", "mnist1d", "digits", "teacher", "clusters", "tables", "tables", "tables"),
    "inputs": (32, 400),
    "decay": (0.0, 0.0, 1.0),
    "network": ("dense", "dense", "dense", "patches", "patches", "recurrent"),
    "width": (16, 1024),
    "depth": (1, 2, 3, 4),
    "activation": (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU),
    "norm": (False, False, True),
    "residual": (False, False, True),
    "patch": (4, 4, 8),
    "pool": (False, False, True),
    "scale": (0.25, 4.0),
    "batch_size": (8, 64),
    "examples": (500, 20_000),
    "input_scale": (0.3, 3.0),
    "classes": (2, 10),
    "difficulty": (0.5, 4.0),
    "loss": ("cross_entropy", "cross_entropy", "squared_error"),
    "label_noise": (0.0, 0.0, 0.1, 0.3),
    "horizon": (100, 3000),
    "base": ("sgd", "adam", "adamw"),
    "initial_lr": (1e-5, 1e-1),
    "table": TABLES,
}
INPUTS = {"mnist1d": 40, "digits": 64}
MADE = ("teacher", "clusters")  # sources whose labels are made wrong: real ones are as they are
CLUSTERS = 3  # of each class


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
    if drawn["source"] == "tables":
        return drawn | _told(number, drawn)
    if drawn["source"] in INPUTS or drawn["network"] != "dense":  # sequences are kept short: they are slow
        drawn["inputs"] = INPUTS.get(drawn["source"], 32)
    if drawn["source"] not in MADE:
        drawn["label_noise"] = 0.0
    return drawn


def _told(number: int, drawn: dict[str, Any]) -> dict[str, Any]:
    """What of a table is to be told: classes, or with squared errors and a column of numbers its value."""
    columns = columns_of(drawn["table"])
    target = int(integers(torch.tensor(number), Stream.TASK, 12, 1, len(columns))[0])
    told, inputs = columns[target], sum(column.inputs for column in columns)
    values = drawn["loss"] == "squared_error" and not told.levels
    return {
        "network": "dense",
        "inputs": inputs - told.inputs,
        "classes": len(told.levels) or (1 if values else drawn["classes"]),
        "label_noise": 0.0,
        "target": target,
    }


def _made(number: int, drawn: dict[str, Any]) -> Data:
    """As many examples as one likes, of which all can be learned (clusters) or only what they have in common (teacher).

    Inputs are normal numbers. The variance of input k = 1, 2, ... is proportional to k^-decay, and 1 in the mean. The
    class that a teacher gives them is that of a random network of 32 tanh units. Of clusters, each example belongs to
    one of CLUSTERS of each class, whose centres lie 8 / difficulty of the clusters' deviations apart.
    """
    seed, inputs, hidden = torch.tensor(number), drawn["inputs"], 32

    def draw(step: int, *shape: int) -> Tensor:
        return normal(seed, Stream.TASK, step, math.prod(shape)).view(shape)

    sizes = [drawn["examples"], 600, 300, 600]
    variance = torch.arange(1, inputs + 1).double() ** -drawn["decay"]
    scales = (variance / variance.mean()).sqrt().float()
    x = draw(8, sum(sizes), inputs)
    if drawn["source"] == "clusters":
        count = CLUSTERS * drawn["classes"]
        own = integers(seed, Stream.TASK, 11, len(x), count)
        centres = draw(9, count, inputs) * (8.0 / drawn["difficulty"] / math.sqrt(2.0 * inputs))
        x, classes = (x + centres[own]) * scales, own % drawn["classes"]
    else:
        x = x * scales
        weights = draw(9, inputs, hidden) * (drawn["difficulty"] / math.sqrt(inputs))
        classes = (torch.tanh(x @ weights) @ draw(10, hidden, drawn["classes"])).argmax(1)
    return Data(*(Split(*part) for part in zip(torch.split(x, sizes), torch.split(classes, sizes), strict=True)))


def _data(number: int, drawn: dict[str, Any]) -> Data:
    """The source with a random part of its gradient split; some labels of every split may be wrong."""
    seed, classes = torch.tensor(number), drawn["classes"]
    if drawn["source"] == "tables":
        data = table_data(drawn["table"], drawn["target"], classes, drawn["examples"], number)
        return Data(*(Split(inputs * drawn["input_scale"], targets) for inputs, targets in data))
    real = {"mnist1d": datasets.mnist1d, "digits": datasets.digits}.get(drawn["source"])
    data = _made(number, drawn) if real is None else real()
    chosen = torch.unique(integers(seed, Stream.TASK, 6, drawn["examples"], len(data.gradient.inputs)))
    data = data._replace(gradient=Split(*(part[chosen] for part in data.gradient)))
    sizes = [len(split.targets) for split in data]
    wrong = uniform(seed, Stream.TASK, 4, sum(sizes), dtype=torch.float64) < drawn["label_noise"]
    labels = torch.cat([split.targets % classes for split in data])
    labels = torch.where(wrong, integers(seed, Stream.TASK, 5, sum(sizes), classes), labels)
    noisy = torch.split(labels, sizes)
    return Data(*(Split(split.inputs * drawn["input_scale"], y) for split, y in zip(data, noisy, strict=True)))


def _network(drawn: dict[str, Any]) -> nn.Module:
    """A perceptron of all inputs, or of each of their patches, before a readout of all patches or of their mean; or the
    last of its hidden layers reads the patches one by one and the readout sees its last state.
    """  # noqa: D205
    inputs, width, kind, depth = drawn["inputs"], drawn["width"], drawn["network"], drawn["depth"]
    patch = inputs if kind == "dense" else drawn["patch"]
    count = inputs // patch
    modules: list[nn.Module] = [nn.Unflatten(1, (count, patch))] if count > 1 else []
    for layer in range(depth):
        fan_in = width if layer else patch
        if kind == "recurrent" and layer == depth - 1:
            modules += [Recurrent(fan_in, width)]
            continue
        linear = ScaledLinear(fan_in, width, drawn["scale"])
        block = [linear, *[nn.LayerNorm(width)] * drawn["norm"], drawn["activation"]()]
        modules += [Residual(*block)] if drawn["residual"] and layer else block
    if kind == "patches":
        modules += [MeanOverTime()] if drawn["pool"] else [nn.Flatten()]
    whole = kind == "patches" and not drawn["pool"]
    return nn.Sequential(*modules, nn.Linear(width * count if whole else width, drawn["classes"]))


def _loss(drawn: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    if drawn["loss"] == "cross_entropy":
        return cross_entropy
    if drawn["classes"] == 1:
        return squared_error
    return lambda outputs, classes: squared_error(outputs, nn.functional.one_hot(classes, drawn["classes"]))


@functools.lru_cache(maxsize=256)
def random_task(number: int) -> RandomTask:
    """Task `random-<number>`; any integer of at least 0."""
    if number < 0:
        raise ValueError(f"the number of a random task must be at least 0; got {number}")
    drawn = _draw(number)
    task = Task(
        name=f"random-{number}",
        env_id=f"Random{number}-v0",
        about=", ".join(f"{k} {getattr(v, '__name__', v)}" for k, v in drawn.items()),
        model=functools.partial(_network, drawn),
        data=functools.partial(_data, number, drawn),
        loss=_loss(drawn),
        metrics={} if drawn["classes"] == 1 else {"accuracy": accuracy},
        batch_size=drawn["batch_size"],
        horizon=drawn["horizon"],
        family={"dense": "mlp"}.get(drawn["network"], drawn["network"]),
        source=drawn["source"],
        extra=EXTRA if drawn["source"] == "tables" else "",
    )
    options = {"base": drawn["base"], "initial_lr": (drawn["initial_lr"], drawn["initial_lr"])}
    return RandomTask(task, options, drawn)
