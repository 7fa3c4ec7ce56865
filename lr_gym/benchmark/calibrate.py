"""Find the one learning rate that serves all tasks best, for each of some optimizers.

    python -m lr_gym.benchmark.calibrate --optimizers adamw-wsd,muon-wsd

Every optimizer trains at each of RATES on each task of the suites `train` and `validation`. Its
rate is the one of the lowest `relative_loss` on the selection split, the statistic by which
policies are selected. A policy's losses are held against those of the base schedule alone from many
learning rates. Here all losses are held against those of REFERENCE at all of RATES.

The rates are written into calibrated.json, from which the optimizers get rows NAME-calibrated.
Finished trainings are kept in the cache folder, so the same command continues one that was stopped.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from lr_gym.benchmark.above_optimum import above_optimum
from lr_gym.benchmark.calibrated import CALIBRATED_FILE, read_calibrated
from lr_gym.benchmark.contestants import Baseline, entrants
from lr_gym.benchmark.environment import commit, environment
from lr_gym.benchmark.grid import named_tasks, suite_tasks
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.progress import run_cells
from lr_gym.benchmark.run import Cell
from lr_gym.benchmark.scores import relative_loss
from lr_gym.benchmark.tuning import TUNING_SEED
from lr_gym.engine import open_engine
from lr_gym.envs.rollout import divergence
from lr_gym.files import write_atomically
from lr_gym.types import check_count

__all__ = ["RATES", "REFERENCE", "Args", "calibrate", "score_rates"]

# Two decades around the rates that are usual for Adam and its relatives, a factor of 1.58 apart.
RATES = tuple(float(f"{lr:.3e}") for lr in np.geomspace(5e-4, 5e-2, 11))
REFERENCE = "adamw-wsd"
LEARNED_ON = ("train", "validation")  # the suites that policies are learned on and selected by

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Args:
    """Find the one learning rate that serves all tasks best, for each of some optimizers."""

    optimizers: str = "adamw-wsd,nadamw-wsd,muon-wsd,schedule-free"
    """Optimizers whose learning rate is not fixed, separated by commas."""
    seeds: int = 1
    """Trainings at each learning rate on each task."""
    output: Path = CALIBRATED_FILE
    """File for the rates. What it holds about other optimizers stays."""
    task: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A task to use instead of the suites, for a trial into another --output. Give the option once
    for each."""
    horizon: int | None = None
    """Inner steps of a training, for a trial into another --output; the task's own by default."""
    workers: int = os.cpu_count() or 1
    """Processes, of one thread each."""
    engine: Literal["local", "ray"] = "local"
    """Where trainings run: processes of this machine, or a Ray cluster (the extra `ray`)."""
    ray_address: str | None = None
    """Address of a running Ray cluster; by default one of `workers` cores is started here."""


def find_optimizers(args: Args) -> list[str]:
    """The optimizers that are calibrated.

    Raises:
        ValueError: if no optimizer is named, or if one is unknown, repeated, or has a fixed
            learning rate.
        ImportError: if a package is missing that an optimizer needs.
    """
    names = [name.strip() for name in args.optimizers.split(",") if name.strip()]
    if not names:
        raise ValueError("nothing to calibrate: name an optimizer with --optimizers")
    rows = entrants(names, [])
    for row in rows:
        if row.lr is not None:
            raise ValueError(f"{row.name} has the fixed learning rate {row.lr:g}: leave it out")
    return [row.name for row in rows]


def find_tasks(args: Args) -> tuple[list[str], dict[str, str]]:
    """Names of the tasks, and for each task of the suites that cannot run here why."""
    if args.task:
        return named_tasks(args.task), {}
    suites = [suite_tasks(suite) for suite in LEARNED_ON]
    tasks = [name for names, _ in suites for name in names]
    return tasks, {name: reason for _, skipped in suites for name, reason in skipped.items()}


def rate_cells(
    optimizer: str, tasks: Sequence[str], seeds: int, horizon: int | None
) -> list[list[list[Cell]]]:
    """The cells of an optimizer: for each of RATES, for each task, one for each seed of tuning."""

    def cell(lr: float, task: str, seed: int) -> Cell:
        return Cell(Baseline(optimizer), lr, task, TUNING_SEED + seed, horizon=horizon)

    return [[[cell(lr, task, seed) for seed in range(seeds)] for task in tasks] for lr in RATES]


def selection_losses(
    cells: Sequence[Sequence[Sequence[Cell]]], outcomes: Mapping[Cell, Outcome]
) -> Array:
    """Selection losses (R, T, S), above the optimum of each task, of cells in the same places."""
    losses = [
        [[outcomes[cell].selection_loss for cell in seeds] for seeds in tasks] for tasks in cells
    ]
    names = [seeds[0].task for seeds in cells[0]]
    return np.array([above_optimum(at_rate, names) for at_rate in losses])


