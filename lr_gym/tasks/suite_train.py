"""The tasks of the suite `train`, which controllers learn on."""

from __future__ import annotations

import functools

from torch import nn

from lr_gym.tasks import architectures as nets
from lr_gym.tasks import datasets
from lr_gym.tasks.losses import (
    accuracy,
    bernoulli_kl,
    cross_entropy,
    outputs_are_losses,
    squared_gap,
)
from lr_gym.tasks.modules import Pair
from lr_gym.tasks.synthetic import Quadratic, gaussian
from lr_gym.tasks.task import Task

__all__ = ["TRAIN"]

TRAIN: tuple[Task, ...] = (
    Task(
        name="mnist1d-mlp",
        about="MNIST-1D, fully connected 40-100-100-10",
        model=functools.partial(nets.mlp, (40, 100, 100, 10)),
        data=datasets.mnist1d,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=64,
        horizon=500,
        family="mlp",
        source="mnist1d",
        sizes=(3000, 250, 500, 1000, 250),
        best="accuracy 0.581, Adam, cosine from lr 0.01",
    ),
    Task(
        name="mnist1d-mlp-wide",
        about="MNIST-1D, fully connected 40-128-128-10",
        model=functools.partial(nets.mlp, (40, 128, 128, 10)),
        data=datasets.mnist1d,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=64,
        horizon=1000,
        family="mlp",
        source="mnist1d",
        sizes=(3000, 250, 500, 1000, 250),
        best="accuracy 0.584, Adam, cosine from lr 0.003",
    ),
    Task(
        name="digits-mlp",
        about="8 x 8 digits, fully connected 64-64-10",
        model=functools.partial(nets.mlp, (64, 64, 10)),
        data=datasets.digits,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        batch_size=32,
        horizon=500,
        family="mlp",
        source="digits",
        sizes=(1000, 100, 200, 397, 100),
        best="accuracy 0.975, Adam, cosine from lr 0.01",
    ),
    Task(
        name="quadratic",
        about="noisy quadratic in 20 dimensions, condition number 100, rotation and "
        "optimum of each run",
        model=functools.partial(Quadratic, 20, 100.0, 0.1),
        data=functools.partial(gaussian, 20),
        loss=outputs_are_losses,
        metrics={},
        batch_size=16,
        horizon=200,
        family="quadratic",
        source="gaussian",
        sizes=(4096, 512, 512, 512),
        best="loss 0.00014, Adam, cosine from lr 0.3",
    ),
    Task(
        name="logistic",
        about="logistic regression in 20 dimensions towards each run's own true probabilities",
        model=lambda: Pair(nn.Linear(20, 1), nn.Linear(20, 1)),
        data=functools.partial(gaussian, 20),
        loss=bernoulli_kl,
        metrics={},
        batch_size=16,
        horizon=200,
        family="linear",
        source="gaussian",
        sizes=(4096, 512, 512, 512),
        best="loss 9.44e-09, Adam, cosine from lr 0.03",
    ),
    Task(
        name="teacher-student",
        about="a 16-32-4 network learns each run's own 16-32-4 network, squared error",
        model=lambda: Pair(nets.mlp((16, 32, 4), nn.Tanh), nets.mlp((16, 32, 4), nn.Tanh)),
        data=functools.partial(gaussian, 16),
        loss=squared_gap,
        metrics={},
        batch_size=32,
        horizon=500,
        family="mlp",
        source="gaussian",
        sizes=(4096, 512, 512, 512),
        best="loss 0.00198, Adam, cosine from lr 0.03",
    ),
)
