"""Where the minibatches of a training come from, and by what the training is judged.

Fixed data are judged by the splits that no minibatch is drawn from. Streams have no splits: see
`online`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.benchmark.recipes import TrainingLength
from lr_gym.tasks.task import Data, Split, Task
from lr_gym.training.inner_loop import minibatch

__all__ = ["CURVE_POINTS", "Final", "FixedData", "Score", "TrainingData", "score"]

CURVE_POINTS = 25
# Examples of the test split that a point of the curve is measured on. All of them would cost the
# language model more than its training.
CURVE_EXAMPLES = 512

Score = tuple[float, dict[str, float]]  # loss and metrics


class Final(NamedTuple):
    """The first three fields of an `Outcome`.

    Attributes:
        selection_loss: the loss by which learning rates are chosen.
        test_loss: the loss that is reported, nan where it was not looked at.
        metrics: metrics that are reported.
    """

    selection_loss: float
    test_loss: float
    metrics: dict[str, float]


@torch.no_grad()
def score(task: Task, model: nn.Module, split: Split) -> Score:
    """Mean loss and metrics of a model in evaluation mode; it is left in training mode."""
    model.eval()
    outputs = torch.cat([model(piece) for piece in torch.split(split.inputs, task.chunk)])
    model.train()
    loss = float(task.loss(outputs, split.targets).mean())
    metrics = {name: float(metric(outputs, split.targets)) for name, metric in task.metrics.items()}
    return (loss if math.isfinite(loss) else math.inf), metrics


class TrainingData(ABC):
    """The data of one training.

    Attributes:
        length: what an optimizer is told of the length of the training.
        curve_points: points of the curve, apart from the one before the first update.
        curve_starts: whether the curve has a point before the first update.
        monitor: the examples whose loss contestants may be shown, None where there are none.
    """

    length: TrainingLength
    curve_points: int = CURVE_POINTS
    curve_starts: bool = True
    monitor: Split | None = None

    @abstractmethod
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a minibatch."""

    @abstractmethod
    def note(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Take note of a minibatch before it is learned from.

        Args:
            loss: its mean loss.
            outputs: what the model said.
            targets: what was right.
        """

    @abstractmethod
    def curve_loss(self, scored: Callable[[Split], Score]) -> float:
        """The loss at a point of the curve.

        Args:
            scored: loss and metrics of the model on a split, as it is now.
        """

    @abstractmethod
    def final(self, scored: Callable[[Split], Score], test: bool) -> Final:
        """What a finished training is judged by.

        Args:
            scored: as for `curve_loss`.
            test: whether the figures that are reported are looked at.
        """


class FixedData(TrainingData):
    """Splits, and minibatches of one of them that are drawn with replacement."""

    def __init__(
        self, task: Task, data: Data, run_seed: Tensor, horizon: int, device: torch.device
    ) -> None:
        """Draw all minibatches, as indices of examples.

        Args:
            task: what is trained.
            data: its data.
            run_seed: (1,) int64.
            horizon: number of minibatches.
            device: where the training runs.
        """
        self._data = data.to(device, torch.float32)
        self.monitor = self._data.monitor
        examples = len(self._data.gradient.inputs)
        self.length = TrainingLength(horizon, examples / task.batch_size)
        batches = minibatch(
            run_seed.expand(horizon), torch.arange(horizon), task.batch_size, examples
        )
        self._batches = batches.to(device)  # (horizon, batch size)
        self._seen = Split(*(tensor[:CURVE_EXAMPLES] for tensor in self._data.test))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """See TrainingData."""
        rows = self._batches[step]
        return self._data.gradient.inputs[rows], self._data.gradient.targets[rows]

    def note(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Nothing: the splits judge."""

    def curve_loss(self, scored: Callable[[Split], Score]) -> float:
        """Loss of the first CURVE_EXAMPLES test examples."""
        return scored(self._seen)[0]

    def final(self, scored: Callable[[Split], Score], test: bool) -> Final:
        """Loss on the selection split, and loss and metrics on the test split."""
        selection, _ = scored(self._data.selection)
        if not test:
            return Final(selection, math.nan, {})
        tested, metrics = scored(self._data.test)
        return Final(selection, tested if math.isfinite(selection) else math.inf, metrics)
