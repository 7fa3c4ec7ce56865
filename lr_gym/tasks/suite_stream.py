"""The streams: tasks whose data change at random times.

A controller learns on `stream-train`, is chosen on `stream-validation`, whose streams are made by
other generators, and is reported on `stream`: real data, permuted ones, and one that never changes.
"""

from __future__ import annotations

import functools

from lr_gym.tasks import architectures as nets
from lr_gym.tasks import stream_data as data
from lr_gym.tasks.losses import accuracy, cross_entropy, squared_error
from lr_gym.tasks.task import Task

__all__ = ["STREAM", "STREAM_TRAIN", "STREAM_VALIDATION"]

HORIZON = 4000


def _examples(count: int) -> str:
    return "1 example" if count == 1 else f"{count} examples"


def _values(name: str, widths: tuple[int, ...], batch_size: int) -> Task:
    """Regression on noisy teachers, under one of the names of `stream-train`."""
    return Task(
        name=f"stream-{name}",
        about=f"noisy teachers that change, {_examples(batch_size)} a step",
        model=functools.partial(nets.mlp, widths),
        data=data.teacher_values,
        loss=squared_error,
        metrics={},
        batch_size=batch_size,
        horizon=HORIZON,
        family="mlp",
        source="teacher",
    )


def _classes(name: str, widths: tuple[int, ...], batch_size: int) -> Task:
    """Classes of noisy teachers, under one of the names of `stream-train`."""
    return Task(
        name=f"stream-{name}",
        about=f"classes that change, wrong labels among them, {_examples(batch_size)} a step",
        model=functools.partial(nets.mlp, widths),
        data=data.teacher_classes,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=batch_size,
        horizon=HORIZON,
        family="mlp",
        source="teacher",
    )


def _clusters(name: str, widths: tuple[int, ...], batch_size: int) -> Task:
    """Clusters whose labels are permuted, under one of the names of `stream-train`."""
    return Task(
        name=f"stream-{name}",
        about=f"clusters whose labels are permuted at random times, {batch_size} examples a step",
        model=functools.partial(nets.mlp, widths),
        data=functools.partial(data.cluster_labels, widths[0]),
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=batch_size,
        horizon=HORIZON,
        family="mlp",
        source="teacher",
    )


STREAM_TRAIN: tuple[Task, ...] = (
    _values("values-1", (16, 32, 1), 1),
    _values("values-4", (16, 48, 1), 4),
    _values("values-16", (16, 48, 48, 1), 16),
    _values("values-64", (16, 96, 1), 64),
    _classes("classes-2", (16, 48, 5), 2),
    _classes("classes-16", (16, 64, 64, 64, 5), 16),
    _clusters("clusters-8", (32, 64, 64, 10), 8),
    _clusters("clusters-32", (64, 100, 100, 10), 32),
)

STREAM_VALIDATION: tuple[Task, ...] = (
    Task(
        name="stream-waves",
        about="sums of waves that change, with noise",
        model=functools.partial(nets.mlp, (16, 64, 64, 1)),
        data=data.wave_values,
        loss=squared_error,
        metrics={},
        batch_size=8,
        horizon=HORIZON,
        family="mlp",
        source="waves",
        differs_by="source",
    ),
    Task(
        name="stream-digits-labels",
        about="8 x 8 digits whose labels are permuted at random times",
        model=functools.partial(nets.mlp, (64, 64, 10)),
        data=data.digit_labels,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=8,
        horizon=HORIZON,
        family="mlp",
        source="digits",
        differs_by="source",
    ),
)

STREAM: tuple[Task, ...] = (
    Task(
        name="stream-mnist1d-labels",
        about="MNIST-1D whose labels are permuted at random times",
        model=functools.partial(nets.mlp, (40, 100, 100, 10)),
        data=data.mnist1d_labels,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=16,
        horizon=HORIZON,
        family="mlp",
        source="mnist1d",
        differs_by="source",
    ),
    Task(
        name="stream-mnist1d-orders",
        about="MNIST-1D whose entries are permuted at random times",
        model=functools.partial(nets.mlp, (40, 100, 100, 10)),
        data=data.mnist1d_orders,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=16,
        horizon=HORIZON,
        family="mlp",
        source="mnist1d",
        differs_by="source",
    ),
    Task(
        name="stream-digits-groups",
        about="8 x 8 digits of two classes at a time, which change at random times; a CNN",
        model=functools.partial(nets.cnn2d, 8, 8, 10),
        data=data.digit_groups,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=4,
        horizon=HORIZON,
        family="cnn",
        source="digits",
        differs_by="family",
    ),
    Task(
        name="stream-flights",
        about="flights in the order of 2013, which of them were late",
        model=functools.partial(nets.mlp, (125, 64, 2)),
        data=data.flights_in_order,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=64,
        horizon=HORIZON,
        family="mlp",
        source="flights",
        differs_by="source",
    ),
    Task(
        name="stream-mnist1d-steady",
        about="MNIST-1D that never changes",
        model=functools.partial(nets.mlp, (40, 100, 100, 10)),
        data=data.steady_mnist1d,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=16,
        horizon=HORIZON,
        family="mlp",
        source="mnist1d",
        differs_by="source",
    ),
)
