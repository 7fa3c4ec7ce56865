"""How far does the best learning rate move with the width and the depth of a network?

Networks of one kind are trained at a row of learning rates under WSD, the rate of each layer being
rate * unit (`experiments.coordinates.UNITS`). The best rate is the lowest point of a parabola
through the three lowest points of the mean log loss of the reward split, over seeds. A kind's drift
is its highest best rate over its lowest. Finished networks are kept in FOLDER.

    python -m experiments.coordinate_drift runs/drift --base adamw --units library
    python -m experiments.coordinate_drift runs/drift  # shows what is there
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from experiments.coordinates import LIBRARY, UNITS, layer_units
from lr_gym.console import track
from lr_gym.engine import process_pool
from lr_gym.tasks import architectures as nets
from lr_gym.tasks import find_task
from lr_gym.tasks.modules import Residual
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams
from lr_gym.updates.schedules import base_schedule

RATES = np.geomspace(3e-4, 0.1, 9)
SEEDS = 2
FIRST_SEED = 5 << 41  # no training and no selection uses these row seeds
STEPS = 300


def residual_mlp(width: int, depth: int) -> nn.Module:
    """A stem, `depth` residual blocks of one hidden layer each, and a readout."""
    blocks = [
        Residual(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        for _ in range(depth)
    ]
    return nn.Sequential(nn.Linear(40, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 10))


def transformer(width: int, depth: int) -> nn.Module:
    """A transformer of heads of 8 units on patches of 4 numbers."""
    return nets.transformer(40, 4, width, width // 8, depth, 10)


class Family(NamedTuple):
    """Networks of one kind.

    Attributes:
        make: Makes the network from width and depth.
        widths: Widths at depth 2.
        depths: Depths at width 64.
    """

    make: Callable[[int, int], nn.Module]
    widths: tuple[int, ...]
    depths: tuple[int, ...]


FAMILIES = {
    "mlp": Family(
        lambda width, depth: nets.mlp((40, *[width] * depth, 10)),
        (32, 64, 128, 256, 512, 1024),
        (1, 2, 4, 8),
    ),
    "residual mlp": Family(residual_mlp, (32, 64, 128, 256, 512), (1, 2, 4, 8)),
    # wider ones would take hours of a CPU
    "cnn": Family(lambda width, depth: nets.cnn1d(40, width, 10), (32, 64, 128, 256), ()),
    "transformer": Family(transformer, (32, 64, 128), (1, 2, 4)),
}


class Network(NamedTuple):
    """A network of a family."""

    family: str
    width: int
    depth: int


def networks() -> list[Network]:
    """Every network of FAMILIES once, small ones first."""
    found = {
        network: network.width * network.width * network.depth
        for name, family in FAMILIES.items()
        for network in (
            *(Network(name, width, 2) for width in family.widths),
            *(Network(name, 64, depth) for depth in family.depths),
        )
    }
    return sorted(found, key=found.__getitem__)


def sweep(network: Network, base: str, units: str) -> list[float]:
    """Mean log loss (RATES,) on the reward split."""
    torch.set_num_threads(1)
    make = FAMILIES[network.family].make
    model = functools.partial(make, network.width, network.depth)
    task = dataclasses.replace(find_task("mnist1d-mlp"), model=model, batch_size=32, chunk=128)
    loop = Executor(task, base=base)
    runs = len(RATES) * SEEDS
    state = loop.init(torch.arange(FIRST_SEED, FIRST_SEED + SEEDS).repeat(len(RATES)))
    rates = torch.from_numpy(RATES).float().repeat_interleave(SEEDS)
    lr = rates.unsqueeze(1) * layer_units(loop, units)
    ones = torch.ones_like(lr)
    hyper = Hyperparams(lr, ones * loop.rule.momentum, 0.0 * ones, 0.0 * ones)
    factor = torch.from_numpy(base_schedule("wsd")(np.arange(STEPS) / STEPS)).float()
    state, _ = loop.advance(state, hyper, factor.unsqueeze(1).expand(-1, runs))
    losses = loop.evaluate(state, "reward").nan_to_num(nan=1e3, posinf=1e3).clamp_max(1e3)
    means: list[float] = losses.log().view(len(RATES), SEEDS).mean(1).tolist()
    return means


def best_rate(curve: NDArray[np.float64]) -> tuple[float, float]:
    """Rate at the lowest point of a parabola through the three lowest points, and the value there.

    >>> rate, value = best_rate((np.log(RATES) + 5.0) ** 2)
    >>> round(float(np.log(rate)), 6), round(value, 6)
    (-5.0, 0.0)
    """
    middle = int(np.clip(curve.argmin(), 1, len(curve) - 2))
    near = slice(middle - 1, middle + 2)
    fit = np.polynomial.Polynomial.fit(np.log(RATES[near]), curve[near], 2).convert()
    slope, curvature = float(fit.coef[1]), float(fit.coef[2])
    place = np.clip(-slope / (2.0 * curvature), *np.log(RATES[[middle - 1, middle + 1]]))
    return float(np.exp(place)), float(fit(place))


def show(base: str, units: str, curves: dict[Network, list[float]]) -> None:
    """Print the best rates of each family, and their drift."""
    print(f"\n{base}, units {units}: best rate (log loss there)\n")
    print("| family | over | best rates | drift |\n|---|---|---|---|")
    for family in FAMILIES:
        for over, fixed in (("width", 2), ("depth", 64)):
            own = {
                getattr(network, over): best_rate(np.array(curve))
                for network, curve in curves.items()
                if network.family == family
                and (network.depth if over == "width" else network.width) == fixed
            }
            if len(own) < 2:
                continue
            cells = [f"{size}: {lr:.1e} ({loss:+.2f})" for size, (lr, loss) in sorted(own.items())]
            rates = [lr for lr, _ in own.values()]
            print(f"| {family} | {over} | {', '.join(cells)} | {max(rates) / min(rates):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", choices=("adamw", "muon"))
    parser.add_argument("--units", choices=(*UNITS, LIBRARY), default="one")
    parser.add_argument("--widest", type=int, default=1024, help="leave out wider networks")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], dict[Network, list[float]]] = {}
    for file in sorted(args.folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        base, units = file.stem.split("-", 1)
        found[base, units] = {Network(*row["network"]): row["curve"] for row in rows}
    if args.base is not None:
        own = found.setdefault((args.base, args.units), {})
        jobs = [n for n in networks() if n not in own and n.width <= args.widest]
        play = functools.partial(sweep, base=args.base, units=args.units)
        file = args.folder / f"{args.base}-{args.units}.jsonl"
        with process_pool(args.workers) as pool, file.open("a") as out:
            played = track(pool.map(play, jobs), len(jobs))
            for network, curve in zip(jobs, played, strict=True):
                own[network] = curve
                out.write(json.dumps({"network": network, "curve": curve}) + "\n")
                out.flush()
    for (base, units), curves in found.items():
        show(base, units, curves)


if __name__ == "__main__":
    main()
