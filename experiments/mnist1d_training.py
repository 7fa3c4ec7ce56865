"""What the optimizer experiments share: mnist1d, the MLP 40-128-128-10, a plain training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mnist1d.data
import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Split", "interval", "load", "loss_and_accuracy", "mlp", "train"]


class Split(NamedTuple):
    """Part of the data set."""

    x: Tensor  # (n, 40) inputs
    y: Tensor  # (n,) labels


def load(samples: int = 4000, seed: int = 42) -> tuple[Split, Split, Split]:
    """Training (64 %), validation (16 %) and test (20 %) data.

    Numpy's global generator is left as it was.
    """
    arguments = mnist1d.data.get_dataset_args()
    arguments.num_samples = samples
    arguments.seed = seed
    state = np.random.get_state()  # noqa: NPY002 - make_dataset seeds the global generator
    try:
        data = mnist1d.data.make_dataset(arguments)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    x, y = (torch.as_tensor(data[name]) for name in ("x", "y"))
    cut = len(x) * 4 // 5
    return (
        Split(x[:cut].float(), y[:cut].long()),
        Split(x[cut:].float(), y[cut:].long()),
        Split(torch.as_tensor(data["x_test"]).float(), torch.as_tensor(data["y_test"]).long()),
    )


def mlp(seed: int, width: int = 128) -> nn.Sequential:
    """40-width-width-10 with ReLU, its weights a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(40, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy."""
    logits = model(split.x)
    correct = (logits.argmax(1) == split.y).float()
    return float(functional.cross_entropy(logits, split.y)), float(correct.mean())


def train(
    model: nn.Module,
    step: Callable[[Tensor, int], object],
    data: Split,
    *,
    epochs: int,
    seed: int,
    batch: int = 128,
    after_epoch: Callable[[int], object] = lambda epoch: None,
) -> None:
    """Train over shuffled epochs; `step(loss, epoch)` is called once the gradients are there."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for rows in torch.randperm(len(data.x), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            model.zero_grad()
            loss = functional.cross_entropy(model(data.x[rows]), data.y[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            step(loss.detach(), epoch)
        after_epoch(epoch)


def interval(values: list[float]) -> str:
    """Mean and 95 % t-interval of the mean, as text."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return f"{mean:.4f} +- {half:.4f}"
