"""Optimizers of the benchmark that decide by the held-out loss which they are told.

Each is wrapped around another optimizer, whose parameter groups it shares. The training loop knows
only what it also knows of a PolicyOptimizer: `observe_validation` and `finished`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lr_gym.control.finish import Finish
from lr_gym.control.patience import LossHistory, PatienceRule
from lr_gym.updates.schedules import base_schedule

__all__ = ["PlateauOptimizer", "RuleEndedOptimizer", "with_plateaus", "with_rule"]


class WatchingOptimizer(Optimizer):
    """An optimizer around another one that is told the held-out loss."""

    def __init__(self, inner: Optimizer) -> None:
        """Share the parameter groups of the inner optimizer."""
        super().__init__(inner.param_groups, {})
        # the base class copies the groups, and the inner optimizer reads its own
        self.param_groups = inner.param_groups
        self._inner = inner

    @property
    def finished(self) -> bool:
        """Whether the training has ended, so that the loop can be left."""
        return False

    def observe_validation(self, loss: float) -> None:
        """Take note of the loss on held-out examples."""
        raise NotImplementedError

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step the inner optimizer."""
        self._inner.step()


class PlateauOptimizer(WatchingOptimizer):
    """An optimizer whose learning rate falls where the held-out loss stands still."""

    def __init__(self, inner: Optimizer, factor: float, patience: int) -> None:
        """Use torch's ReduceLROnPlateau.

        Args:
            inner: makes the updates.
            factor: factor on the learning rate at a plateau.
            patience: held-out losses without an improvement that are tolerated before it falls.
        """
        super().__init__(inner)
        self._scheduler = ReduceLROnPlateau(inner, factor=factor, patience=patience)

    def observe_validation(self, loss: float) -> None:
        """Step the scheduler."""
        self._scheduler.step(loss)


class RuleEndedOptimizer(WatchingOptimizer):
    """An optimizer under WSD, whose training a PatienceRule may end before its time.

    The rate then falls linearly to 0 from where it is, as the rule's `anneal` says.
    """

    def __init__(self, inner: Optimizer, rule: PatienceRule, horizon: int) -> None:
        """Start with no end decided.

        Args:
            inner: makes the updates.
            rule: decides when the training ends.
            horizon: inner steps of the whole training.
        """
        super().__init__(inner)
        self._rule = rule
        self._horizon = horizon
        self._lrs = [float(group["lr"]) for group in self.param_groups]
        self._schedule = base_schedule("wsd")
        self._history = LossHistory()
        self._finish = Finish()
        self._updates = 0

    @property
    def finished(self) -> bool:
        """Whether the learning rate has fallen to 0."""
        return self._finish.phase(self._updates) == "done"

    def observe_validation(self, loss: float) -> None:
        """Let the rule look at a loss; one that is not finite is left out."""
        if not math.isfinite(loss):
            return
        self._history = self._rule.observe(self._history, loss)
        if self._rule.due(self._history):
            self._finish = self._finish.decide(self._updates, self._horizon, self._rule.anneal)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step the inner optimizer at the learning rate of this step."""
        finish = self._finish
        now = self._updates if finish.end is None else min(self._updates, finish.decided)
        factor = float(self._schedule(now / self._horizon)) * finish.factor(self._updates)
        for group, lr in zip(self.param_groups, self._lrs, strict=True):
            group["lr"] = lr * factor
        super().step()
        self._updates += 1


def with_plateaus(
    make: Callable[..., Optimizer], *args: Any, factor: float, patience: int
) -> Optimizer:
    """Make a PlateauOptimizer around what `make` makes.

    Args:
        make: makes an optimizer from `args`, as a recipe does.
        args: arguments of `make`, of which the last three are model, learning rate and length.
        factor: see PlateauOptimizer.
        patience: see PlateauOptimizer.
    """
    return PlateauOptimizer(make(*args), factor, patience)


def with_rule(make: Callable[..., Optimizer], *args: Any, rule: PatienceRule) -> Optimizer:
    """Make a RuleEndedOptimizer around what `make` makes.

    Args:
        make: makes an optimizer from `args`, as a recipe does.
        args: arguments of `make`, of which the last three are model, learning rate and length.
        rule: see RuleEndedOptimizer.
    """
    *_, length = args
    return RuleEndedOptimizer(make(*args), rule, length.steps)
