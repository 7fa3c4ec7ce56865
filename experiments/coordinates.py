"""In which coordinate do tasks agree about the best learning rate?

Every task is trained at a row of learning rates under WSD, from the same weights on the same data.
On the way the trainings are measured in each coordinate of COORDINATES. One value of a coordinate
for all tasks then names a learning rate for each task, and loses regret against the best rate of
the task's own curve. The coordinate whose best single value has the least mean regret wins; that
rule was written before the sweeps were made. The spread over tasks of log10 of the coordinate at
each task's best rate is shown beside it.

`--units` chooses the learning rate of each layer as rate * unit, see UNITS. There the coordinate is
the rate itself, and the mean log loss at the best single rate says which units are better.

Finished tasks are kept in FOLDER, and a run that was stopped continues there.

    python -m experiments.coordinates runs/coordinates --base adamw --tasks 300
    python -m experiments.coordinates runs/coordinates --base muon --units spectral-0.5 --tasks 150
    python -m experiments.coordinates runs/coordinates  # shows what is there
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from agents.random_suite import operations_of
from lr_gym.console import track
from lr_gym.control.units import layer_units as library_units
from lr_gym.engine import process_pool
from lr_gym.tasks import SUITES, find_task
from lr_gym.tasks.random_tasks import random_task
from lr_gym.tasks.stacked import stacked_forward, values_by_name
from lr_gym.training.executor import Executor
from lr_gym.training.inner_loop import InnerState
from lr_gym.types import Hyperparams
from lr_gym.updates.rule import MomentMasses
from lr_gym.updates.schedules import base_schedule

RATES = np.geomspace(1e-4, 0.4, 13)
FIRST = 3 << 40  # numbers of random tasks that no suite and no training has
SEED = 1 << 41  # no training and no selection uses this row seed
LONGEST = 400  # steps; longer tasks are cut
MAX_OPERATIONS = 2_000_000_000
MOMENTS = (0.1, 0.3, 0.6)  # shares of the training at which coordinates are measured
WORST = 0.5  # nats of regret that one task counts at most
BASE_WIDTH = 64
COORDINATES = ("learning rate", "update over weight", "spectral", "decrease", "change of outputs")


def adam_unit(power: float, shape: torch.Size) -> float:
    """(64 / fan_in)^power for a matrix, 1 for a vector."""
    if len(shape) < 2:
        return 1.0
    return float((BASE_WIDTH / math.prod(shape[1:])) ** power)


# Name -> power of 64 / fan_in under Adam, whether Muon's matrices have their spectral unit, and the
# highest unit.
UNITS: dict[str, tuple[float, bool, float]] = {
    "one": (0.0, False, math.inf),
    "spectral-0": (0.0, True, math.inf),
    "spectral-0.5": (0.5, True, math.inf),
    "spectral-1": (1.0, True, math.inf),
    "spectral-0.5-capped": (0.5, True, 1.0),
}
LIBRARY = "library"  # the units that lr_gym has, chosen by these sweeps


def layer_units(loop: Executor, units: str) -> Tensor:
    """Unit (L,) of the learning rate of each layer, of a row of UNITS or of the library."""
    power, spectral, highest = UNITS.get(units, (0.0, True, math.inf))
    own = []  # the unit of each tensor
    for rule, param in zip(loop.rules, loop.model.parameters(), strict=True):
        by_rule = units == LIBRARY or (spectral and rule.family == "muon")
        unit = rule.unit(param.shape) if by_rule else adam_unit(power, param.shape)
        own.append(min(highest, unit))
    return torch.tensor(library_units(loop.layout, "per_layer", own, loop.layout.sizes))


def spectral_norm(matrices: Tensor) -> Tensor:
    """Largest singular value (B,) of matrices (B, m, n), by ten steps of the power method."""
    vector = torch.ones_like(matrices[:, :1]).mT / math.sqrt(matrices.shape[2])
    for _ in range(10):
        vector = torch.nn.functional.normalize(matrices.mT @ (matrices @ vector), dim=1)
    norm: Tensor = (matrices @ vector).flatten(1).norm(dim=1)
    return norm


@torch.no_grad()
def coordinates_of(loop: Executor, state: InnerState, lr: Tensor) -> Tensor:
    """Logarithms (COORDINATES, B) of what the next update means, a mean over the matrices.

    Args:
        loop: What trains.
        state: The trainings.
        lr: (B, L) learning rates.
    """
    momentum = torch.full_like(lr, loop.rule.momentum)
    updates, ratios, norms = [], [], []
    decrease = torch.zeros_like(state.loss)
    for i, layer in enumerate(loop.layout.layer_of):
        rule = loop.rules[i]
        masses = rule.next_masses(
            MomentMasses(state.first_mass[:, layer], state.second_mass), momentum[:, layer]
        )
        second = state.seconds[i] if rule.family == "adam" else None
        first, second = rule.next_moments(
            state.grads[i], state.firsts[i], second, momentum[:, layer]
        )
        size = (lr[:, layer] * rule.factor(masses)).view(-1, *[1] * (first.ndim - 1))
        update = rule.direction(first, second, masses) * size
        updates.append(update)
        decrease += (update * state.grads[i]).flatten(1).sum(1)
        if update.ndim > 2:
            matrix, weight = update.flatten(2), state.params[i].flatten(1)
            ratios.append((update.flatten(1).norm(dim=1) / weight.norm(dim=1)).log())
            ratio = matrix.shape[2] / matrix.shape[1]
            norms.append((spectral_norm(matrix) * math.sqrt(ratio)).log())
    return torch.stack(
        [
            lr.log().mean(1),
            torch.stack(ratios).mean(0),
            torch.stack(norms).mean(0),
            (decrease / state.loss).clamp_min(1e-12).log(),
            change_of_outputs(loop, state, updates).log(),
        ]
    )


def change_of_outputs(loop: Executor, state: InnerState, updates: list[Tensor]) -> Tensor:
    """RMS of the change of the outputs by an update, over the RMS of their deviations, (B,)."""
    inputs = loop.data.gradient.inputs[:64].expand(
        len(state.loss), *[-1] * loop.data.gradient.inputs.ndim
    )
    loop.model.eval()
    found = []
    for sign in (0.0, 1.0):
        moved = [p - sign * update for p, update in zip(state.params, updates, strict=True)]
        values = values_by_name(loop.model, moved, state.buffers)
        found.append(stacked_forward(loop.model, values, inputs).flatten(1))
    loop.model.train()
    before, after = found
    change: Tensor = (after - before).norm(dim=1)
    return change / before.std(dim=1) / math.sqrt(before.shape[1])


def sweep(name: str, base: str, units: str) -> dict[str, Any]:
    """Train a task at every rate; log losses on the reward split, and coordinates on the way."""
    torch.set_num_threads(1)
    task = find_task(name)
    task = dataclasses.replace(task, horizon=min(task.horizon, LONGEST))
    loop = Executor(task, base=base)
    runs = len(RATES)
    state = loop.init(torch.full((runs,), SEED))
    first_loss = float(loop.evaluate(state, "reward")[0])
    lr = torch.from_numpy(RATES).float().unsqueeze(1) * layer_units(loop, units)
    ones = torch.ones_like(lr)
    hyper = Hyperparams(lr, ones * loop.rule.momentum, 0.0 * ones, 0.0 * ones)
    factor = base_schedule("wsd")(np.arange(task.horizon) / task.horizon)
    moments = [round(share * task.horizon) for share in MOMENTS]
    found = []
    for low, high in zip([0, *moments], [*moments, task.horizon], strict=True):
        part = torch.from_numpy(factor[low:high]).float().unsqueeze(1).expand(-1, runs)
        state, _ = loop.advance(state, hyper, part)
        if high < task.horizon and units == "one":
            found.append(coordinates_of(loop, state, lr).nan_to_num(math.nan, 1e3, -1e3))
    losses = loop.evaluate(state, "reward").numpy() - task.optimum
    log_loss = np.log(np.clip(np.nan_to_num(losses, nan=1e6, posinf=1e6), 1e-12, 1e6))
    return {
        "task": task.name,
        "base": base,
        "units": units,
        "worst": math.log(2.0) + math.log(max(first_loss - task.optimum, 1e-12)),
        "log_loss": log_loss.tolist(),
        "coordinates": torch.stack(found).mean(0).tolist() if found else [],
        "about": task.about,
    }


def tasks_of(count: int) -> Iterator[str]:
    """The networks of the suites train and validation, then so many cheap random tasks."""
    for suite in ("train", "validation"):
        for task in map(find_task, SUITES[suite]):
            no_matrix = task.family in ("quadratic", "rosenbrock")
            if not no_matrix and not task.name.startswith("random-"):
                yield task.name
    number = FIRST
    while count:
        horizon = min(random_task(number).task.horizon, LONGEST)
        if operations_of(number, horizon, "muon") <= MAX_OPERATIONS:
            yield f"random-{number}"
            count -= 1
        number += 1


def regret_curve(row: dict[str, Any]) -> NDArray[np.float64]:
    """Regret (RATES,) of each rate, smoothed, at most WORST."""
    log_loss = np.minimum(row["log_loss"], row["worst"])
    smooth = log_loss.copy()
    smooth[1:-1] = 0.25 * log_loss[:-2] + 0.5 * log_loss[1:-1] + 0.25 * log_loss[2:]
    regret: NDArray[np.float64] = np.minimum(smooth - smooth.min(), WORST)
    return regret


def one_value(
    rows: list[dict[str, Any]], coordinate: int | None
) -> tuple[float, float, float, NDArray[np.float64]]:
    """The best single value of a coordinate: log10 of it, spread, mean regret, regrets of tasks.

    Args:
        rows: Sweeps.
        coordinate: Index into COORDINATES; None for the rate in units.
    """
    curves = np.stack([regret_curve(row) for row in rows])
    places = np.tile(np.log(RATES), (len(rows), 1))
    if coordinate is not None:
        places = np.stack([rising(np.array(row["coordinates"][coordinate])) for row in rows])
    best = np.array([p[c.argmin()] for p, c in zip(places, curves, strict=True)])
    low, high = np.quantile(best, [0.02, 0.98])
    grid = np.linspace(low, high, 200)
    regret = np.stack([np.interp(grid, p, c) for p, c in zip(places, curves, strict=True)])
    chosen = int(regret.mean(0).argmin())
    spread = float(np.std(best)) / math.log(10.0)
    return grid[chosen] / math.log(10.0), spread, float(regret.mean(0)[chosen]), regret[:, chosen]


def rising(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places of the rates on a coordinate, made to rise; unknown ones go on with slope 1."""
    step = math.log(RATES[1] / RATES[0])
    for i in range(len(places)):
        before = places[i - 1] if i else -np.inf
        if not np.isfinite(places[i]) or abs(places[i]) > 500.0:
            places[i] = before + step if i else np.log(RATES[0])
        places[i] = max(places[i], before + 1e-6)
    return places


