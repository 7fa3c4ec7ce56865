"""Random tasks: an endless supply of small trainings to learn on, each a function of its number.

The number decides the data and how many of them, what is predicted, the network, the batch size and
the horizon; and also what the environment should start from, base optimizer and initial learning
rate. Only counter-based random numbers and Python's floats are used, so the same number gives the
same task on every machine.
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
from lr_gym.tasks.architectures import char_transformer
from lr_gym.tasks.losses import accuracy, cross_entropy, next_symbol, squared_error
from lr_gym.tasks.modules import LSTM, MeanOverTime, Recurrent, Residual
from lr_gym.tasks.random_tables import TABLES, columns_of, table_data
from lr_gym.tasks.sequences import sequences
from lr_gym.tasks.task import Data, Split, Task

__all__ = [
    "LANGUAGE_MODEL",
    "MAX_WEIGHTS",
    "RANGES",
    "RandomTask",
    "draw",
    "drawn_data",
    "drawn_task",
    "log_uniform",
    "random_task",
]

LANGUAGE_MODEL = "language-model"  # the network of every task whose source is "sequences"
MAX_WEIGHTS = 2_000_000  # no random task has more, but for its first layer and its readout

# What is drawn. Two numbers are a log-uniform range, of integers if they are; a longer tuple is
# choices of equal chance. Changing an entry, or the order, would change the tasks of all numbers.
RANGES: dict[str, tuple[Any, ...]] = {
    "source": (
        "mnist1d",
        "mnist1d",
        "digits",
        "digits",
        "tables",
        "tables",
        "tables",
        "sequences",
    ),
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
    "blocks": (1, 2, 3),
    "head": (8, 8, 16),
    "length": (16, 32),
    "symbols": (8, 40),
    "states": (16, 512),
    "successors": (2, 3, 4, 6),
}
LOADERS: dict[str, Callable[[], Data]] = {"mnist1d": datasets.mnist1d, "digits": datasets.digits}
SHAPES = {"mnist1d": (40,), "digits": (8, 8)}  # of one example
RECURRENCES: dict[str, Callable[[int, int], nn.Module]] = {"recurrent": Recurrent, "lstm": LSTM}


class RandomTask(NamedTuple):
    """A random task.

    Attributes:
        task: the task itself.
        options: options of LRControlVectorEnv, base optimizer and initial learning rate.
        drawn: every value that was drawn, for the records.
    """

    task: Task
    options: dict[str, Any]
    drawn: dict[str, Any]


def draw(number: int) -> dict[str, Any]:
    """Draw a value for each of RANGES, and what follows from these values.

    Raises:
        ValueError: if the number is negative.
    """
    if number < 0:
        raise ValueError(f"the number of a random task must be at least 0; got {number}")
    values = uniform(
        torch.tensor(number), Stream.TASK, 3, len(RANGES), dtype=torch.float64
    ).tolist()
    drawn: dict[str, Any] = {}
    for (name, choices), u in zip(RANGES.items(), values, strict=True):
        drawn[name] = (
            choices[int(u * len(choices))] if len(choices) > 2 else log_uniform(choices, u)
        )
    if drawn["source"] == "digits" and drawn["loss"] == "reconstruction":
        drawn["loss"] = "squared_error"  # digits-autoencoder is a task of the suite `test`
    if drawn["source"] == "sequences":
        drawn |= {"network": LANGUAGE_MODEL, "loss": "cross_entropy", "inputs": drawn["length"]}
    elif drawn["source"] == "tables":
        drawn |= _draw_target(number, drawn)
    else:
        drawn["inputs"] = math.prod(SHAPES[drawn["source"]])
    if drawn["loss"] == "reconstruction":
        drawn |= {"network": "dense", "classes": drawn["inputs"]}
    return drawn | {"width": _width(drawn)}


def log_uniform(bounds: tuple[Any, ...], u: float) -> Any:
    """The value at place `u`, in [0, 1), of a log-uniform range; an integer if the bounds are."""
    low, high = bounds
    value = low * math.exp(u * math.log(high / low))
    return round(value) if isinstance(low, int) else value


def _width(drawn: dict[str, Any]) -> int:
    """Units of a hidden layer, 16 to 1,024 as drawn for dense networks, and fewer for others.

    Others use each weight many times for one example. Where the hidden layers would together have
    more than MAX_WEIGHTS, the width is what these allow.
    """
    width: int = drawn["width"]
    if drawn["network"] == LANGUAGE_MODEL:  # 16 to 128, whole heads
        return 16 * round(math.sqrt(width / 16.0))
    if drawn["network"] != "dense":  # 8 to 256
        width = round(8.0 * (width / 16.0) ** (5.0 / 6.0))
    squares: int = drawn["depth"] - 1  # weights of the hidden layers, in squares of the width
    if drawn["network"] == "convolutions":
        squares *= drawn["kernel"] ** len(SHAPES[drawn["source"]])
    most = math.isqrt(MAX_WEIGHTS // max(1, squares))
    return min(width, most)


def _draw_target(number: int, drawn: dict[str, Any]) -> dict[str, Any]:
    """Draw the column of a table that is predicted.

    It is predicted as classes; as its value, if the loss is squared and the column holds numbers.
    """
    columns = columns_of(drawn["table"])
    target = int(integers(torch.tensor(number), Stream.TASK, 12, 1, len(columns))[0])
    column = columns[target]
    as_value = drawn["loss"] == "squared_error" and not column.levels
    return {
        "network": "dense",
        "inputs": sum(c.inputs for c in columns) - column.inputs,
        "classes": len(column.levels) or (1 if as_value else drawn["classes"]),
        "target": target,
    }


def drawn_data(number: int, drawn: dict[str, Any]) -> Data:
    """The data of the source, with a random part of its gradient split."""
    if drawn["source"] == "sequences":
        kind = [drawn[name] for name in ("symbols", "states", "successors", "length", "examples")]
        return sequences(number, *kind)
    if drawn["source"] == "tables":
        data = table_data(
            drawn["table"], drawn["target"], drawn["classes"], drawn["examples"], number
        )
    else:
        data = LOADERS[drawn["source"]]()
        count = len(data.gradient.inputs)
        rows = integers(torch.tensor(number), Stream.TASK, 6, drawn["examples"], count)
        chosen = torch.unique(rows)
        data = data._replace(gradient=Split(*(part[chosen] for part in data.gradient)))
    return data.map(lambda split: _scaled(split, drawn))


def _scaled(split: Split, drawn: dict[str, Any]) -> Split:
    """Scale the inputs, and make the targets what is predicted."""
    inputs = split.inputs * drawn["input_scale"]
    if drawn["loss"] == "reconstruction":
        return Split(inputs, inputs)
    classes = not split.targets.is_floating_point()
    return Split(inputs, split.targets % drawn["classes"] if classes else split.targets)


def _network(drawn: dict[str, Any]) -> nn.Module:
    """Build the network; docs/tasks.md describes the kinds."""
    if drawn["network"] == LANGUAGE_MODEL:
        heads = drawn["width"] // drawn["head"]
        sizes = drawn["symbols"], drawn["length"], drawn["width"], heads, drawn["blocks"]
        return char_transformer(*sizes)
    if drawn["network"] == "convolutions":
        return _convolutions(drawn)
    kind = drawn["network"]
    depth = drawn["depth"]
    width = drawn["width"]
    patch = drawn["inputs"] if kind == "dense" else drawn["patch"]
    count = drawn["inputs"] // patch
    modules: list[nn.Module] = [] if kind == "dense" else [nn.Unflatten(1, (count, patch))]
    fan_in = patch
    for layer in range(depth):
        if drawn["loss"] == "reconstruction" and layer == depth // 2:
            modules += [nn.Linear(fan_in, drawn["code"])]
            fan_in = drawn["code"]
        if kind in RECURRENCES and layer == depth - 1:
            modules += [RECURRENCES[kind](fan_in, width)]
        else:
            modules += _hidden_layer(drawn, fan_in)
        fan_in = width
    if kind == "patches":
        modules += [MeanOverTime()] if drawn["pool"] else [nn.Flatten()]
        fan_in = width if drawn["pool"] else width * count
    return nn.Sequential(*modules, nn.Linear(fan_in, drawn["classes"]))


def _hidden_layer(drawn: dict[str, Any], fan_in: int) -> list[nn.Module]:
    """A fully connected layer, perhaps with norm, and with a residual branch where sizes allow."""
    width = drawn["width"]
    norm = [nn.LayerNorm(width)] if drawn["norm"] else []
    block = [nn.Linear(fan_in, width), *norm, drawn["activation"]()]
    return [Residual(*block)] if drawn["residual"] and fan_in == width else block


def _convolutions(drawn: dict[str, Any]) -> nn.Module:
    """Convolutions of a series or a picture, and a readout of all positions or of their mean."""
    shape = SHAPES[drawn["source"]]
    width = drawn["width"]
    stride = drawn["stride"]
    kinds = ((nn.Conv1d, nn.AdaptiveAvgPool1d), (nn.Conv2d, nn.AdaptiveAvgPool2d))
    convolution, pool = kinds[len(shape) - 1]
    modules: list[nn.Module] = [nn.Unflatten(1, (1, *shape))]
    for layer in range(drawn["depth"]):
        channels = width if layer else 1
        kernel = drawn["kernel"]
        modules += [
            convolution(channels, width, kernel, stride, kernel // 2),
            drawn["activation"](),
        ]
        shape = tuple(-(-size // stride) for size in shape)
    modules += [pool(1)] if drawn["pool"] else []
    positions = 1 if drawn["pool"] else math.prod(shape)
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(width * positions, drawn["classes"]))


def _loss(drawn: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    if drawn["network"] == LANGUAGE_MODEL:
        return next_symbol
    if drawn["loss"] == "cross_entropy":
        return cross_entropy
    if drawn["loss"] == "reconstruction" or drawn["classes"] == 1:
        return squared_error
    return lambda outputs, classes: squared_error(
        outputs, nn.functional.one_hot(classes, drawn["classes"])
    )


def drawn_task(name: str, drawn: dict[str, Any], data: Callable[[], Data]) -> RandomTask:
    """Build a random task.

    Args:
        name: name of the task.
        drawn: what `draw` returns, perhaps with other values.
        data: loads the data of the task.
    """
    loss = _loss(drawn)
    task = Task(
        name=name,
        about=", ".join(f"{k} {getattr(v, '__name__', v)}" for k, v in drawn.items()),
        model=functools.partial(_network, drawn),
        data=data,
        loss=loss,
        metrics={} if loss is squared_error else {"accuracy": accuracy},
        batch_size=drawn["batch_size"],
        horizon=drawn["horizon"],
        family={"dense": "mlp"}.get(drawn["network"], drawn["network"]),
        source=drawn["source"],
    )
    options = {"base": drawn["base"], "initial_lr": (drawn["initial_lr"], drawn["initial_lr"])}
    return RandomTask(task, options, drawn)


@functools.lru_cache(maxsize=256)
def random_task(number: int) -> RandomTask:
    """The task `random-<number>`, for any integer of at least 0.

    Raises:
        ValueError: if the number is negative.
    """
    drawn = draw(number)
    return drawn_task(f"random-{number}", drawn, functools.partial(drawn_data, number, drawn))
