r"""Draw how a policy ends a training: both losses, the learning rate, and the moment it decided.

Beside it stands AdamW under WSD at a rate of your choice, on the same minibatches from the same
weights. The title of each half says what the training came to on the test split.

    python -m experiments.held_out_picture builtin:held_out babies-mlp --lr 3e-3 \
      --output docs/results/held_out.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lr_gym.benchmark.loop import evaluation_seed
from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.benchmark.policy_recipe import POLICY_LR, policy_recipe
from lr_gym.benchmark.recipes import Recipe
from lr_gym.benchmark.schedulers import SCHEDULERS
from lr_gym.benchmark.training_data import FixedData, score
from lr_gym.files import write_atomically
from lr_gym.tasks import Task, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.tasks.task import Data

POINTS = 100  # of each curve
SMOOTHING = 0.1  # weight of the newest minibatch in the training loss that is drawn


class Course(NamedTuple):
    """How one training went, read at some of its steps.

    Attributes:
        steps: numbers of updates.
        train: running mean of the training loss.
        held_out: loss on the monitor split.
        lr: learning rate of the first layer.
        decided: number of updates when the end was decided, None where nobody decided it.
        test: loss on the test split at the end.
    """

    steps: list[int]
    train: list[float]
    held_out: list[float]
    lr: list[float]
    decided: int | None
    test: float


def course(recipe: Recipe, lr: float, task: Task, seed: int) -> Course:
    """Train once and take notes; a policy is told the held-out loss at every decision."""
    source = task.data()
    assert isinstance(source, Data)
    run_seed = evaluation_seed(seed)
    data = FixedData(task, source, run_seed, task.horizon, torch.device("cpu"))
    model = plain_model(task, run_seed)
    optimizer: Any = recipe.make(model, lr, data.length)
    scheduler = SCHEDULERS[recipe.schedule](optimizer, lr, task.horizon)
    monitor = source.to("cpu", torch.float32).monitor
    assert monitor is not None
    every = max(1, task.horizon // POINTS)
    watches = hasattr(optimizer, "observe_validation")
    notes = Course([], [], [], [], None, 0.0)
    mean = 0.0
    decided = None
    for step in range(task.horizon):
        inputs, targets = data.batch(step)
        loss = task.loss(model(inputs), targets).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        now = float(loss.detach())
        mean = now if step == 0 else mean + SMOOTHING * (now - mean)
        recipe.step(optimizer, loss.detach())
        if (step + 1) % every == 0:
            held_out, _ = score(task, model, monitor)
            notes.steps.append(step + 1)
            notes.train.append(mean)
            notes.held_out.append(held_out)
            notes.lr.append(next(iter(recipe.rates(optimizer).values())))
            if watches:
                optimizer.observe_validation(held_out)
        if scheduler is not None:
            scheduler.step()
        if watches:
            if decided is None and optimizer.metrics().get("finish/phase", 0.0) > 0.0:
                decided = step
            if optimizer.finished:
                break
    tested, _ = score(task, model, source.to("cpu", torch.float32).test)
    return notes._replace(decided=decided, test=tested)


def draw(courses: dict[str, Course], horizon: int, path: Path) -> None:
    """Write the picture: a column for each training, losses above and learning rates below."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(courses), 4.6), layout="constrained")
    canvas = FigureCanvasAgg(figure).figure
    rows = canvas.subplots(2, len(courses), sharex=True, sharey="row", height_ratios=(3, 2))
    for column, (name, notes) in enumerate(courses.items()):
        losses = rows[0][column]
        rates = rows[1][column]
        losses.plot(notes.steps, notes.train, color="0.6", label="training loss")
        losses.plot(notes.steps, notes.held_out, color="C0", label="held-out loss")
        rates.plot(notes.steps, notes.lr, color="C1")
        losses.set_title(f"{name}\ntest loss {notes.test:.3f} after {notes.steps[-1]} steps")
        rates.set(yscale="log", xlabel="step", xlim=(0, horizon))
        if notes.decided is not None:
            for axes in (losses, rates):
                axes.axvline(notes.decided, color="C3", linestyle="--", label="end decided")
    rows[0][0].set(yscale="log", ylabel="loss")
    rows[1][0].set(ylabel="learning rate")
    rows[0][0].legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())


def main() -> None:
    """Train with the policy and without, and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", help="file, output folder of train_agent.py, or builtin:NAME")
    parser.add_argument("task", help="name of a task with a monitor split")
    parser.add_argument("--lr", type=float, required=True, help="peak rate of AdamW under WSD")
    parser.add_argument("--seed", type=int, default=0, help="number of the evaluation seed")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = find_task(args.task)
    courses = {
        args.policy: course(policy_recipe(args.policy), POLICY_LR, task, args.seed),
        f"AdamW, WSD, lr {args.lr:g}": course(OPTIMIZERS["adamw-wsd"], args.lr, task, args.seed),
    }
    draw(courses, task.horizon, args.output)
    for name, notes in courses.items():
        print(f"{name}: test loss {notes.test:.4f} after {notes.steps[-1]} steps")


if __name__ == "__main__":
    main()
