"""When the training of a PolicyOptimizer ends, kept in its parameter groups.

The key "finish" of every group is a tuple of plain numbers, those of Finish and of LossHistory, so
that whatever saves the groups saves them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lr_gym.control.finish import PHASES, Finish
from lr_gym.control.patience import LossHistory, PatienceRule

__all__ = ["FINISH", "NOTHING_DECIDED", "TOLD", "end_now", "finish_metrics", "finish_of", "follow"]

FINISH = "finish"  # key of a group
TOLD = "told_held_out"  # key of a group: whether a policy that can end the training was told a loss
NOTHING_DECIDED: tuple[float, ...] = (*Finish(), *LossHistory())
_RUNNING = Finish()
_FIELDS = len(Finish._fields)


def finish_of(groups: Sequence[dict[str, Any]]) -> Finish:
    """What is decided about the end of the training."""
    numbers = groups[0].get(FINISH)
    return _RUNNING if numbers is None else Finish(*numbers[:_FIELDS])


def follow(
    groups: Sequence[dict[str, Any]],
    rule: PatienceRule,
    loss: float,
    step: int,
    horizon: int | None,
) -> None:
    """Let the rule look at a held-out loss, and write into all groups what it decides.

    Args:
        groups: parameter groups of the optimizer.
        rule: what decides.
        loss: mean held-out loss since the last decision, NaN where none was given.
        step: optimizer steps made.
        horizon: optimizer steps of the whole training, None where unknown.
    """
    if math.isnan(loss):
        return
    finish = finish_of(groups)
    history = rule.observe(_history_of(groups), loss)
    if rule.due(history):
        finish = finish.decide(step, horizon, rule.anneal)
    for group in groups:
        group[FINISH] = (*finish, *history)


def end_now(groups: Sequence[dict[str, Any]], step: int, horizon: int | None) -> None:
    """Write into all groups that the training ends; what was decided before stays.

    Args:
        groups: parameter groups of the optimizer.
        step: optimizer steps made.
        horizon: optimizer steps of the whole training, None where unknown.
    """
    finish = finish_of(groups).decide(step, horizon)
    history = _history_of(groups)
    for group in groups:
        group[FINISH] = (*finish, *history)


def finish_metrics(groups: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
    """The phase of the training, and what it was decided by; nothing where no rule watches.

    Args:
        groups: parameter groups of the optimizer.
        step: optimizer steps made.
    """
    if FINISH not in groups[0]:
        return {}
    finish = finish_of(groups)
    history = _history_of(groups)
    return {
        "finish/phase": float(PHASES.index(finish.phase(step))),
        "finish/decided": float(finish.decided),
        "finish/end": -1.0 if finish.end is None else float(finish.end),
        "finish/held_out": history.mean,
        "finish/best": history.best,
        "finish/since_best": float(history.since_best),
    }


def _history_of(groups: Sequence[dict[str, Any]]) -> LossHistory:
    return LossHistory(*groups[0].get(FINISH, NOTHING_DECIDED)[_FIELDS:])
