"""Which rates do optimizers that set their own apply on streams, and do some stand still?

Each optimizer is trained on each stream from several seeds, as the benchmark trains it. Printed are
the mean loss above the floor, the rate at the end (geometric mean), and in how many trainings that
rate is 0, so that the weights stand still.

    python -m experiments.stream_rates_applied trac trac-stored --horizon 300
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch

from lr_gym.benchmark.contestants import Baseline
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.benchmark.tuning import TUNING_SEED
from lr_gym.tasks import SUITES

STREAMS = (*SUITES["stream-train"], *SUITES["stream-validation"])


def row(name: str, task: str, outcomes: list[Outcome]) -> str:
    """A line of the table; trainings that diverged are counted and left out of the means."""
    ended = [o for o in outcomes if math.isfinite(o.test_loss)]
    last = np.array([o.lr[-1][0] for o in ended])
    loss = np.mean([o.test_loss for o in ended]) if ended else math.nan
    moving = last[last > 0.0]
    rate = np.exp(np.log(moving).mean()) if len(moving) else 0.0
    still = len(last) - len(moving)
    diverged = len(outcomes) - len(ended)
    return f"| `{name}` | `{task}` | {loss:.3f} | {rate:.2g} | {still} | {diverged} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("optimizers", nargs="+", choices=tuple(OPTIMIZERS), metavar="OPTIMIZER")
    parser.add_argument("--tasks", nargs="+", default=STREAMS, help="streams")
    parser.add_argument("--lr", type=float, default=3e-3, help="rate of the tuned ones")
    parser.add_argument("--seeds", type=int, default=6, help="trainings of each")
    parser.add_argument("--horizon", type=int, default=None, help="inner steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| optimizer | stream | loss | rate at the end | standing still | diverged |")
    print("|---|---|---|---|---|---|")
    for task in args.tasks:
        for name in args.optimizers:
            lr = OPTIMIZERS[name].lr or args.lr
            seeds = range(TUNING_SEED, TUNING_SEED + args.seeds)
            cells = [
                Cell(Baseline(name), lr, task, seed, test=True, horizon=args.horizon)
                for seed in seeds
            ]
            print(row(name, task, [run_cell(cell) for cell in cells]), flush=True)


if __name__ == "__main__":
    main()
