"""Where weight decay pays under Muon: random tasks, grouped by their passes over the data.

The tasks are trained ten times as long as usual, once at each learning rate of a sweep under WSD
and with each decay (of all weights), from the same weights on the same data. The figure is the log
of the selection loss minus that without decay at the same rate, interquartile mean over the tasks
of a group; below 0 is better than no decay. Finished tasks are kept in FOLDER, and a run that was
stopped continues there.

    python -m experiments.decay_and_passes runs/decay --tasks 51
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from agents.random_suite import random_batch
from lr_gym.console import track
from lr_gym.engine import process_pool
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams
from lr_gym.updates.schedules import base_schedule

RATES = np.geomspace(3e-4, 1e-2, 5)
DECAYS = (0.0, 0.03, 0.1, 0.3, 1.0)
SUITE = 780  # seed of the random tasks; no training has it
SLOTS = 4  # random tasks in a batch
DECISIONS = 50
SEED = 1 << 42  # row seed; no training and no selection uses it
LONGER = 10
MAX_OPERATIONS = 300_000_000  # operations that a task may take before it is made longer
PASSES = (0, 10, 50, 200, 10**9)  # bounds of the groups
WORST = 1.0  # nats that one task counts at most


def sweep(number: int) -> dict[str, Any]:
    """Passes over the data, and log losses (DECAYS, RATES) on the selection split."""
    torch.set_num_threads(1)
    batch, slot = divmod(number, SLOTS)
    tasks = random_batch(SUITE, batch, SLOTS, DECISIONS, base="muon", max_operations=MAX_OPERATIONS)
    task = tasks[slot]
    task = dataclasses.replace(task, horizon=task.horizon * LONGER)
    loop = Executor(task, base="muon", weight_decay=True)
    runs = len(RATES) * len(DECAYS)
    state = loop.init(torch.full((runs,), SEED))
    lr = torch.from_numpy(RATES).float().repeat(len(DECAYS))
    decay = torch.tensor(DECAYS).repeat_interleave(len(RATES))
    ones = torch.ones(runs, loop.layout.num_layers)
    hyper = Hyperparams(
        ones * lr.unsqueeze(1), ones * loop.rule.momentum, 0.0 * ones, ones * decay.unsqueeze(1)
    )
    factor = torch.from_numpy(base_schedule("wsd")(np.arange(task.horizon) / task.horizon)).float()
    for part in factor.split(100):  # type: ignore[no-untyped-call]
        state, _ = loop.advance(state, hyper, part.unsqueeze(1).expand(-1, runs))
    losses = (
        loop.evaluate(state, "selection").nan_to_num(nan=1e6, posinf=1e6).clamp(1e-6, 1e6).log()
    )
    passes = task.horizon * task.batch_size / len(loop.data.gradient.inputs)
    return {
        "number": number,
        "passes": passes,
        "losses": losses.view(len(DECAYS), len(RATES)).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, default=51)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "sweeps.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    missing = sorted(set(range(args.tasks)) - {row["number"] for row in rows})
    with process_pool(args.workers) as pool, file.open("a") as out:
        for row in track(pool.map(sweep, missing), len(missing)):
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
    rows = [row for row in rows if row["number"] < args.tasks]
    passes = np.array([row["passes"] for row in rows])
    losses = np.array([row["losses"] for row in rows])
    gain = np.clip(losses - losses[:, :1], -WORST, WORST)
    print(
        "| passes | tasks | decay |",
        " | ".join(f"{rate:.1e}" for rate in RATES),
        "|\n" + "|---" * 8 + "|",
    )
    for low, high in itertools.pairwise(PASSES):
        group = gain[(passes >= low) & (passes < high)]
        if not len(group):
            continue
        for i, decay in enumerate(DECAYS[1:], 1):
            means = " | ".join(
                f"{mean:+.3f}" for mean in stats.trim_mean(group[:, i], 0.25, axis=0)
            )
            print(f"| {low} to {high} | {len(group)} | {decay} | {means} |")


if __name__ == "__main__":
    main()
