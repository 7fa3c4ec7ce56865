"""A learned controller against Adam at 0.001 on Titanic, IMDB or CIFAR-10: batch 32, 50 epochs.

    python -m experiments.adaptive_lr --task titanic

Titanic is an MLP with dropout, IMDB a classifier on the cached features of a frozen encoder, and
CIFAR-10 a ResNet-18. Both methods start from the same weights and see the same minibatches; an
epoch is as many minibatches as cover the gradient split once. The accuracy after each epoch is
measured on the selection split, the final figures on the test split.
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from typing import Literal, NamedTuple

import numpy as np
import torch
import tyro
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn

from lr_gym.analysis.intervals import mean_interval, paired_difference
from lr_gym.benchmark.contestants import Baseline, DeployedPolicy, recipe_of
from lr_gym.benchmark.evaluation_mode import BATCH_NORM_BATCHES, averaged_weights
from lr_gym.benchmark.loop import evaluation_seed
from lr_gym.benchmark.recipes import Recipe, TrainingLength
from lr_gym.tasks import Split, Task, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.tasks.task import splits_of
from lr_gym.training.inner_loop import minibatch

TASKS = {"titanic": "titanic-mlp", "imdb": "imdb-head", "cifar10": "cifar10-resnet18"}
FIGURES = ("accuracy", "loss", "f1", "precision", "recall")
BATCH = 32
LR = 0.001


@dataclasses.dataclass(frozen=True)
class Args:
    """A learned controller against Adam at 0.001, batch 32."""

    task: Literal["titanic", "imdb", "cifar10"]
    """Data set, with its model."""
    policy: str = "builtin:default"
    """Policy file, output folder of train_agent.py, or builtin:NAME."""
    epochs: int = 50
    """Passes over the gradient split; minibatches are drawn with replacement."""
    seeds: tuple[int, ...] = (42,)
    """Seeds of weights and minibatches; several of them give intervals."""
    target: float | None = None
    """Accuracy on the selection split to reach; by default the best that Adam reaches."""


class Run(NamedTuple):
    """Result of a training."""

    accuracy: list[float]  # on the selection split, after each epoch
    test: dict[str, float]  # FIGURES of the test split, at the end


@torch.no_grad()
def score(task: Task, model: nn.Module, split: Split) -> dict[str, float]:
    """FIGURES of a split.

    Precision, recall and F1 are those of class 1, or with more than two classes their mean over the
    classes.
    """
    model.eval()
    outputs = torch.cat([model(piece) for piece in torch.split(split.inputs, task.chunk)])
    model.train()
    guess = outputs.argmax(1).cpu().numpy()
    truth = split.targets.cpu().numpy()
    average = "binary" if outputs.shape[1] == 2 else "macro"
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, guess, average=average, zero_division=0.0
    )
    loss = float(task.loss(outputs, split.targets).mean())
    values = (float(accuracy_score(truth, guess)), loss, float(f1), float(precision), float(recall))
    return dict(zip(FIGURES, values, strict=True))


def train(task: Task, recipe: Recipe, epochs: int, seed: int) -> Run:
    """Train once in a plain loop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = splits_of(task).to(device, torch.float32)
    inputs, targets = data.gradient
    run_seed = evaluation_seed(seed)
    model = plain_model(task, run_seed).to(device)
    steps_per_epoch = math.ceil(len(inputs) / BATCH)
    length = TrainingLength(epochs * steps_per_epoch, steps_per_epoch)
    optimizer = recipe.make(model, LR, length)
    history = []

    def batches(first: int, count: int) -> Tensor:
        """Indices (count, BATCH) of the examples of some minibatches."""
        steps = torch.arange(first, first + count)
        return minibatch(run_seed.expand(count), steps, BATCH, len(inputs)).to(device)

    def figures(split: Split) -> dict[str, float]:
        some = (inputs[rows] for rows in batches(0, min(BATCH_NORM_BATCHES, steps_per_epoch)))
        shown = averaged_weights(model, optimizer, some) if recipe.averages else nullcontext()
        with shown:
            return score(task, model, split)

    for epoch in range(epochs):
        for rows in batches(epoch * steps_per_epoch, steps_per_epoch):
            loss = task.loss(model(inputs[rows]), targets[rows]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            recipe.step(optimizer, loss.detach())
        history.append(figures(data.selection)["accuracy"])
    return Run(history, figures(data.test))


def epochs_to(accuracy: list[float], target: float) -> float:
    """Epochs until the accuracy is first reached, inf where it never is."""
    return next((i + 1.0 for i, value in enumerate(accuracy) if value >= target), math.inf)


def text(values: list[float], digits: int = 4) -> str:
    """The mean, with its interval where there are several values."""
    found = mean_interval(values)
    if len(values) == 1:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def print_table(runs: dict[str, list[Run]], target: float) -> None:
    """Print the figures of each contestant, and when it reached the target."""
    print(f"| | {' | '.join(FIGURES)} | epochs to accuracy {target:.3f} | best epoch |")
    print("|---" * (len(FIGURES) + 3) + "|")
    for name, found in runs.items():
        cells = [text([run.test[figure] for run in found]) for figure in FIGURES]
        reached = [epochs_to(run.accuracy, target) for run in found]
        finite = [value for value in reached if math.isfinite(value)]
        median = f"{np.median(finite):.0f}" if finite else "never"
        best = f"{np.median([int(np.argmax(run.accuracy)) + 1 for run in found]):.0f}"
        print(
            f"| {name} | {' | '.join(cells)} | {median} ({len(finite)} of {len(found)} reach it) | "
            f"{best} |"
        )


def print_differences(ours: list[Run], adam: list[Run]) -> None:
    """Print the paired differences of all figures."""
    print("\ncontrolled minus Adam, paired:")
    for figure in FIGURES:
        gap = paired_difference(
            [run.test[figure] for run in ours], [run.test[figure] for run in adam]
        )
        print(f"- {figure}: {gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")


def main(args: Args) -> None:
    torch.set_num_threads(1)
    task = find_task(TASKS[args.task])
    recipes = {
        f"Adam, lr {LR}": recipe_of(Baseline("adam")),
        f"controlled by {args.policy}": recipe_of(DeployedPolicy(args.policy)),
    }
    runs = {
        name: [train(task, recipe, args.epochs, seed) for seed in args.seeds]
        for name, recipe in recipes.items()
    }
    adam, ours = runs.values()
    target = args.target
    if target is None:
        target = float(np.mean([max(run.accuracy) for run in adam]))
    seeds = ", ".join(map(str, args.seeds))
    print(f"{task.name}: {args.epochs} epochs, batch {BATCH}, seeds {seeds}\n")
    print_table(runs, target)
    if len(args.seeds) > 1:
        print_differences(ours, adam)


if __name__ == "__main__":
    main(tyro.cli(Args))