def interval(values: NDArray[np.float64]) -> str:
    """Mean of values with its 95 % bootstrap interval over tasks."""
    found = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return f"{values.mean():.4f} ({low:.4f} to {high:.4f})"


def show(rows: list[dict[str, Any]]) -> None:
    """Print the tables."""
    by_kind: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault((row["base"], row["units"]), {})[row["task"]] = row
    for (base, units), table in by_kind.items():
        own = list(table.values())
        print(f"\n{base}, units {units}, {len(own)} tasks\n")
        print("| coordinate | best value | spread, decades | regret, nats |\n|---|---|---|---|")
        names = COORDINATES if units == "one" else ("rate in units",)
        for i, name in enumerate(names):
            value, spread, _, regrets = one_value(own, i if units == "one" else None)
            print(f"| {name} | {10**value:.2e} | {spread:.3f} | {interval(regrets)} |")
        plain = by_kind.get((base, "one"), {})
        common = sorted(table.keys() & plain.keys())
        if units == "one" or not common:
            continue
        ours, theirs = ([kind[task] for task in common] for kind in (table, plain))
        at_best, at_one = (
            np.clip(own - other, -WORST, WORST)
            for own, other in zip(log_losses(ours), log_losses(theirs), strict=True)
        )
        print(
            f"log loss minus that in units one, {len(common)} tasks: at each task's best rate "
            f"{interval(at_best)}, at one rate for all {interval(at_one)}"
        )


