"""How the cost of an inner step grows with runs, width, layers, batch and horizon.

    python benchmarks/scaling.py --output-dir docs/results

Fully connected networks 40-w-...-w-10 are trained on MNIST-1D by AdamW, with statistics every 10
steps, on one thread. One variable at a time is changed from B = 64, w = 100, 3 layers, batch 32,
horizon 500. Times are processor time; all points take turns, and medians over rounds are reported.
The script writes scaling.png and scaling.json.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import find_task
from lr_gym.tasks.architectures import mlp

AXES: dict[str, tuple[int, ...]] = {
    "runs": (1, 4, 16, 64, 256),
    "width": (25, 50, 100, 200, 400),
    "layers": (2, 3, 5, 9),
    "batch": (8, 32, 128),
    "horizon": (100, 500, 2500),
}
BASE = {"runs": 64, "width": 100, "layers": 3, "batch": 32, "horizon": 500}


@dataclasses.dataclass(frozen=True)
class Args:
    """How the cost of an inner step grows."""

    output_dir: Path
    """Folder for scaling.png and scaling.json."""
    rounds: int = 5
    """Number of rounds; medians over rounds are reported."""
    compile: bool = False
    """Whether the trainings are compiled, which takes time for each point."""


def contestant(point: dict[str, int], compile: bool) -> Callable[[], float]:
    """An environment; each call of the result takes one decision.

    The call returns seconds per inner step of one run, the reward included.
    """
    widths = (40, *[point["width"]] * (point["layers"] - 1), 10)
    task = dataclasses.replace(
        find_task("mnist1d-mlp"), model=functools.partial(mlp, widths), batch_size=point["batch"]
    )
    decisions = point["horizon"] // 10
    options: dict[str, Any] = {
        "horizon": point["horizon"],
        "decisions": decisions,
        "compile": compile,
    }
    env = LRControlVectorEnv(task, num_envs=point["runs"], **options)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape or (), dtype=np.float32)
    env.step(action)

    def measure() -> float:
        start = time.process_time()
        env.step(action)
        return (time.process_time() - start) / (point["runs"] * 10)

    return measure


def main(args: Args) -> None:
    """Measure, print, plot and write the results."""
    torch.set_num_threads(1)
    points = {
        (axis, value): BASE | {axis: value} for axis, values in AXES.items() for value in values
    }
    measures = {key: contestant(point, args.compile) for key, point in points.items()}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in points}
    for _ in range(args.rounds):
        for key, measure in measures.items():
            times[key].append(1e6 * measure())
    medians = {key: statistics.median(values) for key, values in times.items()}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, len(AXES), figsize=(3 * len(AXES), 3), sharey=True)
    for panel, (axis, values) in zip(panels, AXES.items(), strict=True):
        panel.loglog(values, [medians[axis, value] for value in values], marker="o")
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        panel.set_xlabel(axis)
        print(
            f"| {axis} | "
            + " | ".join(f"{value}: {medians[axis, value]:.1f}" for value in values)
            + " |"
        )
    panels[0].set_ylabel("microseconds per step")
    figure.tight_layout()
    figure.savefig(args.output_dir / "scaling.png", dpi=120)
    table = {
        axis: {str(value): medians[axis, value] for value in values}
        for axis, values in AXES.items()
    }
    result = {
        "unit": "microseconds per inner step of one run",
        "base": BASE,
        "compile": args.compile,
        "medians": table,
    }
    (args.output_dir / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
