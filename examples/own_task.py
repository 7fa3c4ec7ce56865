"""A task of your own. Copy this file into your folder, and change data, model and TASK.

    python train_agent.py --agent ppo --task own_task:TASK --output-dir runs/own
    python evaluate.py --policy runs/own --task own_task:TASK --output-dir runs/own_eval

docs/own_task.md goes on from here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from lr_gym.tasks import task_from_dataset
from lr_gym.tasks.losses import accuracy, cross_entropy


def data() -> Dataset[tuple[torch.Tensor, ...]]:
    """Pairs (input, target), the same every time: any torch Dataset that has a length.

    Here the target says in which of four rings around the origin a point lies.
    """
    points = torch.randn(4000, 10, generator=torch.Generator().manual_seed(0))
    radius = points.norm(dim=1)
    return TensorDataset(points, torch.bucketize(radius, torch.tensor([2.5, 3.1, 3.7])))


def model() -> nn.Module:
    """A new model; its initial weights do not matter, since each training draws its own."""
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4))


TASK = task_from_dataset(
    "rings",
    model,
    data(),
    loss=cross_entropy,  # one value for each example
    metrics={"accuracy": accuracy},
    batch_size=32,
    horizon=300,  # steps of a training
)
