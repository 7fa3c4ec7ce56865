r"""Does anything that is known of a task before it is trained tell its best learning rate?

The tasks of the kept sweeps are drawn again from the seeds of their suites: their numbers of
weights and layers, batch size and examples are written to a file (--draw, a quarter of an hour of
one core, most of it for Muon, whose costs decide which tasks are drawn). Networks then see these
beside what the sweeps show, and their regret on tasks that they have not learned from is held
against that of one rate for all tasks, as in `experiments/sweep_features.py`.

    python -m experiments.sweep_tasks --draw
    python -m experiments.sweep_tasks
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from agents.random_suite import counted, random_batch
from agents.sweep.sweeps import Sweeps
from experiments.sweep_features import Model, held_out, interval, joined, one_rate
from lr_gym.files import write_atomically
from lr_gym.tasks.random_tasks import random_task

FOLDER = Path("docs/results/sweeps")
FILE = FOLDER / "tasks.json"
# Base optimizer -> file -> seed of the suite that its sweeps were played on.
FILES = {
    "adamw": {"adamw": 0, "adamw-seed1": 1, "adamw-seed3": 3},
    "muon": {"muon": 0, "muon-seed1": 1, "muon-seed2": 2},
}
SLOTS = 8  # tasks of an update of the agent's presets
DECISIONS = 50  # of a training, as the presets have it
KNOWN = ("weights", "layers", "batch_size", "examples")
# Row of the table -> columns of KNOWN that networks see beside what the sweeps show.
SEEN: dict[str, tuple[str, ...]] = {
    "passes, horizon, first loss": (),
    "and weights": ("weights",),
    "and weights, layers, batch size, examples": KNOWN,
}
NETWORKS = (
    Model("2 layers of 31, three networks", (), (31, 31), 260, 0.3, members=3),
    Model("15 neurons, three networks", (), (15,), 200, 1.0, members=3),
)


def drawn(seed: int, base: str, count: int) -> list[list[int]]:
    """What is KNOWN of the first `count` tasks that the agent's preset sweeps, in their order."""
    rows = []
    for update in range(-(-count // SLOTS)):
        for task in random_batch(seed, update, SLOTS, DECISIONS, base=base):
            number = int(task.name.removeprefix("random-"))
            sizes = counted(number)
            examples = random_task(number).drawn["examples"]
            rows.append([sizes.weights, sizes.layers, task.batch_size, examples, task.horizon])
    return rows[:count]


def check_horizons(seen: Sweeps, names: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    """Raise a ValueError where the drawn tasks are not those of the sweeps.

    Args:
        seen: the sweeps, which show the feature `horizon`.
        names: the features that they show.
        rows: what `drawn` returns of each sweep; the last number is the horizon.
    """
    column = seen.observation[:, names.index("horizon")].float()
    for index, row in enumerate(rows):
        shown = column[(seen.sweep == index) & (column != 0.0)]
        expected = math.log10(row[-1]) / 3.0 - 1.0
        if len(shown) and abs(float(shown[0]) - expected) > 2e-3:
            raise ValueError(f"sweep {index} is not of a task of {row[-1]} steps")


def columns(rows: Sequence[Sequence[int]], chosen: Sequence[str]) -> Tensor:
    """Logarithms (n, C) of what is known, of a size that networks can learn from."""
    table = torch.tensor(rows, dtype=torch.float64)[:, [KNOWN.index(name) for name in chosen]]
    return (table.log10() / 2.0 - 1.0).float()


def draw() -> None:
    """Write what is known of the tasks of all files."""
    found = {}
    for base, files in FILES.items():
        for name, seed in files.items():
            seen, names = joined([FOLDER / f"{name}.safetensors"])
            rows = drawn(seed, base, len(seen.curves))
            check_horizons(seen, names, rows)
            found[name] = rows
            print(f"{name}: {len(rows)} tasks", flush=True)
    write_atomically(FILE, (json.dumps(found) + "\n").encode())


def compare(base: str) -> None:
    """Print the table of a base optimizer."""
    seen, names = joined([FOLDER / f"{name}.safetensors" for name in FILES[base]])
    known = json.loads(FILE.read_text())
    rows = [row for name in FILES[base] for row in known[name]]
    constant = one_rate(seen)
    print(f"\n{base}, {len(rows)} tasks; one rate for all: regret {constant.mean():.4f} nats\n")
    print("| known | network | minus one rate |\n|---|---|---|")
    for about, chosen in SEEN.items():
        extra = columns(rows, chosen)[seen.sweep.long()].half()
        shown = seen._replace(observation=torch.cat([seen.observation, extra], dim=1))
        for network in NETWORKS:
            regret = held_out(shown, [*names, *chosen], network)
            print(f"| {about} | {network.about} | {interval(regret - constant)} |", flush=True)


def main() -> None:
    """Draw the tasks again, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="draw the tasks again, and write them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.draw:
        draw()
    else:
        for base in FILES:
            compare(base)


if __name__ == "__main__":
    main()
