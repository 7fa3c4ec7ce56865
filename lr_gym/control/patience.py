"""PatienceRule: end a training when its held-out loss has stopped falling.

This is a rule made by hand. It is simple on purpose and has learned nothing.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from lr_gym.control.finish import Anneal
from lr_gym.types import check_count, check_number

__all__ = ["LossHistory", "PatienceRule"]


class LossHistory(NamedTuple):
    """What the rule remembers of the held-out losses.

    Attributes:
        observations: number of losses.
        first: the first loss.
        mean: their running mean.
        best: the lowest running mean, which only an improvement that is large enough replaces.
        since_best: losses since then; 0 before the first improvement.
    """

    observations: int = 0
    first: float = 0.0
    mean: float = 0.0
    best: float = 0.0
    since_best: int = 0

    @property
    def improved(self) -> bool:
        """Whether the loss has ever been better than the first one."""
        return self.best < self.first


@dataclasses.dataclass(frozen=True)
class PatienceRule:
    """End a training whose held-out loss has not improved for a while.

    Some trainings stand still at first. The rule does not count before the held-out loss has
    improved on its first value. So it never ends a training that does not improve at all.

    >>> rule = PatienceRule(patience=2, first_decisions=0)
    >>> history = LossHistory()
    >>> for loss in (2.0, 1.0, 0.9, 1.2, 1.4):
    ...     history = rule.observe(history, loss)
    >>> (round(history.best, 2), history.since_best, rule.due(history))
    (1.14, 2, True)

    Raises:
        ValueError: for a field out of range, naming it.
    """

    patience: int
    """The training ends after so many held-out losses without an improvement. All that are given
    between two decisions of the policy count as one, their mean."""
    smoothing: float = 0.5
    """Weight of the newest loss in the running mean that is looked at."""
    min_improvement: float = 0.005
    """Share of the best running mean by which a new one must be lower to count as better."""
    first_decisions: int = 5
    """The rule never acts before it has seen so many losses."""
    anneal: Anneal = dataclasses.field(default_factory=Anneal)
    """How long the learning rate falls once the end is decided."""

    def __post_init__(self) -> None:
        """Check every field."""
        check_count("patience", self.patience)
        check_number("smoothing", self.smoothing, 0.0, 1.0)
        if self.smoothing == 0.0:
            raise ValueError("smoothing must be above 0: the running mean would stay as it starts")
        check_number("min_improvement", self.min_improvement, 0.0, 1.0)
        if self.first_decisions != 0:
            check_count("first_decisions", self.first_decisions)

    def observe(self, history: LossHistory, loss: float) -> LossHistory:
        """The history with one more loss, which is finite."""
        if history.observations == 0:
            return LossHistory(1, loss, loss, loss, 0)
        mean = history.mean + self.smoothing * (loss - history.mean)
        # a loss may be negative, so the improvement is a share of its size
        if mean < history.best - self.min_improvement * abs(history.best):
            best = mean
            since_best = 0
        else:
            best = history.best
            since_best = history.since_best + history.improved
        return LossHistory(history.observations + 1, history.first, mean, best, since_best)

    def due(self, history: LossHistory) -> bool:
        """Whether the training is to end."""
        seen_enough = history.observations >= self.first_decisions
        return seen_enough and history.since_best >= self.patience
