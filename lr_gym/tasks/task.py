"""What a task is: data in several splits, a model, a loss, metrics, a batch size and a horizon."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.tasks.stream import DataStream
from lr_gym.types import check_count

__all__ = [
    "SPLITS",
    "Data",
    "Split",
    "Task",
    "check_data",
    "check_source",
    "examples_of_split",
    "splits_of",
]


class Split(NamedTuple):
    """The examples of one split.

    Attributes:
        inputs: (n, ...).
        targets: (n, ...).
    """

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Split:
        """Move to a device; floating-point tensors become `dtype`, others keep theirs."""
        move = [t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in self]
        return Split(*move)


class Data(NamedTuple):
    """Disjoint splits. Each serves one purpose only, the one that its name says.

    The monitor split is the last one and may be left out, so that tasks made of the other four stay
    valid. A controller on such a task is shown no held-out loss.

    Attributes:
        gradient: minibatches of the inner training are drawn from it.
        reward: the controller's reward is measured on it.
        selection: hyperparameters, checkpoints and policies are chosen by it.
        test: reported figures are measured on it, and nothing else is.
        monitor: a controller may be shown the loss on it while the training goes on; None where the
            task holds out nothing for that.
    """

    gradient: Split
    reward: Split
    selection: Split
    test: Split
    monitor: Split | None = None

    def splits(self) -> dict[str, Split]:
        """The splits that there are, by their names, in the order of SPLITS."""
        return {name: split for name, split in self._asdict().items() if split is not None}

    def map(self, function: Callable[[Split], Split]) -> Data:
        """Data of whose splits each is what `function` makes of it; no monitor split stays none."""
        return Data(**{name: function(split) for name, split in self.splits().items()})

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Data:
        """Move all splits to a device; floating-point tensors become `dtype`."""
        return self.map(lambda split: split.to(device, dtype))


SPLITS = Data._fields


@dataclasses.dataclass(frozen=True)
class Task:
    """One problem of training a network.

    `lr_gym.tasks.check_task` tells what a new task lacks.

    Attributes:
        name: its key in TASKS; a task of one's own may have any name.
        about: one line for the documentation.
        model: builds the torch module, which maps one tensor to one tensor. All of its parameters
            are trained. They start from `lr_gym.tasks.initial.initial_parameters` and not from
            what they are built with, except inside `lr_gym.tasks.modules.Pretrained`.
        data: loads or makes the data. It must return the same data every time, since every
            environment and every process calls it: seed what is random, and cache what takes long
            (functools.cache). It may be a stream (`lr_gym.tasks.stream`) instead of splits.
        loss: (outputs (n, ...), targets (n, ...)) -> (n,), the loss of each example
            (reduction="none"); cross-entropy in nats.
        metrics: name -> (outputs, targets) -> 0-dim tensor.
        batch_size: examples of a minibatch, drawn uniformly with replacement.
        horizon: inner steps of a training.
        optimum: lowest possible loss where it is known, else a lower bound of it. Losses that can
            be negative need a bound other than 0.
        family: family of the model, for the disjointness of suites; None for a task of no suite.
        source: source of the data, for the same purpose.
        differs_by: in what a task of a later suite differs from every task of the suites that one
            learns on and selects by: its "family", its "source", a longer "horizon", or its "size",
            which is more parameters than any of theirs. None in the suite `train`.
        chunk: examples of one forward pass in evaluation.
        device: "cuda" where a training takes hours of a CPU: suites leave the task out on a machine
            without a GPU, and plain training loops use the GPU where there is one.
        sizes: number of examples of each split that there is, in the order of SPLITS; None if it is
            not stated.
        best: best known figure of a baseline on the test split, and the baseline; None if it has
            not been measured.

    Raises:
        ValueError: if the batch size, the horizon or the chunk is below 1.
    """

    name: str
    about: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data | DataStream]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    batch_size: int
    horizon: int
    optimum: float = 0.0
    family: str | None = None
    source: str | None = None
    differs_by: Literal["family", "source", "horizon", "size"] | None = None
    chunk: int = 4096
    device: Literal["cpu", "cuda"] = "cpu"
    sizes: tuple[int, ...] | None = None
    best: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "horizon", "chunk"):
            check_count(f"{name} of task {self.name!r}", getattr(self, name))


def check_data(name: str, data: Data) -> Data:
    """Check that every split has examples, and as many targets as inputs.

    A minibatch may be larger than the gradient split, since it is drawn with replacement. There may
    be a single class, whose loss falls towards 0.

    Args:
        name: name of the task, for the error.
        data: the data to check.

    Returns:
        The same data.

    Raises:
        ValueError: if a split is empty or its counts differ; the error names the task and the
            split.
    """
    for split, examples in data.splits().items():
        if len(examples.inputs) == 0:
            raise ValueError(f"the {split} split of task {name!r} is empty")
        if len(examples.inputs) != len(examples.targets):
            counts = f"{len(examples.inputs)} inputs and {len(examples.targets)} targets"
            raise ValueError(f"the {split} split of task {name!r} has {counts}")
    return data


def examples_of_split(task: str, data: Data, split: str) -> Split:
    """The examples of a split.

    Args:
        task: name of the task, for the error.
        data: its data.
        split: one of SPLITS.

    Raises:
        ValueError: for an unknown split, or one that the task has not.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    examples = data.splits().get(split)
    if examples is None:
        raise ValueError(
            f"task {task!r} has no {split} split: return one from its data(), as "
            f"Data(..., {split}=Split(inputs, targets))"
        )
    return examples


def check_source(name: str, source: Data | DataStream) -> Data | DataStream:
    """`check_data`, or a stream as it is.

    Args:
        name: name of the task, for the error.
        source: what the task's `data` has returned.

    Raises:
        ValueError: for splits that `check_data` refuses, and for what is neither splits nor a
            stream.
    """
    if isinstance(source, Data):
        return check_data(name, source)
    if isinstance(source, DataStream):
        return source
    raise ValueError(
        f"data() returns type {type(source).__name__} for task {name!r}, and must return "
        f"lr_gym.tasks.Data({', '.join(SPLITS)}), or a stream, lr_gym.tasks.stream.DataStream"
    )


def splits_of(task: Task) -> Data:
    """The splits of a task.

    Raises:
        ValueError: for a task whose data are a stream.
    """
    source = check_source(task.name, task.data())
    if isinstance(source, DataStream):
        raise ValueError(f"task {task.name!r} is a stream of data: it has no splits")
    return source
