"""Calibrated opponents: optimizers at one learning rate that is the same for all tasks.

The rates are in calibrated.json, which `python -m lr_gym.benchmark.calibrate` writes. The file maps
the name of an optimizer to its rate `lr` and to where the rate comes from: scores, tasks, seeds,
command, date and commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lr_gym.benchmark.recipes import Recipe

__all__ = ["CALIBRATED_FILE", "calibrated_recipes", "read_calibrated"]

CALIBRATED_FILE = Path(__file__).parent / "calibrated.json"


def read_calibrated(file: Path = CALIBRATED_FILE) -> dict[str, dict[str, Any]]:
    """Optimizer -> what calibration found, as plain values."""
    entries: dict[str, dict[str, Any]] = json.loads(file.read_text())
    return entries


def calibrated_recipes(
    recipes: Mapping[str, Recipe], entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, Recipe]:
    """A row NAME-calibrated for each entry: the recipe of NAME at the entry's learning rate.

    Such a row trains as NAME does at that rate, so their cells have the same fingerprints.

    Args:
        recipes: the rows that can be calibrated.
        entries: what `read_calibrated` returns.

    Raises:
        ValueError: if an entry is of no optimizer.
    """
    rows = {}
    for name, entry in entries.items():
        if name not in recipes:
            raise ValueError(
                f"{CALIBRATED_FILE.name} has an entry {name!r}, which is no optimizer: remove the "
                "entry"
            )
        lr = float(entry["lr"])
        about = f"{name}, lr {lr:g} for all tasks"
        rows[f"{name}-calibrated"] = recipes[name]._replace(about=about, lr=lr)
    return rows
