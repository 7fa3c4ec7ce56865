"""What contestants may do with a held-out loss while they train.

It is the mean loss on the whole monitor split, in evaluation mode and at the weights at which the
optimizer wants to be evaluated. It is measured at the same moments for every contestant that wants
it. Neither the split that chooses learning rates nor the test split is looked at for it.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

from torch import nn

from lr_gym.tasks.task import Split

__all__ = ["MOMENTS", "HeldOutLosses", "HeldOutUse", "held_out_losses"]

MOMENTS = 50  # times that the held-out loss is measured in a training


class HeldOutUse(NamedTuple):
    """What a contestant does with the held-out loss; by default nothing.

    Attributes:
        best: whether the training is judged at the weights and buffers of the lowest held-out loss
            instead of the last ones.
        patience: the training ends after so many measurements without a new lowest loss; None never
            ends it so.
        tell: whether `optimizer.observe_validation` is told the loss, and the training ends when
            `optimizer.finished` says so.
        optional: whether the contestant also trains on tasks that have no monitor split. It then
            goes without a held-out loss.
    """

    best: bool = False
    patience: int | None = None
    tell: bool = False
    optional: bool = False

    @property
    def wanted(self) -> bool:
        """Whether the held-out loss is measured at all."""
        return self.best or self.tell or self.patience is not None


class HeldOutLosses:
    """The held-out losses of one training so far.

    Attributes:
        use: what the contestant does with them.
        split: the monitor split.
        checkpoint: a copy of the model's state at the lowest loss; None without `use.best`, and
            before the first loss that is finite.
    """

    def __init__(self, use: HeldOutUse, split: Split, horizon: int) -> None:
        """Begin without any loss.

        Args:
            use: what the contestant does with the losses.
            split: the monitor split, on the device of the training.
            horizon: inner steps of the whole training.
        """
        self.use = use
        self.split = split
        self.checkpoint: dict[str, Any] | None = None
        self._horizon = horizon
        self._every = max(1, horizon // MOMENTS)
        self._lowest = math.inf
        self._since_lowest = 0

    def due(self, updates: int, *, over: bool) -> bool:
        """Whether the loss is measured after so many updates.

        The last weights of a training are a candidate for the best ones, too.

        Args:
            updates: updates that were made.
            over: whether the contestant has ended the training.
        """
        last = over or updates == self._horizon
        return updates % self._every == 0 or (self.use.best and last)

    def note(self, loss: float, model: nn.Module) -> None:
        """Take note of a loss.

        Args:
            loss: mean loss on the split, inf where it is not finite.
            model: the model that it was measured with, at the same weights.
        """
        if loss < self._lowest:
            self._lowest = loss
            self._since_lowest = 0
            if self.use.best:
                self.checkpoint = copy.deepcopy(model.state_dict())
        else:
            self._since_lowest += 1

    @property
    def stops(self) -> bool:
        """Whether the patience of the contestant is at its end."""
        return self.use.patience is not None and self._since_lowest >= self.use.patience


def held_out_losses(
    use: HeldOutUse, task: str, split: Split | None, horizon: int
) -> HeldOutLosses | None:
    """The held-out losses of a training that begins, None where nobody looks at them.

    Args:
        use: what the contestant does with them.
        task: name of the task, for the error.
        split: the monitor split, None where the task has none.
        horizon: inner steps of the whole training.

    Raises:
        ValueError: if the contestant cannot do without, and the task has no monitor split.
    """
    if not use.wanted or (split is None and use.optional):
        return None
    if split is None:
        raise ValueError(
            f"task {task!r} has no monitor split, and this contestant decides by the loss on it: "
            "leave the contestant out, or let the task's data() return Data(..., monitor=Split("
            "inputs, targets)), which a stream cannot"
        )
    return HeldOutLosses(use, split, horizon)
