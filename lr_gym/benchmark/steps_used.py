"""Which share of their steps trainings made; tables show it only where some ended early."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lr_gym.benchmark.loop import Outcome

__all__ = ["share_of_steps", "shown_share", "some_ended_early"]


def share_of_steps(outcomes: Sequence[Outcome]) -> float:
    """Mean share of the horizon that trainings made, nan where all of them failed.

    Trainings that diverged or raised are left out: they did not end, they were ended.

    Args:
        outcomes: outcomes of reported cells, whose curves go on to the horizon.
    """
    shares = [o.updates / o.steps[-1] for o in outcomes if math.isfinite(o.test_loss) and o.steps]
    return float(np.mean(shares)) if shares else math.nan


def some_ended_early(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any row of a table of results.json says that its trainings ended early.

    Args:
        rows: entries of the ranking or of a task; those of older files say nothing.
    """
    shares = (row.get("share_of_steps") for row in rows)
    return any(share is not None and share < 1.0 for share in shares)


def shown_share(row: Mapping[str, Any]) -> str:
    """The share of steps of a row of results.json in per cent, "-" where it has none."""
    share = row.get("share_of_steps")
    return "-" if share is None else f"{share:.0%}"
