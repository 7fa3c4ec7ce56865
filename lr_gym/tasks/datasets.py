"""Small data sets that fit any machine: MNIST-1D and handwritten digits.

A loader works once in a process, and what takes long is prepared once on a machine.
"""

from __future__ import annotations

import functools
from importlib.metadata import version

import numpy as np
import torch

from lr_gym.optional import check_installed, require
from lr_gym.tasks.cache import cached_data
from lr_gym.tasks.splits import first_examples, split_examples, with_monitor
from lr_gym.tasks.task import Data, Split

__all__ = ["ENLARGED", "digits", "digits_pictures", "enlarged_digits", "few_mnist1d", "mnist1d"]

ENLARGED = (
    1000,
    100,
    100,
    200,
    100,
)  # in each split of `enlarged_digits`: a ResNet reads them slowly


@functools.cache
def mnist1d() -> Data:
    """MNIST-1D (Greydanus & Kobak 2024), made by its package.

    There are 4000 + 1000 series of 40 numbers, in 10 classes. The package's 4000 training samples
    become 3000 gradient, 250 reward, 250 monitor and 500 selection examples; its 1000 test samples
    are the test split.
    """
    check_installed("tasks", "mnist1d")  # importing it would take a second
    return with_monitor(cached_data(f"mnist1d-{version('mnist1d')}", _make_mnist1d))


def few_mnist1d() -> Data:
    """`mnist1d` with the first 500 examples of its gradient split."""
    return first_examples(mnist1d(), (500, 250, 500, 1000, 250))


def _make_mnist1d() -> Data:
    package = require("mnist1d.data", "tasks")
    # get_dataset would download a pickle; make_dataset seeds NumPy's global generator.
    saved = np.random.get_state()  # noqa: NPY002
    try:
        raw = package.make_dataset(package.get_dataset_args())
    finally:
        np.random.set_state(saved)  # noqa: NPY002

    def split(part: str, start: int, stop: int) -> Split:
        x = np.asarray(raw["x" if part == "train" else "x_test"][start:stop], dtype=np.float32)
        y = np.asarray(raw["y" if part == "train" else "y_test"][start:stop], dtype=np.int64)
        return Split(torch.from_numpy(x), torch.from_numpy(y))

    return Data(
        gradient=split("train", 0, 3000),
        reward=split("train", 3000, 3500),
        selection=split("train", 3500, 4000),
        test=split("test", 0, 1000),
    )


@functools.cache
def digits() -> Data:
    """Handwritten digits (Alpaydin & Kaynak 1998) from scikit-learn.

    There are 1797 pictures of 8 x 8, as inputs (n, 64) in [0, 1].
    """
    pictures, classes = require("sklearn.datasets", "tasks").load_digits(return_X_y=True)
    inputs = torch.from_numpy(pictures.astype(np.float32) / 16.0)
    targets = torch.from_numpy(classes.astype(np.int64))
    return with_monitor(split_examples(inputs, targets, (1000, 200, 200, 397)))


@functools.cache
def enlarged_digits() -> Data:
    """`digits` as pictures (n, 3, 16, 16): each pixel four times, in three equal channels."""

    def enlarged(split: Split) -> Split:
        pictures = split.inputs.view(-1, 1, 8, 8)
        pixels = pictures.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return Split(pixels.repeat(1, 3, 1, 1), split.targets)

    return first_examples(digits(), ENLARGED).map(enlarged)


@functools.cache
def digits_pictures() -> Data:
    """`digits` whose targets are the pictures themselves."""
    return digits().map(lambda split: Split(split.inputs, split.inputs))
