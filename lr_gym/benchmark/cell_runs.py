"""Cells -> wandb: one run per cell, grouped by task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lr_gym.benchmark.run import Cell, Outcome
from lr_gym.tracking import log_run

__all__ = ["log_cells"]


def _rows(outcome: Outcome) -> list[tuple[int, dict[str, float]]]:
    """(updates, figures) of each point of the curve."""
    points = zip(outcome.steps, outcome.curve, outcome.lr, strict=False)
    return [
        (
            step,
            {
                "test_loss": loss,
                **{f"lr/{name}": lr for name, lr in zip(outcome.layers, rates, strict=True)},
            },
        )
        for step, loss, rates in points
    ]


def log_cells(folder: Path, outcomes: Mapping[Cell, Outcome], wandb: str) -> None:
    """Log every cell, those of a task in a group of their own.

    Args:
        folder: `wandb/` goes into it.
        outcomes: of the cells.
        wandb: one of lr_gym.tracking.WANDB_MODES.
    """
    for cell, outcome in outcomes.items():
        who = cell.contestant.optimizer or cell.contestant.policy
        config = {
            **cell.contestant._asdict(),
            "task": cell.task,
            "seed": cell.seed,
            "horizon": cell.horizon,
        }
        summary = {"final_test_loss": outcome.test_loss, **outcome.metrics, "error": outcome.error}
        name = f"{who}-lr{cell.contestant.lr:g}-seed{cell.seed}"
        log_run(
            folder,
            config,
            _rows(outcome),
            summary,
            wandb=wandb,
            name=name,
            group=f"{folder.name}-{cell.task}",
        )
