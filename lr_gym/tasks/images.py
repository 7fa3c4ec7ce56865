"""CIFAR-10 (Krizhevsky 2009) and ResNet-18 (He et al. 2016), both by way of torchvision."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from lr_gym.optional import require
from lr_gym.tasks.cache import cache_folder
from lr_gym.tasks.splits import split_examples, with_monitor
from lr_gym.tasks.task import Data, Split

__all__ = ["cifar10", "data_folder", "read_cifar10", "resnet18"]


def data_folder() -> Path:
    """The folder in which cifar-10-batches-py is looked for: LR_GYM_DATA, else the cache folder."""
    return Path(os.environ.get("LR_GYM_DATA") or cache_folder()).expanduser()


@functools.cache
def cifar10() -> Data:
    """`read_cifar10` of the data folder."""
    return read_cifar10(data_folder())


def read_cifar10(folder: Path, download: bool = True) -> Data:
    """Pictures (n, 3, 32, 32) and their classes (n,).

    Each channel is standardised by the gradient split. Nothing is augmented. Of the 50,000 training
    pictures 2 % each are the reward and the monitor split, and 6 % the selection split.

    Args:
        folder: holds cifar-10-batches-py, whose checksums torchvision verifies.
        download: whether torchvision may fetch what is missing.

    Raises:
        FileNotFoundError: if the files are neither there nor can be downloaded; the error says how
            to fill the folder.
        ImportError: if torchvision is missing.
    """
    known = require("torchvision.datasets", "tasks").CIFAR10
    try:
        try:
            parts = [known(folder, train=train) for train in (True, False)]
        except RuntimeError:
            if not download:
                raise
            parts = [known(folder, train=train, download=True) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({error}). On a machine with "
            "a connection run\n"
            f"  python -c \"import torchvision; torchvision.datasets.CIFAR10('{folder}', "
            'download=True)"\n'
            "or unpack cifar-10-python.tar.gz there, or name the folder that holds "
            "cifar-10-batches-py by --data-dir or LR_GYM_DATA"
        ) from error
    (x, y), (x_test, y_test) = (_tensors(part.data, part.targets) for part in parts)
    reward = len(x) * 4 // 100
    selection = len(x) * 6 // 100
    data = split_examples(x, y, (len(x) - reward - selection, reward, selection, 0))
    mean = data.gradient.inputs.mean((0, 2, 3), keepdim=True)
    std = data.gradient.inputs.std((0, 2, 3), keepdim=True)
    data = with_monitor(data._replace(test=Split(x_test, y_test)))
    return data.map(lambda split: Split((split.inputs - mean) / std, split.targets))


def _tensors(pictures: object, classes: list[int]) -> tuple[Tensor, Tensor]:
    """Bytes (n, 32, 32, 3) as numbers (n, 3, 32, 32) in [0, 1], and classes (n,)."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 255.0, torch.tensor(classes)


def resnet18(cifar_stem: bool = True) -> nn.Module:
    """ResNet-18 of torchvision for 10 classes.

    Args:
        cifar_stem: whether it starts with a 3 x 3 convolution of stride 1 and without pooling, for
            pictures of 32 x 32.
    """
    model: nn.Module = require("torchvision.models", "tasks").resnet18(num_classes=10)
    if cifar_stem:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model
