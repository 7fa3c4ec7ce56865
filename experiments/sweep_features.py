"""How much does what is known before a training tell about its best learning rate?

Networks of several sizes learn from the sweeps of the agent `sweep`, on three quarters of the
tasks, and name a learning rate on the last quarter. Their regret there is held against that of one
rate for all tasks, chosen on the same three quarters. The differences are per task, below 0 is
better than one rate, and the intervals are over tasks.

SWEEPS are output folders of `train_agent.py --agent sweep`, or files that --save has written, all
with the same features. With --tasks, networks learn from that many tasks in place of three quarters
of them, which shows whether more sweeps would help.

    python -m experiments.sweep_features docs/results/sweeps/adamw*.safetensors
    python -m experiments.sweep_features docs/results/sweeps/muon*.safetensors --tasks 100
    python -m experiments.sweep_features runs/sweep --save docs/results/sweeps/adamw.safetensors
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats

from agents.sweep.rate_network import RateNetwork, learn, regret_at
from agents.sweep.sweeps import PEAK, SweepConfig, Sweeps

FOLDS = 4
GRID = torch.linspace(-9.0, -0.7, 90)  # logarithms of the one rate for all tasks
LOG_RATES = SweepConfig().log_rates


class Model(NamedTuple):
    """A network and how it learns; no features stand for all of them."""

    about: str
    features: tuple[str, ...]
    hidden: tuple[int, ...]
    steps: int
    weight_decay: float
    members: int = 1


PASSES = ("passes", "passes_known")
MODELS = (
    Model("as the agent's preset", (), (63, 63), 520, 0.3),
    Model("the mean of three of them", (), (63, 63), 520, 0.3, members=3),
    Model("four times as many steps", (), (63, 63), 2000, 0.3),
    Model("4 neurons, passes alone", PASSES, (4,), 300, 0.1),
    Model("8 neurons, first loss alone", ("first_loss", "loss_known"), (8,), 400, 0.3),
)


def read_sweeps(path: Path) -> tuple[Sweeps, list[str]]:
    """Sweeps, and the names of the features that they show."""
    if path.is_dir():
        state = torch.load(path / "checkpoint.pt", weights_only=True)["learner"]
        control = json.loads((path / "args.json").read_text())["control"]
        return Sweeps(*state["seen"]), [name for name in control["features"] if name != PEAK]
    with safe_open(path, framework="pt") as file:
        names = json.loads(file.metadata()["features"])
        return Sweeps(*(file.get_tensor(field) for field in Sweeps._fields)), names


def joined(paths: Sequence[Path]) -> tuple[Sweeps, list[str]]:
    """All sweeps together, and the names of the features that they show."""
    found = [read_sweeps(path) for path in paths]
    names = {tuple(features) for _, features in found}
    if len(names) > 1:
        raise ValueError(f"the sweeps show different features: {sorted(names)}")
    return functools.reduce(Sweeps.joined, (sweeps for sweeps, _ in found)), found[0][1]


def held_out(
    seen: Sweeps, names: Sequence[str], model: Model, learned_on: int | None = None
) -> NDArray[np.float64]:
    """Regret of each task, of networks that have not learned from it.

    Args:
        seen: the sweeps.
        names: the features that they show.
        model: the networks.
        learned_on: number of tasks that each network learns from; None for all but its own.
    """
    columns = [names.index(name) for name in model.features or names]
    shown = seen.observation[:, columns]
    tasks = len(seen.curves)
    regret = torch.zeros(tasks)
    for fold in range(FOLDS):
        own = seen.sweep.long() % FOLDS == fold  # (n,) rows of the tasks that are left out
        learned = ~own
        if learned_on is not None:
            generator = torch.Generator().manual_seed(fold)
            order = torch.randperm(tasks, generator=generator)
            chosen = order[order % FOLDS != fold][:learned_on]
            learned &= torch.isin(seen.sweep.long(), chosen)
        others = Sweeps(shown[learned], seen.sweep[learned], seen.curves)
        named = []
        for member in range(model.members):
            seed = fold + FOLDS * member
            network = RateNetwork([len(columns), *model.hidden], LOG_RATES, seed)
            optimizer = torch.optim.AdamW(
                network.parameters(), 3e-3, weight_decay=model.weight_decay
            )
            rates = [3e-3 * (1.0 - step / model.steps) for step in range(model.steps)]
            generator = torch.Generator().manual_seed(seed)
            learn(network, optimizer, others, LOG_RATES, rates, generator)
            with torch.no_grad():
                named.append(network(shown[own].float()))
        task = seen.sweep[own].long()
        each = regret_at(torch.stack(named).mean(0), seen.curves[task], LOG_RATES)
        rows = torch.zeros(tasks).index_add(0, task, torch.ones(len(task))).clamp_min(1.0)
        regret += torch.zeros(tasks).index_add(0, task, each) / rows
    return regret.double().numpy()


def one_rate(seen: Sweeps) -> NDArray[np.float64]:
    """Regret of each task at the one rate that is best for the tasks of the other folds."""
    tasks = len(seen.curves)
    table = torch.stack([regret_at(rate.expand(tasks), seen.curves, LOG_RATES) for rate in GRID])
    regret = torch.zeros(tasks)
    for fold in range(FOLDS):
        own = torch.arange(tasks) % FOLDS == fold
        best = int(table[:, ~own].mean(1).argmin())
        regret[own] = table[best, own]
    return regret.double().numpy()


def interval(values: NDArray[np.float64]) -> str:
    """Mean of values with its 95 % bootstrap interval over tasks."""
    found = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return f"{values.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--tasks", type=int, help="tasks that each network learns from")
    parser.add_argument("--save", type=Path, help="write the sweeps into this file instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seen, names = joined(args.sweeps)
    if args.save is not None:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in seen._asdict().items()}
        save_file(tensors, args.save, {"features": json.dumps(names)})
        print(f"{args.save}: {len(seen.curves)} sweeps")
        return
    constant = one_rate(seen)
    print(f"{len(seen.curves)} tasks; one rate for all: regret {constant.mean():.4f} nats\n")
    print("| network | regret | minus one rate |\n|---|---|---|")
    for model in MODELS:
        regret = held_out(seen, names, model, args.tasks)
        print(
            f"| {model.about} | {regret.mean():.4f} | {interval(regret - constant)} |", flush=True
        )


if __name__ == "__main__":
    main()
