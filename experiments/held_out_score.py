"""How do policies that end trainings do on the suite `held-out-validation`?

This is how the networks of `builtin:held_out` were chosen. Each line has the geometric mean over
tasks and seeds of the loss on the selection split over that of AdamW under WSD at the calibrated
rate, below 1 is better; the mean share of the steps; and for each task the mean loss with its share
of the steps. Policies have a line for their last weights and one for those of the lowest held-out
loss.

    python -m experiments.held_out_score builtin:held_out builtin:default --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.benchmark.calibrated import read_calibrated
from lr_gym.benchmark.held_out import HeldOutUse
from lr_gym.benchmark.loop import train
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.policy_recipe import POLICY_LR, policy_recipe
from lr_gym.benchmark.recipes import Recipe
from lr_gym.benchmark.tuning import TUNING_SEED
from lr_gym.tasks import SUITES, find_task

SUITE = SUITES["held-out-validation"]
REFERENCE = "adamw-wsd"


def played(
    recipe: Recipe, lr: float, tasks: Sequence[str], seeds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Selection losses (T, S) of a recipe, and the shares of the steps that it used."""
    losses = np.zeros((len(tasks), seeds))
    shares = np.zeros((len(tasks), seeds))
    for row, name in enumerate(tasks):
        task = find_task(name)
        for seed in range(seeds):
            outcome = train(recipe, lr, task, TUNING_SEED + seed)
            losses[row, seed] = outcome.selection_loss
            shares[row, seed] = outcome.updates / task.horizon
    return losses, shares


def entrants(policies: Sequence[str]) -> Iterator[tuple[str, Recipe, float]]:
    """Name, recipe and learning rate of each line, the reference first."""
    lr = float(read_calibrated()[REFERENCE]["lr"])
    yield REFERENCE, OPTIMIZERS[REFERENCE], lr
    for path in policies:
        recipe = policy_recipe(path)
        tell = recipe.held_out.tell
        yield path, recipe._replace(held_out=HeldOutUse(tell=tell)), POLICY_LR
        best = recipe._replace(held_out=HeldOutUse(best=True, tell=tell))
        yield f"{path}, best weights", best, POLICY_LR


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", nargs="+", help="policy files or builtin:NAME")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each task")
    parser.add_argument("--tasks", nargs="+", default=SUITE, help="tasks instead of the suite")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference: NDArray[np.float64] | None = None
    print("| contestant | loss | steps |", " | ".join(args.tasks), "|")
    print("|---" * (3 + len(args.tasks)) + "|")
    for name, recipe, lr in entrants(args.policies):
        losses, shares = played(recipe, lr, args.tasks, args.seeds)
        if reference is None:
            reference = losses
        ratio = float(np.exp(np.log(losses / reference).mean()))
        cells = zip(losses.mean(1), shares.mean(1), strict=True)
        each = " | ".join(f"{loss:.4g} ({share:.0%})" for loss, share in cells)
        print(f"| {name} | {ratio:.3f} | {shares.mean():.0%} | {each} |", flush=True)


if __name__ == "__main__":
    main()
