"""Film of a policy on a stream: loss and learning rate as time goes on, with the hidden changes.

Beside it stands AdamW at a constant rate of your choice, on the same minibatches from the same
weights. Each point is the mean since the point before, of losses before they are learned from,
above the floor. The end of the file's name chooses: .gif is the film, .png its last frame.

    python -m experiments.stream_picture builtin:stream stream-digits-labels --lr 5e-3 \
      --output docs/results/stream.gif
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lr_gym.benchmark.contestants import Baseline, DeployedPolicy
from lr_gym.benchmark.one_run import run_view
from lr_gym.benchmark.policy_recipe import POLICY_LR
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.tasks import find_task
from lr_gym.tasks.stream import DataStream

POINTS_PER_FRAME = 2
FRAMES_PER_SECOND = 8
PAUSE = 12  # frames for which the last one stays
COLOURS = ("#d55e00", "#0072b2")
SIZE = (6.4, 4.2)  # inches
DPI = 80


def view_of(
    policy: str, task: str, lr: float, seed: int, horizon: int | None = None
) -> dict[str, Any]:
    """Train with the policy and at the constant rate, and return the report's view of the run.

    Args:
        policy: file, output folder of train_agent.py, or builtin:NAME.
        task: name of a stream.
        lr: the constant rate of AdamW.
        seed: number of the evaluation seed.
        horizon: inner steps, None for the task's own.

    Raises:
        ValueError: if the data of the task are no stream.
    """
    stream = find_task(task).data()
    if not isinstance(stream, DataStream):
        raise ValueError(f"task {task!r} is no stream; choose one from docs/tasks.md")
    cells = {
        policy: Cell(DeployedPolicy(policy), POLICY_LR, task, seed, test=True, horizon=horizon),
        f"AdamW, lr {lr:g}": Cell(Baseline("adamw"), lr, task, seed, test=True, horizon=horizon),
    }
    return run_view(stream, seed, {name: run_cell(cell) for name, cell in cells.items()})


class Film:
    """The figure and its frames."""

    def __init__(self, view: dict[str, Any]) -> None:
        """Draw the axes, which stay as they are while time goes on.

        Args:
            view: what `view_of` returns.
        """
        self.view = view
        self.figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(self.figure).figure
        self.losses, self.rates = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        rows = view["rows"]
        self.points = len(rows[0]["steps"])
        every_loss = [loss for row in rows for loss in row["loss"]]
        every_rate = [rate for row in rows for rate in row["lr"]]
        self.losses.set(ylabel="loss above the floor", ylim=(0.0, 1.05 * max(every_loss)))
        self.rates.set(
            xlabel="step",
            ylabel="learning rate",
            yscale="log",
            xlim=(0, rows[0]["steps"][-1]),
            ylim=(0.7 * min(every_rate), 1.4 * max(every_rate)),
        )
        self.lines = [
            (
                self.losses.plot([], [], color=colour, label=row["name"])[0],
                self.rates.plot([], [], color=colour)[0],
            )
            for row, colour in zip(rows, COLOURS, strict=True)
        ]
        self.changes = [
            axes.axvline(step, color="0.6", linestyle="--", linewidth=1.0, visible=False)
            for step in view["changes"]
            for axes in (self.losses, self.rates)
        ]
        self.losses.legend(loc="upper left", fontsize="small")

    def show(self, points: int) -> list[Any]:
        """Show the first points of all lines, and the changes that have come so far."""
        for row, (loss, rate) in zip(self.view["rows"], self.lines, strict=True):
            loss.set_data(row["steps"][:points], row["loss"][:points])
            rate.set_data(row["steps"][:points], row["lr"][:points])
        now = self.view["rows"][0]["steps"][points - 1]
        for line in self.changes:
            line.set_visible(line.get_xdata()[0] <= now)
        return [*self.changes, *(line for pair in self.lines for line in pair)]

    def save(self, path: Path) -> None:
        """Write the film, or its last frame."""
        if path.suffix == ".png":
            self.show(self.points)
            self.figure.savefig(path)
            return
        counts = [*range(1, self.points, POINTS_PER_FRAME), *[self.points] * PAUSE]
        film = FuncAnimation(self.figure, self.show, frames=counts, blit=False)
        film.save(path, writer=PillowWriter(fps=FRAMES_PER_SECOND))


def main() -> None:
    """Train with the policy and without, and write the film."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", help="file, output folder of train_agent.py, or builtin:NAME")
    parser.add_argument("task", help="name of a stream")
    parser.add_argument("--lr", type=float, required=True, help="constant rate of AdamW")
    parser.add_argument("--seed", type=int, default=0, help="number of the evaluation seed")
    parser.add_argument("--output", type=Path, required=True, help="GIF or PNG file")
    args = parser.parse_args()
    if args.output.suffix not in (".gif", ".png"):
        parser.error(f"--output must end with .gif or .png; got {args.output}")
    torch.set_num_threads(1)
    view = view_of(args.policy, args.task, args.lr, args.seed)
    Film(view).save(args.output)
    print(f"the data change at the steps {view['changes']}")
    for row in view["rows"]:
        mean = sum(row["loss"]) / len(row["loss"])
        print(f"{row['name']}: mean loss above the floor {mean:.4f}")


if __name__ == "__main__":
    main()
