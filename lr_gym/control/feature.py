"""Feature: a row of the table of features, and what its functions may look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lr_gym.control.context import Clock, TrainingContext
from lr_gym.control.held_out import HeldOut, held_out_known
from lr_gym.control.memory import Memory
from lr_gym.types import Hyperparams, LayerStats

__all__ = [
    "BOTH",
    "OF_COURSE",
    "OF_ENDLESS",
    "OF_MONITOR",
    "OF_TASK",
    "OPTIONAL",
    "Feature",
    "Observed",
    "column",
    "loss_known",
    "monitor_known",
]

# Groups of features. "course": how a training goes, what policies see by default. "task": what
# describes a training as a whole, for policies that learn on many tasks. "endless": the time in
# trainings whose end is not known. "monitor": the held-out loss, for policies that tell when
# a network begins to memorise.
OF_COURSE = frozenset({"course"})
OF_TASK = frozenset({"task"})
BOTH = OF_COURSE | OF_TASK
OF_ENDLESS = frozenset({"endless"})
OF_MONITOR = frozenset({"monitor"})
OPTIONAL: frozenset[str] = frozenset()  # in no group: chosen by name only


class Observed(NamedTuple):
    """Everything that a feature may look at when a decision is due.

    Attributes:
        stats: per-layer statistics of the pending gradient.
        memory: the memory, already updated with these statistics.
        hyper: hyperparameters in force until this decision, the base schedule included.
        offset: (B, L, A) position of each control, see `lr_gym.control.action`.
        action: (B, L, A) the last action.
        context: what stays fixed during the trainings.
        clock: how far the trainings are.
        held_out: the held-out losses, those before this decision included.
    """

    stats: LayerStats
    memory: Memory
    hyper: Hyperparams
    offset: Tensor
    action: Tensor
    context: TrainingContext
    clock: Clock
    held_out: HeldOut


class Feature(NamedTuple):
    """A row of FEATURES.

    Attributes:
        compute: function Observed -> (B, L) or (B, 1), within [-1, 1].
        about: one line for the documentation.
        needs: what must be known, else the feature is 0: "loss", "progress", "epoch", "passes",
            "monitor" (a held-out loss), or "gap" (that and a training loss).
        groups: names of the groups that hold the feature.
        needs_stats: whether the feature depends on more than the size of the pending gradient, so
            that weights and moments must be measured too.
        says_end_known: whether the feature says if the end of the training is known.
        quantity: for messages, where the feature stands for a number that users know: the name of
            that number, perhaps with the placeholder {layer}, and the function from feature to
            number.
        given: whether the value is known before the training starts and no learning rate
            changes it.
        judged: whether the guard takes trust away where the value is outside the observed range.
    """

    compute: Callable[[Observed], Tensor]
    about: str
    needs: str | None = None
    groups: frozenset[str] = OF_COURSE
    needs_stats: bool = False
    says_end_known: bool = False
    quantity: tuple[str, Callable[[float], float]] | None = None
    given: bool = False
    judged: bool = True

    @property
    def tells_end(self) -> bool:
        """Whether the feature depends on how long the training will be."""
        return self.says_end_known or self.needs in ("progress", "passes")


def loss_known(o: Observed) -> Tensor:
    """(B,) 1 where a loss was given whose logarithm says something, else 0.

    The features of the loss compare logarithms with that of the first loss, so a first loss that
    is not above 0 counts as none.
    """
    return o.context.loss_known * o.memory.loss_seen * (o.memory.initial_loss > 0)


def monitor_known(o: Observed) -> Tensor:
    """(B,) what `loss_known` is for the training loss, for the held-out loss."""
    return o.context.monitor_known * held_out_known(o.held_out)


def column(per_run: Tensor) -> Tensor:
    """(B,) -> (B, 1): the same for every layer of a run."""
    return per_run.unsqueeze(1)
