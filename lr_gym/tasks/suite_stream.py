"""The streams: tasks whose data change at random times.

A controller learns on `stream-train`, is chosen on `stream-validation`, whose streams are made by
other generators, and is reported on `stream`: real data, permuted ones, and one that never changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from lr_gym.tasks import architectures as nets
from lr_gym.tasks import stream_data as data
from lr_gym.tasks.losses import accuracy, cross_entropy, squared_error
from lr_gym.tasks.stream import DataStream
from lr_gym.tasks.task import Task

__all__ = ["STREAM", "STREAM_TRAIN", "STREAM_VALIDATION"]

HORIZON = 4000


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count} examples"


def _stream(
    name: str,
    about: str,
    model: functools.partial[nn.Sequential],
    load: Callable[[], DataStream],
    batch_size: int,
    **others: Any,
) -> Task:
    """A row: classification by a fully connected network, unless `others` say otherwise."""
    fields: dict[str, Any] = {
        "loss": cross_entropy,
        "metrics": {"accuracy": accuracy},
        "horizon": HORIZON,
        "family": "mlp",
    }
    return Task(
        name=f"stream-{name}",
        about=about,
        model=model,
        data=load,
        batch_size=batch_size,
        **{**fields, **others},
    )


def _mlp(*widths: int) -> functools.partial[nn.Sequential]:
    return functools.partial(nets.mlp, widths)


VALUES: dict[str, Any] = {"loss": squared_error, "metrics": {}}  # regression


def _learned(
    kind: str,
    about: str,
    widths: tuple[int, ...],
    load: Callable[[], DataStream],
    batch_size: int,
    **others: Any,
) -> Task:
    """A row of `stream-train`, named by what changes and by the batch size."""
    name = f"{kind}-{batch_size}"
    about = f"{about}, {_examples(batch_size)} a step"
    return _stream(name, about, _mlp(*widths), load, batch_size, source="teacher", **others)


def _values(widths: tuple[int, ...], batch_size: int) -> Task:
    about = "noisy teachers that change"
    return _learned("values", about, widths, data.teacher_values, batch_size, **VALUES)


def _classes(widths: tuple[int, ...], batch_size: int) -> Task:
    about = "classes that change, wrong labels among them"
    return _learned("classes", about, widths, data.teacher_classes, batch_size)


def _clusters(widths: tuple[int, ...], batch_size: int) -> Task:
    about = "clusters whose labels are permuted at random times"
    clusters = functools.partial(data.cluster_labels, widths[0])
    return _learned("clusters", about, widths, clusters, batch_size)


STREAM_TRAIN: tuple[Task, ...] = (
    _values((16, 32, 1), 1),
    _values((16, 48, 1), 4),
    _values((16, 48, 48, 1), 16),
    _values((16, 96, 1), 64),
    _classes((16, 48, 5), 2),
    _classes((16, 64, 64, 64, 5), 16),
    _clusters((32, 64, 64, 10), 8),
    _clusters((64, 100, 100, 10), 32),
)

STREAM_VALIDATION: tuple[Task, ...] = (
    _stream(
        "waves",
        "sums of waves that change, with noise",
        _mlp(16, 64, 64, 1),
        data.wave_values,
        8,
        source="waves",
        differs_by="source",
        **VALUES,
    ),
    _stream(
        "digits-labels",
        "8 x 8 digits whose labels are permuted at random times",
        _mlp(64, 64, 10),
        data.digit_labels,
        8,
        source="digits",
        differs_by="source",
    ),
)

STREAM: tuple[Task, ...] = (
    _stream(
        "mnist1d-labels",
        "MNIST-1D whose labels are permuted at random times",
        _mlp(40, 100, 100, 10),
        data.mnist1d_labels,
        16,
        source="mnist1d",
        differs_by="source",
    ),
    _stream(
        "mnist1d-orders",
        "MNIST-1D whose entries are permuted at random times",
        _mlp(40, 100, 100, 10),
        data.mnist1d_orders,
        16,
        source="mnist1d",
        differs_by="source",
    ),
    _stream(
        "digits-groups",
        "8 x 8 digits of two classes at a time, which change at random times; a CNN",
        functools.partial(nets.cnn2d, 8, 8, 10),
        data.digit_groups,
        4,
        family="cnn",
        source="digits",
        differs_by="family",
    ),
    _stream(
        "flights",
        "flights in the order of 2013, which of them were late",
        _mlp(125, 64, 2),
        data.flights_in_order,
        64,
        source="flights",
        differs_by="source",
    ),
    _stream(
        "mnist1d-steady",
        "MNIST-1D that never changes",
        _mlp(40, 100, 100, 10),
        data.steady_mnist1d,
        16,
        source="mnist1d",
        differs_by="source",
    ),
)
