"""Finish: how a training ends once its end is decided.

A training has three phases. In "run" nothing is decided. In "anneal" the learning rate falls
linearly to 0. In "done" it is 0. A phase follows from the steps made and from the step at which the
end was decided, so that nothing else has to be kept.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lr_gym.types import check_number

__all__ = ["PHASES", "Anneal", "Endings", "Finish"]

PHASES = ("run", "anneal", "done")


@dataclasses.dataclass(frozen=True)
class Anneal:
    """How long the learning rate falls.

    >>> Anneal().length(step=400, horizon=2000)
    200
    >>> Anneal().length(step=1600, horizon=2000)
    400
    >>> Anneal().length(step=1600, horizon=None)
    400

    Raises:
        ValueError: for a share outside [0, 1].
    """

    share_of_horizon: float = 0.1
    """It falls for at least this share of the whole training, where its length is known."""
    share_of_steps: float = 0.25
    """It falls for at least this share of the steps made so far."""

    def __post_init__(self) -> None:
        """Check every field."""
        for field in dataclasses.fields(self):
            check_number(field.name, getattr(self, field.name), 0.0, 1.0)

    def length(self, step: int, horizon: int | None) -> int:
        """Steps for which the learning rate falls, never more than are left.

        Args:
            step: inner steps made.
            horizon: inner steps of the whole training, None where unknown.
        """
        length = max(1, round(self.share_of_steps * step))
        if horizon is None:
            return length
        return min(max(length, round(self.share_of_horizon * horizon)), max(horizon - step, 0))


class Finish(NamedTuple):
    """When a training ends.

    >>> finish = Finish().decide(step=400, horizon=2000)
    >>> [finish.phase(step) for step in (400, 599, 600)]
    ['anneal', 'anneal', 'done']
    >>> [finish.factor(step) for step in (400, 500, 600)]
    [1.0, 0.5, 0.0]

    Attributes:
        decided: inner steps made when the end was decided, -1 while nothing is decided.
        length: inner steps for which the learning rate falls.
    """

    decided: int = -1
    length: int = 0

    def decide(self, step: int, horizon: int | None, anneal: Anneal | None = None) -> Finish:
        """Decide that the training ends; what was decided before stays.

        Args:
            step: inner steps made.
            horizon: inner steps of the whole training, None where unknown.
            anneal: how long the learning rate falls.
        """
        if self.decided >= 0:
            return self
        return Finish(step, (anneal or Anneal()).length(step, horizon))

    @property
    def end(self) -> int | None:
        """Inner steps of the whole training; None before the end is decided."""
        return None if self.decided < 0 else self.decided + self.length

    def phase(self, step: int) -> str:
        """One of PHASES, after `step` inner steps."""
        if self.end is None:
            return "run"
        return "anneal" if step < self.end else "done"

    def factor(self, step: int) -> float:
        """Factor on the learning rate of the step that follows `step` inner steps."""
        if self.end is None:
            return 1.0
        return min(max(self.end - step, 0) / max(self.length, 1), 1.0)


class Endings(NamedTuple):
    """When B trainings of one length end: a Finish for each, on the host.

    Attributes:
        decided: (B,) as in Finish.
        length: (B,) as in Finish.
    """

    decided: NDArray[np.int64]
    length: NDArray[np.int64]

    @property
    def undecided(self) -> NDArray[np.bool_]:
        """(B,) whether nothing is decided about the end of each training."""
        return self.decided < 0

    def decide(
        self, finishing: NDArray[np.bool_], step: NDArray[np.int64], horizon: int
    ) -> Endings:
        """Decide that some trainings end; what was decided before stays.

        Args:
            finishing: (B,) the trainings.
            step: (B,) inner steps made.
            horizon: inner steps of a whole training.
        """
        decided = self.decided.copy()
        length = self.length.copy()
        for row in np.flatnonzero(finishing):
            before = Finish(int(decided[row]), int(length[row]))
            decided[row], length[row] = before.decide(int(step[row]), horizon)
        return Endings(decided, length)

    def end(self, horizon: int) -> NDArray[np.int64]:
        """(B,) inner steps of each whole training."""
        return np.where(self.undecided, horizon, self.decided + self.length)

    def schedule_step(self, step: NDArray[np.int64]) -> NDArray[np.int64]:
        """The step (..., B) that the base schedule is at: it stands still from the decision on."""
        return np.where(self.undecided, step, np.minimum(step, self.decided))

    def factor(self, step: NDArray[np.int64]) -> NDArray[np.float64]:
        """Factor (..., B) on the learning rates of the steps that follow `step` (..., B) steps."""
        left = np.maximum(self.decided + self.length - step, 0)
        falling = np.minimum(left / np.maximum(self.length, 1), 1.0)
        return np.where(self.undecided, 1.0, falling)