def score_rates(losses: Array, reference: Array) -> list[float]:
    """The `relative_loss` of an optimizer at each learning rate; less is better.

    A diverged training counts as it does where policies are selected.

    Args:
        losses: (R, T, S) selection losses at R rates on T tasks from S seeds, inf where diverged.
        reference: (R, T, S) the same of REFERENCE.
    """
    before = np.concatenate(list(reference), axis=1)  # (T, R * S)
    limit = divergence(before)  # (T, 1)
    before = np.minimum(before, limit)
    return [relative_loss(np.minimum(at_rate, limit), before) for at_rate in losses]


def train(args: Args, optimizers: Sequence[str], tasks: Sequence[str]) -> dict[str, list[float]]:
    """Train each optimizer and REFERENCE at all rates, and score the rates of each optimizer.

    Raises:
        RuntimeError: if a training raised an error.
    """
    names = dict.fromkeys([*optimizers, REFERENCE])
    cells = {name: rate_cells(name, tasks, args.seeds, args.horizon) for name in names}
    wanted = [cell for rates in cells.values() for at in rates for seeds in at for cell in seeds]
    with open_engine(args.engine, args.workers, args.ray_address) as engine:
        outcomes = run_cells("calibrating", wanted, engine, args.workers)
    for cell, outcome in outcomes.items():
        if outcome.error is not None:
            raise RuntimeError(
                f"{cell.contestant} at lr {cell.lr:g} on {cell.task} raised {outcome.error}; "
                "no rate is written"
            )
    losses = {name: selection_losses(found, outcomes) for name, found in cells.items()}
    return {name: score_rates(losses[name], losses[REFERENCE]) for name in optimizers}


def calibrate(args: Args) -> dict[str, dict[str, Any]]:
    """Train, score, print the scores, and write the best rates.

    Returns:
        The content of the output file.

    Raises:
        ValueError: if an argument is wrong.
        ImportError: if a package is missing that an optimizer needs.
        RuntimeError: if a training raised an error.
    """
    check_count("seeds", args.seeds)
    check_count("workers", args.workers)
    if (args.task or args.horizon is not None) and args.output == CALIBRATED_FILE:
        raise ValueError(
            f"{CALIBRATED_FILE.name} is for whole trainings on the suites "
            f"{' and '.join(LEARNED_ON)}: leave --task and --horizon out, or give an --output"
        )
    optimizers = find_optimizers(args)
    tasks, skipped = find_tasks(args)
    for task, reason in skipped.items():
        print(f"left out: {task}: {reason}")
    scores = train(args, optimizers, tasks)
    print_scores(scores)
    return write_choice(args, scores, tasks, skipped)


def print_scores(scores: Mapping[str, Sequence[float]]) -> None:
    """Print the scores as a table in Markdown, and the best rates."""
    print("| lr |", " | ".join(scores), "|")
    print("|---" * (1 + len(scores)) + "|")
    for i, lr in enumerate(RATES):
        print(f"| {lr:g} |", " | ".join(f"{found[i]:.4f}" for found in scores.values()), "|")
    for name, found in scores.items():
        best = int(np.argmin(found))
        end = best in (0, len(RATES) - 1)
        note = ", an end of the grid: a better rate may lie beyond" if end else ""
        print(f"{name}: lr {RATES[best]:g}{note}")


def write_choice(
    args: Args, scores: Mapping[str, Sequence[float]], tasks: list[str], skipped: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Write the best rates and where they come from into the output file; return its content."""
    entries = read_calibrated(args.output) if args.output.exists() else {}
    for name, found in scores.items():
        entries[name] = {
            "lr": RATES[int(np.argmin(found))],
            "rates": list(RATES),
            "scores": [round(score, 6) for score in found],
            "reference": REFERENCE,
            "tasks": tasks,
            "skipped": skipped,
            "seeds": args.seeds,
            "horizon": args.horizon,
            "command": command_of(args),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": commit(),
            "environment": environment(),
        }
    write_atomically(args.output, (json.dumps(entries, indent=1) + "\n").encode())
    return entries


def command_of(args: Args) -> str:
    """The command line, with the options that change the result."""
    words = ["python", "-m", "lr_gym.benchmark.calibrate", "--optimizers", args.optimizers]
    words += ["--seeds", str(args.seeds)]
    for task in args.task:
        words += ["--task", task]
    if args.horizon is not None:
        words += ["--horizon", str(args.horizon)]
    return shlex.join(words)


def main(args: Args) -> None:
    """Calibrate; an error is printed without its traceback."""
    try:
        calibrate(args)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main(tyro.cli(Args))
