"""Tune what the contestants share that decide by a held-out loss (lr_gym/benchmark/stopping.py).

Each variant trains on every task at the calibrated rate of AdamW under WSD, from the same weights
on the same minibatches as that optimizer. The figure is the geometric mean over tasks and seeds of
the loss on the selection split over that of AdamW under WSD at its rate; below 1 is better.
Finished trainings are kept in FOLDER, and a run that was stopped continues there.

    python -m experiments.held_out_rules runs/held_out --tasks random-held-out-7,random-held-out-8
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lr_gym.benchmark.calibrated import read_calibrated
from lr_gym.benchmark.loop import train
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.recipes import Recipe
from lr_gym.benchmark.scores import scores
from lr_gym.benchmark.stopping import ADAMW, BEST, Plateau, plateau_recipe, rule_recipe
from lr_gym.benchmark.tuning import TUNING_SEED
from lr_gym.console import track
from lr_gym.control.patience import PatienceRule
from lr_gym.engine import process_pool
from lr_gym.tasks import find_task

REFERENCE = "adamw-wsd"
PATIENCES = (2, 4, 8, 16)
MIN_IMPROVEMENTS = (0.0, 0.005, 0.02)
FACTORS = (0.1, 0.3, 0.5)
PLATEAU_PATIENCES = (2, 4, 8)
STOP_PATIENCES = (5, 10, 20)
# Trainings of seconds to a minute, whose numbers are above those that any agent learns on.
FIRST_TASK = 1_074_790_400
TASKS = tuple(
    f"random-held-out-{FIRST_TASK + i}" for i in (0, 2, 4, 6, 7, 8, 10, 12, 14, 15, 16, 17)
)


@functools.cache
def variants() -> dict[str, Recipe]:
    """All that is tried, by its name in the table; the reference comes first."""
    lr = calibrated_rate()
    found = {
        REFERENCE: OPTIMIZERS[REFERENCE],
        f"{REFERENCE}, best weights": OPTIMIZERS[REFERENCE]._replace(held_out=BEST),
    }
    for patience, improvement in itertools.product(PATIENCES, MIN_IMPROVEMENTS):
        rule = PatienceRule(patience, min_improvement=improvement)
        name = f"rule: patience {patience}, min_improvement {improvement:g}"
        found[name] = rule_recipe("AdamW", ADAMW, lr, rule)
    for factor, patience, stop in itertools.product(FACTORS, PLATEAU_PATIENCES, STOP_PATIENCES):
        name = f"plateau: factor {factor:g}, patience {patience}; stop patience {stop}"
        found[name] = plateau_recipe(Plateau(factor, patience), stop)
    return found


def calibrated_rate() -> float:
    """The one rate of the reference for all tasks."""
    return float(read_calibrated()[REFERENCE]["lr"])


def trained(job: tuple[str, str, int]) -> dict[str, Any]:
    """Train one variant on one task with one seed.

    Args:
        job: names of task and variant, and number of the seed.

    Returns:
        The job, the loss on the selection split, and the share of the steps that were made.
    """
    torch.set_num_threads(1)
    task_name, name, seed = job
    task = find_task(task_name)
    outcome = train(variants()[name], calibrated_rate(), task, TUNING_SEED + seed)
    return {
        "task": task_name,
        "variant": name,
        "seed": seed,
        # JSON knows no infinity
        "loss": outcome.selection_loss if math.isfinite(outcome.selection_loss) else None,
        "steps": outcome.updates / task.horizon,
    }


def table(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str], seeds: int) -> str:
    """The figures of each variant in Markdown, in the order of `variants`.

    Args:
        rows: what `trained` returned for all of them.
        tasks: names of the tasks that count.
        seeds: number of seeds that count.
    """
    found = {(row["variant"], row["task"], row["seed"]): row for row in rows}

    def of(name: str, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        values = [[found[name, task, seed][key] for seed in range(seeds)] for task in tasks]
        return np.array([[math.inf if v is None else v for v in row] for row in values])

    lines = ["| variant | loss over that of the reference | steps |", "|---|---|---|"]
    for name in variants():
        ratio = math.exp(-scores(of(name, "loss"), of(REFERENCE, "loss")).mean())
        lines.append(f"| {name} | {ratio:.4f} | {of(name, 'steps').mean():.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    tasks = [name.strip() for name in args.tasks.split(",")]
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "held_out_rules.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["task"], row["variant"], row["seed"]) for row in rows}
    jobs = [
        job for job in itertools.product(tasks, variants(), range(args.seeds)) if job not in done
    ]
    with process_pool(args.workers) as pool, file.open("a") as out:
        for row in track(pool.map(trained, jobs), len(jobs)):
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
    print(table(rows, tasks, args.seeds))


if __name__ == "__main__":
    main()
