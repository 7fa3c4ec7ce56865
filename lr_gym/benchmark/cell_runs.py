"""Logging finished cells to wandb: one run for each cell, grouped by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lr_gym.benchmark.judged import ONLINE, TEST
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.online import is_stream
from lr_gym.benchmark.run import Cell
from lr_gym.tracking import log_run

__all__ = ["log_cells"]


def _curve(outcome: Outcome, key: str) -> list[tuple[int, dict[str, float]]]:
    """(updates, figures) of each point of the curve, whose loss has this key."""
    points = zip(outcome.steps, outcome.curve, outcome.lr, strict=False)
    return [(step, {key: loss, **_rates(outcome.layers, rates)}) for step, loss, rates in points]


def _rates(layers: list[str], rates: list[float]) -> dict[str, float]:
    return {f"lr/{name}": lr for name, lr in zip(layers, rates, strict=True)}


def log_cells(folder: Path, outcomes: Mapping[Cell, Outcome], wandb: str) -> None:
    """Log every cell as a run; the runs of a task form a group.

    The loss is called `test_loss`, and `online_loss` on a stream, which has no test split.

    Args:
        folder: folder of the evaluation, in which `wandb/` is made.
        outcomes: the cells and their outcomes.
        wandb: one of lr_gym.tracking.WANDB_MODES.
    """
    for cell, outcome in outcomes.items():
        config = {
            **dataclasses.asdict(cell.contestant),
            "lr": cell.lr,
            "task": cell.task,
            "seed": cell.seed,
            "horizon": cell.horizon,
        }
        key = (ONLINE if is_stream(cell.task) else TEST).replace(" ", "_")
        summary = {f"final_{key}": outcome.test_loss, **outcome.metrics, "error": outcome.error}
        log_run(
            folder,
            config,
            _curve(outcome, key),
            summary,
            wandb=wandb,
            name=f"{cell.contestant}-lr{cell.lr:g}-seed{cell.seed}",
            group=f"{folder.name}-{cell.task}",
        )
