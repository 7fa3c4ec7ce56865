"""Tuning at equal cost.

Every entrant without a fixed learning rate gets the same trials on the selection split.

A trial is a learning rate of a seeded list, tried on tuning seeds that no reported training uses.
Its learning rate depends on its number only, so any number of processes finds the same; a larger
budget continues a smaller one. Finished trials are an Optuna study in a journal file of the cache
folder, one per (task, optimizer, space, seeds, versions): nobody pays twice, and several processes
may share the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from scipy.stats import qmc

from lr_gym.benchmark.contestants import Entrant
from lr_gym.benchmark.run import Cell, Outcome
from lr_gym.benchmark.store import CellStore, complete, fingerprint
from lr_gym.engine import Engine
from lr_gym.tasks.cache import cache_folder

__all__ = ["TUNING_SEED", "Study", "Trial", "Tuning", "learning_rates", "tune"]

TUNING_SEED = 1_000_000  # index of the first tuning seed; reported seeds count from 0
_NUMBER = "number"


class Trial(NamedTuple):
    """A learning rate and what it gave.

    Attributes:
        lr: learning rate, the schedule's peak.
        loss: mean selection loss over the tuning seeds, inf where one diverged or raised.
    """

    lr: float
    loss: float


class Tuning(NamedTuple):
    """What tuning an entrant on a task found.

    Attributes:
        lr: of the best trial.
        trials: all, in the order of the list.
    """

    lr: float
    trials: list[Trial]


def learning_rates(space: tuple[float, float], budget: int) -> list[float]:
    """The seeded list.

    A scrambled Halton sequence (Owen 2017), log-uniform in `space`, to 4 digits.

    Args:
        space: (low, high).
        budget: how many; a prefix of every longer list.
    """
    points = qmc.Halton(1, scramble=True, rng=0).random(budget)[:, 0]
    low, high = np.log(space)
    return [float(f"{value:.3e}") for value in np.exp(low + (high - low) * points)]


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that was never written to its end, which would spoil the one that is appended to it."""
    if not path.exists():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


class Study:
    """Finished trials of one entrant on one task, in a journal file that processes may share."""

    def __init__(self, path: Path, space: tuple[float, float]) -> None:
        """Open or create the file."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        storage = JournalStorage(JournalFileBackend(str(path)))
        self._study = optuna.create_study(storage=storage, study_name="lr", load_if_exists=True)
        self._distribution = FloatDistribution(*space, log=True)

    def losses(self, lrs: Sequence[float]) -> dict[int, float]:
        """Trial number -> mean selection loss, of those that tried just that one of the learning rates."""
        return {
            number: float(trial.value or 0.0)
            for trial in self._study.get_trials(deepcopy=False)
            if (number := trial.user_attrs[_NUMBER]) < len(lrs)
            and trial.params["lr"] == lrs[number]
        }

    def add(self, number: int, trial: Trial) -> None:
        """Keep a finished trial."""
        self._study.add_trial(
            optuna.trial.create_trial(
                params={"lr": trial.lr},
                distributions={"lr": self._distribution},
                value=trial.loss,
                user_attrs={_NUMBER: number},
            )
        )


class _Search:
    """The trials of one entrant on one task that are still to run."""

    def __init__(
        self, entrant: Entrant, task: str, horizon: int | None, budget: int, seeds: int
    ) -> None:
        self.lrs = learning_rates(entrant.space, budget)
        self.cells = [
            [
                Cell(entrant.at(lr), task, TUNING_SEED + seed, horizon=horizon)
                for seed in range(seeds)
            ]
            for lr in self.lrs
        ]
        name = fingerprint(Cell(entrant.at(0.0), task, seeds, horizon=horizon))
        low, high = entrant.space
        self.study = Study(
            cache_folder() / "tuning" / f"{name[:32]}-{low:g}-{high:g}.journal", entrant.space
        )
        self.losses = self.study.losses(self.lrs)

    def missing(self) -> list[Cell]:
        return [
            cell
            for number, cells in enumerate(self.cells)
            if number not in self.losses
            for cell in cells
        ]

    def record(self, outcomes: dict[Cell, Outcome]) -> None:
        """Keep every trial whose cells have all run."""
        for number, cells in enumerate(self.cells):
            if number not in self.losses and all(cell in outcomes for cell in cells):
                self.losses[number] = float(
                    np.mean([outcomes[cell].selection_loss for cell in cells])
                )
                if not any(
                    outcomes[cell].error for cell in cells
                ):  # what raised may be mended and tried again
                    self.study.add(number, Trial(self.lrs[number], self.losses[number]))

    def result(self) -> Tuning:
        trials = [Trial(lr, self.losses[number]) for number, lr in enumerate(self.lrs)]
        return Tuning(min(trials, key=lambda trial: trial.loss).lr, trials)


def tune(
    rows: Sequence[Entrant],
    tasks: Sequence[str],
    engine: Engine,
    store: CellStore,
    *,
    budget: int,
    seeds: int,
    horizon: int | None = None,
    on_start: Callable[[list[Cell]], object] = lambda cells: None,
    on_done: Callable[[Cell, Outcome], object] = lambda cell, outcome: None,
) -> tuple[dict[tuple[str, str], Tuning], dict[Cell, Outcome]]:
    """Find a learning rate for each entrant that has none, on each task.

    Args:
        rows: entrants; those of a fixed learning rate are passed over.
        tasks: names.
        engine: runs what neither the cache nor the store has.
        store: keeps every cell, so that a kill loses none.
        budget: trials of each entrant on each task.
        seeds: trainings of a trial.
        horizon: inner steps, None for the tasks' own.
        on_start: called with the cells that will be run or are in the store.
        on_done: called for each of them.

    Returns:
        (task, entrant's name) -> what was found, and the outcomes of the cells that were not in the
        cache.
    """
    searches = {
        (task, row.name): _Search(row, task, horizon, budget, seeds)
        for task in tasks
        for row in rows
        if row.lr is None
    }
    of_cell = {cell: search for search in searches.values() for cell in search.missing()}
    on_start(list(of_cell))
    finished: dict[Cell, Outcome] = {}

    def done(cell: Cell, outcome: Outcome) -> None:
        finished[cell] = outcome
        of_cell[cell].record(finished)
        on_done(cell, outcome)

    complete(of_cell, engine, store, done)
    return {key: search.result() for key, search in searches.items()}, finished
