"""What a task is: data in four splits, a model, a loss, metrics, a batch size and a horizon."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["SPLITS", "Data", "Split", "Task", "accuracy", "cross_entropy"]


class Split(NamedTuple):
    """Examples of one split: inputs (n, ...), targets (n, ...)."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Split:
        """On a device; floating-point tensors in `dtype`, others as they are."""
        move = [t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in self]
        return Split(*move)


class Data(NamedTuple):
    """Disjoint splits: one may learn from only what its name says.

    Attributes:
        gradient: minibatches of the inner training.
        reward: the controller's reward.
        selection: choosing hyperparameters, checkpoints and policies.
        test: the reported figures, nothing else.
    """

    gradient: Split
    reward: Split
    selection: Split
    test: Split

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Data:
        """All splits on a device; floating-point tensors in `dtype`."""
        return Data(*(split.to(device, dtype) for split in self))


SPLITS = Data._fields


@dataclasses.dataclass(frozen=True)
class Task:
    """One inner training problem; a row of TASKS.

    Attributes:
        name: key in TASKS.
        env_id: name of its Gymnasium environment, without namespace.
        about: one line for the documentation.
        model: builds the torch module; its parameters are initialised by `initial_parameters`.
        data: loads or makes the data; called once and cached.
        loss: (outputs (n, ...), targets (n, ...)) -> (n,) loss of each example, in nats for cross-entropy.
        metrics: name -> (outputs, targets) -> 0-dim tensor.
        batch_size: examples of a minibatch, drawn uniformly with replacement.
        horizon: inner steps of a training.
        optimum: lowest possible loss where known, else 0.
    """

    name: str
    env_id: str
    about: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    batch_size: int
    horizon: int
    optimum: float = 0.0


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (n, classes) against classes (n,), in nats: (n,)."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of logits (n, classes) whose largest entry is the target class."""
    return (outputs.argmax(1) == targets).float().mean()
