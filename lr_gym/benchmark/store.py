"""The store of finished cells: one small file for each cell, shared by all evaluations.

The files lie in the folder `cells` of the cache folder, each under the fingerprint of its cell. A
file is written to a temporary name and then renamed, so that it is there whole or not at all.
Several processes may therefore read and write the store at the same time without a lock: in the
worst case two of them run the same cell, and both write the same file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lr_gym.benchmark.fingerprint import fingerprint
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.run import Cell, attempt
from lr_gym.engine import Engine
from lr_gym.files import write_atomically
from lr_gym.tasks.cache import cache_folder

__all__ = ["cell_file", "complete", "load_outcome", "save_outcome"]


def cell_file(cell: Cell) -> Path:
    """Where the outcome of a cell is kept."""
    key = fingerprint(cell)
    # subfolders, since a folder with hundreds of thousands of files is slow to list
    return cache_folder() / "cells" / key[:2] / f"{key}.json"


def _checksum(outcome: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(outcome, sort_keys=True).encode()).hexdigest()


def load_outcome(cell: Cell) -> Outcome | None:
    """The stored outcome of a cell, None if there is none; a damaged file is warned of."""
    path = cell_file(cell)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        stored = json.loads(content)
        if stored["sha256"] == _checksum(stored["outcome"]):
            return Outcome(**stored["outcome"])
    except (ValueError, KeyError, TypeError):  # torn, or not a file of ours
        pass
    warnings.warn(f"{path} is damaged: its cell is run again", RuntimeWarning, stacklevel=2)
    return None


def save_outcome(cell: Cell, outcome: Outcome) -> None:
    """Keep an outcome; it is on the disk when this returns.

    An outcome that raised is not kept, since its cause may be gone at the next attempt.
    """
    if outcome.error is not None:
        return
    values = outcome._asdict()
    described = {**cell._asdict(), "contestant": dataclasses.asdict(cell.contestant)}
    content = {"cell": described, "outcome": values, "sha256": _checksum(values)}
    write_atomically(cell_file(cell), json.dumps(content).encode())


def complete(
    cells: Iterable[Cell],
    engine: Engine,
    on_done: Callable[[Cell, Outcome], object] = lambda cell, outcome: None,
) -> dict[Cell, Outcome]:
    """Outcomes of all cells; only those that are not in the store run.

    Args:
        cells: cells whose outcomes are wanted; repeated ones run once.
        engine: runs the missing cells.
        on_done: called for each cell with its outcome, first for the cells found in the store.
    """
    found = {cell: load_outcome(cell) for cell in dict.fromkeys(cells)}
    outcomes = {cell: outcome for cell, outcome in found.items() if outcome is not None}
    for cell, outcome in outcomes.items():
        on_done(cell, outcome)
    missing = [cell for cell, outcome in found.items() if outcome is None]
    for cell, outcome in engine(attempt, missing):
        save_outcome(cell, outcome)
        outcomes[cell] = outcome
        on_done(cell, outcome)
    return outcomes
