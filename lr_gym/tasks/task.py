"""What a task is: data in four splits, a model, a loss, metrics, a batch size and a horizon."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.tasks.losses import accuracy, cross_entropy
from lr_gym.types import check_count

__all__ = ["SPLITS", "Data", "Split", "Task", "accuracy", "check_data", "cross_entropy"]


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
        model: builds the torch module, of one tensor to one tensor; its parameters are all trained,
            and are initialised by `initial_parameters`, whatever they are built with (but see
            `lr_gym.tasks.modules.Pretrained`).
        data: loads or makes the data, the same ones each time: every environment and every process
            calls it, so seed what is random and cache what takes long (functools.cache).
        loss: (outputs (n, ...), targets (n, ...)) -> (n,) loss of each example (reduction="none"),
            in nats for cross-entropy.
        metrics: name -> (outputs, targets) -> 0-dim tensor.
        batch_size: examples of a minibatch, drawn uniformly with replacement.
        horizon: inner steps of a training.
        optimum: lowest possible loss where known, else a lower bound; 0 will not do where losses
            can be negative.
        family: of models, for the disjointness of suites.
        source: of data, likewise.
        chunk: examples of one forward pass in evaluation.
        device: "cuda" where a training takes hours of a CPU: suites leave the task out on a machine
            without a GPU, and plain training loops use the GPU where there is one.
        extra: optional dependencies that data or model need, a name of pyproject.toml's; "" for
            none.
        sizes: examples in gradient, reward, selection and test split.
        best: best known figure of a baseline on the test split, and where it comes from.

    Raises:
        ValueError: for a batch size, horizon or chunk below 1.
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
    family: str = ""
    source: str = ""
    chunk: int = 4096
    device: str = "cpu"
    extra: str = ""
    sizes: tuple[int, int, int, int] | tuple[()] = ()
    best: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "horizon", "chunk"):
            check_count(f"{name} of task {self.name!r}", getattr(self, name))


def check_data(name: str, data: Data) -> Data:
    """Return the data, or raise a ValueError that names the task and the split.

    Every split needs examples.

    A minibatch larger than the gradient split is fine, since minibatches are drawn with
    replacement; so is a single class, whose loss falls towards 0.
    """
    for split, examples in zip(SPLITS, data, strict=True):
        if len(examples.inputs) == 0:
            raise ValueError(f"the {split} split of task {name!r} is empty")
        if len(examples.inputs) != len(examples.targets):
            counts = f"{len(examples.inputs)} inputs and {len(examples.targets)} targets"
            raise ValueError(f"the {split} split of task {name!r} has {counts}")
    return data
