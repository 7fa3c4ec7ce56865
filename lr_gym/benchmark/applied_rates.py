"""Effective learning rates of optimizers whose own factor is not in their groups' `lr`."""

from __future__ import annotations

from typing import Any

__all__ = ["stored_trac_rates", "trac_rates", "warmed_up_rates"]


def trac_rates(optimizer: Any) -> dict[str, float]:
    """The rate of pytorch_optimizer's TRAC: that of the inner optimizer, times TRAC's scale.

    TRAC puts the weights at start + scale * (sum of the inner optimizer's updates). So an update
    counts as much as one of that many times the rate. The scale is 0 where TRAC goes back to the
    start, and s_prev, which is about 0, before the first step.
    """
    group = optimizer.param_groups[0]
    found = optimizer.state.get("trac")
    scale = optimizer.s_prev if found is None else float(found["s"])
    return {"all": float(group["lr"]) * max(scale, 0.0)}


def stored_trac_rates(optimizer: Any) -> dict[str, float]:
    """The rate of a StoredTrac at its last step."""
    return {"all": float(optimizer.param_groups[0]["lr"]) * optimizer.scale}


def warmed_up_rates(optimizer: Any) -> dict[str, float]:
    """The rate of a schedule-free optimizer at its last step, which its own warmup may lower."""
    group = optimizer.param_groups[0]
    last = max(1, group["k"])  # steps so far; before the first step, the rate of that one
    return {"all": float(group["lr"]) * min(1.0, last / max(1, group["warmup_steps"]))}
