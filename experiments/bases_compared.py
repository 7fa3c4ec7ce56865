"""What another base optimizer gains over AdamW, each at its own best rate, over random tasks.

Each base optimizer is trained at all learning rates of a sweep under WSD, without weight decay,
from the same weights on the same data. The best rate of a task is chosen on the reward split,
smoothed over its neighbours. The figure is the log of the selection loss at that rate, mean over
seeds, minus AdamW's; below 0 is better than AdamW. A second row does the same with one rate for all
tasks, chosen on the reward split too, against AdamW's best rate for each. Intervals are over tasks.
Finished tasks are kept in FOLDER, and a run that was stopped continues there.

    python -m experiments.bases_compared runs/bases --tasks 48
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from agents.random_suite import random_batch
from lr_gym.console import track
from lr_gym.engine import process_pool
from lr_gym.tasks import Task
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams
from lr_gym.updates.schedules import base_schedule

RATES = np.geomspace(1e-4, 1e-1, 9)
SEEDS = 3
FIRST_SEED = 1 << 41  # no training and no selection uses these row seeds
SUITE = 777  # seed of the random tasks; no training has it
SLOTS = 4  # random tasks in a batch
DECISIONS = 50
WORST = 1.0  # nats that one task counts at most


def tasks_of(batch: int) -> list[Task]:
    """The random tasks of a batch, none of them too expensive for Muon."""
    return random_batch(SUITE, batch, SLOTS, DECISIONS, base="muon")


def sweep(batch: int, slot: int, base: str) -> list[list[float]]:
    """Log losses (2, RATES) on the reward and the selection split, means over seeds."""
    torch.set_num_threads(1)
    task = tasks_of(batch)[slot]
    loop = Executor(task, base=base)
    runs = len(RATES) * SEEDS
    state = loop.init(torch.arange(FIRST_SEED, FIRST_SEED + SEEDS).repeat(len(RATES)))
    lr = torch.from_numpy(RATES).float().repeat_interleave(SEEDS)
    lr, one = (
        value.unsqueeze(1).expand(runs, loop.layout.num_layers).clone()
        for value in (lr, torch.ones(runs))
    )
    hyper = Hyperparams(lr, one * loop.rule.momentum, 0.0 * one, 0.0 * one)
    factor = torch.from_numpy(base_schedule("wsd")(np.arange(task.horizon) / task.horizon)).float()
    for part in factor.split(100):  # type: ignore[no-untyped-call]
        state, _ = loop.advance(state, hyper, part.unsqueeze(1).expand(-1, runs))
    losses = torch.stack([loop.evaluate(state, split) for split in ("reward", "selection")])
    logs = losses.nan_to_num(nan=1e6, posinf=1e6).clamp(1e-6, 1e6).log()
    means: list[list[float]] = logs.view(2, len(RATES), SEEDS).mean(2).tolist()
    return means


def at_best(curves: NDArray[np.float64]) -> float:
    """Log loss on the selection split at the best rate by the smoothed reward split.

    Args:
        curves: (2, RATES) log losses, as `sweep` returns them.
    """
    reward, selection = curves
    smooth = reward.copy()
    smooth[1:-1] = 0.25 * reward[:-2] + 0.5 * reward[1:-1] + 0.25 * reward[2:]
    return float(selection[smooth.argmin()])


def described(gain: NDArray[np.float64]) -> str:
    """Interquartile mean over tasks with its interval, median, and the share of tasks that gain."""
    iqm = functools.partial(stats.trim_mean, proportiontocut=0.25)
    found = stats.bootstrap(
        (gain,), iqm, vectorized=True, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = found.confidence_interval
    share = (gain < 0.0).mean()
    middle = f"{iqm(gain):+.3f} ({low:+.3f} to {high:+.3f})"
    return f"{middle} | {np.median(gain):+.3f} | {share:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--bases", nargs="+", default=["muon"], help="base optimizers to compare with AdamW"
    )
    parser.add_argument("--tasks", type=int, default=48)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    file = args.folder / "sweeps.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["task"], row["base"]): row["curves"] for row in rows}
    tasks = [task.name for i in range(-(-args.tasks // SLOTS)) for task in tasks_of(i)][
        : args.tasks
    ]
    bases = ["adamw", *args.bases]
    jobs = [(i, base) for i, task in enumerate(tasks) for base in bases if (task, base) not in done]
    with process_pool(args.workers) as pool, file.open("a") as out:
        found = (
            pool.map(sweep, *zip(*((*divmod(i, SLOTS), base) for i, base in jobs), strict=True))
            if jobs
            else []
        )
        for (i, base), curves in zip(jobs, track(found, len(jobs)), strict=True):
            done[tasks[i], base] = curves
            out.write(json.dumps({"task": tasks[i], "base": base, "curves": curves}) + "\n")
            out.flush()
    table = {base: np.array([done[task, base] for task in tasks]) for base in bases}
    held = np.array([at_best(curves) for curves in table["adamw"]])
    print("| base | rate | interquartile mean | median | lower |\n|---|---|---|---|---|")
    for base in bases:
        own = np.array([at_best(curves) for curves in table[base]])
        print(f"| {base} | best for each | {described(np.clip(own - held, -WORST, WORST))} |")
        reward, selection = np.clip(table[base] - held[:, None, None], -WORST, WORST).swapaxes(0, 1)
        best = int(stats.trim_mean(reward, 0.25, axis=0).argmin())
        print(f"| {base} | {RATES[best]:.1e} for all | {described(selection[:, best])} |")


if __name__ == "__main__":
    main()