def log_losses(rows: list[dict[str, Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smoothed log loss of each task at its best rate, and at the one rate that is best for all."""
    lowest = [
        np.convolve(np.minimum(row["log_loss"], row["worst"]), [0.25, 0.5, 0.25], "valid").min()
        for row in rows
    ]
    best = np.array(lowest)
    return best, best + one_value(rows, None)[3]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", choices=("adamw", "muon"))
    parser.add_argument("--units", choices=(*UNITS, LIBRARY), default="one")
    parser.add_argument("--tasks", type=int, default=300, help="random tasks besides the suites")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.base is not None:
        file = args.folder / f"{args.base}-{args.units}.jsonl"
        done = (
            {json.loads(line)["task"] for line in file.read_text().splitlines()}
            if file.exists()
            else set()
        )
        jobs = [name for name in tasks_of(args.tasks) if name not in done]
        play = functools.partial(sweep, base=args.base, units=args.units)
        with process_pool(args.workers) as pool, file.open("a") as out:
            for row in track(pool.map(play, jobs), len(jobs)):
                out.write(json.dumps(row) + "\n")
                out.flush()
    files = sorted(args.folder.glob("*.jsonl"))
    show([json.loads(line) for file in files for line in file.read_text().splitlines()])


if __name__ == "__main__":
    main()
