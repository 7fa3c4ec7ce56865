"""Training on a stream: every minibatch is a test first, and then it is learned from, once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lr_gym.benchmark.recipes import TrainingLength
from lr_gym.benchmark.training_data import Final, Score, TrainingData
from lr_gym.tasks import find_task
from lr_gym.tasks.stream import DataStream, advanced
from lr_gym.tasks.task import Split, Task

__all__ = ["STREAM_METRICS", "OnlineData", "change_steps", "is_stream"]

# after_change: mean loss above the floor in the first AFTER_CHANGE steps after each change; nan
#     where nothing changed, and absent where nobody knows when the stream changes.
# late_over_early: the same mean over the last fifth of a training, divided by that over its second
#     fifth. It grows where a network loses its plasticity. nan where the divisor is not above 0.
STREAM_METRICS = ("after_change", "late_over_early")
AFTER_CHANGE = 100
CHUNK = 100  # minibatches that are drawn at a time: a whole stream may not fit into memory
# Finer than on fixed data, so that one sees what a change does.
STREAM_CURVE_POINTS = 100


class OnlineData(TrainingData):
    """A stream of minibatches, whose losses before they are learned from judge the training.

    Under optimizers that average weights, these are the losses at the weights that are trained.
    """

    curve_points = STREAM_CURVE_POINTS
    curve_starts = False

    def __init__(
        self, task: Task, stream: DataStream, run_seed: Tensor, horizon: int, device: torch.device
    ) -> None:
        """Begin the stream.

        Args:
            task: what is trained.
            stream: its data.
            run_seed: (1,) int64.
            horizon: number of minibatches.
            device: where the training runs.
        """
        self.length = TrainingLength(horizon, None, endless=True)
        self._task = task
        self._stream = stream.to(device, torch.float32)
        self._run_seed = run_seed.to(device)
        self._position = self._stream.start(self._run_seed, torch.float32)
        self._drawn = 0  # minibatches so far, the current chunk included
        self._chunk: tuple[Tensor, Tensor] | None = None  # inputs, targets (K, b, ...)
        # By the step, in chunks (K,): floor, and whether it is soon after a change.
        self._floors: list[Tensor] = []
        self._changed: list[Tensor] = []
        # By the step, and nothing is read back from the device: loss, and each metric.
        self._losses: list[Tensor] = []
        self._metrics: dict[str, list[Tensor]] = {name: [] for name in task.metrics}
        self._read = 0  # minibatches that the points of the curve cover so far

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """See TrainingData.

        Raises:
            ValueError: for a step of another chunk than this or the next one.
        """
        if step == self._drawn:
            self._draw()
        place = step - (self._drawn - self._size)
        if self._chunk is None or not 0 <= place < self._size:
            raise ValueError(f"a stream is drawn in order, and step {step} is not the next one")
        inputs, targets = self._chunk
        return inputs[place], targets[place]

    def note(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """See TrainingData."""
        self._losses.append(loss)
        for name, metric in self._task.metrics.items():
            self._metrics[name].append(metric(outputs, targets))

    def curve_loss(self, scored: Callable[[Split], Score]) -> float:
        """Mean loss above the floor since the last point."""
        losses = self._excess()[self._read :]
        self._read = len(self._losses)
        return _finite(float(losses.mean()))

    def final(self, scored: Callable[[Split], Score], test: bool) -> Final:
        """The mean of all losses above the floor, for both purposes; and metrics."""
        excess = self._excess()
        loss = _finite(float(excess.mean()))
        if not test:
            return Final(loss, math.nan, {})
        metrics = {name: _mean(torch.stack(values)) for name, values in self._metrics.items()}
        if self._stream.changes.between is not None:
            metrics["after_change"] = _mean(excess[torch.cat(self._changed)])
        metrics["late_over_early"] = late_over_early(excess)
        return Final(loss, loss, metrics)

    @property
    def _size(self) -> int:
        """Minibatches of the current chunk."""
        return 0 if self._chunk is None else len(self._chunk[0])

    def _draw(self) -> None:
        """Draw the next chunk."""
        count = min(CHUNK, self.length.steps - self._drawn)
        steps = torch.arange(self._drawn, self._drawn + count, device=self._run_seed.device)
        batch, moments = self._stream.draw(
            self._run_seed, self._position, steps.unsqueeze(1), self._task.batch_size
        )
        self._position = advanced(
            self._position, batch, moments, torch.full_like(self._run_seed, count)
        )
        self._chunk = batch.inputs[:, 0], batch.targets[:, 0]
        self._drawn += count
        self._floors.append(batch.floor[:, 0])
        soon = (moments.segment > 0) & (moments.since < AFTER_CHANGE)
        self._changed.append(soon[:, 0])

    def _excess(self) -> Tensor:
        """Losses above the floor (steps,) so far, in double precision for their means."""
        losses = torch.stack(self._losses).double()
        return losses - torch.cat(self._floors)[: len(losses)]


def late_over_early(losses: Tensor) -> float:
    """Mean of the last fifth of some losses over that of the second fifth.

    It is nan where the second fifth is empty or its mean is not above 0.
    """
    fifth = len(losses) // 5
    early = _mean(losses[fifth : 2 * fifth])
    late = _mean(losses[len(losses) - fifth :])
    return late / early if early > 0.0 else math.nan


def is_stream(task: str) -> bool:
    """Whether the data of the task of this name are a stream; they are loaded to find out."""
    return isinstance(find_task(task).data(), DataStream)


def change_steps(stream: DataStream, run_seed: Tensor, horizon: int) -> list[int]:
    """The steps of one run at which a stream changes, none where nobody knows them.

    Args:
        stream: the data.
        run_seed: (1,) int64.
        horizon: number of minibatches.
    """
    position = stream.start(run_seed, torch.float32)
    segment = stream.moments(run_seed, position, torch.arange(horizon).unsqueeze(1)).segment[:, 0]
    return [int(step) + 1 for step in torch.nonzero(segment.diff())[:, 0]]


def _mean(values: Tensor) -> float:
    """The mean, nan of none."""
    return float(values.double().mean())


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
