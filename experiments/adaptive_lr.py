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
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import nn
from torch.optim import Optimizer

from lr_gym.benchmark.contestants import Contestant, make_optimizer
from lr_gym.benchmark.metrics import mean_interval, paired_difference
from lr_gym.benchmark.run import BATCH_NORM_BATCHES, evaluated, evaluation_seed
from lr_gym.optim import PolicyOptimizer
from lr_gym.tasks import Split, Task, find_task
from lr_gym.tasks.initial import plain_model
from lr_gym.training.inner_loop import minibatch

TASKS = {"titanic": "titanic-mlp", "imdb": "imdb-head", "cifar10": "cifar10-resnet18"}
FIGURES = ("accuracy", "loss", "f1", "precision", "recall")
BATCH = 32


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
    guess, truth = outputs.argmax(1).cpu().numpy(), split.targets.cpu().numpy()
    average = "binary" if outputs.shape[1] == 2 else "macro"
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, guess, average=average, zero_division=0.0
    )
    loss = float(task.loss(outputs, split.targets).mean())
    values = (float(accuracy_score(truth, guess)), loss, float(f1), float(precision), float(recall))
    return dict(zip(FIGURES, values, strict=True))


def train(
    task: Task, make: Callable[[nn.Module, int, int], Optimizer], epochs: int, seed: int
) -> Run:
    """Train once in a plain loop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, run_seed = task.data().to(device, torch.float32), evaluation_seed(seed)
    model = plain_model(task, run_seed).to(device)
    each = math.ceil(len(data.gradient.inputs) / BATCH)
    optimizer = make(model, each, epochs)
    inputs, targets = data.gradient
    history = []

    def figures(split: Split) -> dict[str, float]:
        some = minibatch(run_seed.expand(each), torch.arange(each), BATCH, len(inputs))[
            :BATCH_NORM_BATCHES
        ]
        with evaluated(model, optimizer, (inputs[rows] for rows in some.to(device))):
            return score(task, model, split)

    for epoch in range(epochs):
        steps = torch.arange(epoch * each, (epoch + 1) * each)
        for rows in minibatch(run_seed.expand(each), steps, BATCH, len(inputs)).to(device):
            loss = task.loss(model(inputs[rows]), targets[rows]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if isinstance(optimizer, PolicyOptimizer):
                optimizer.observe(loss)
            optimizer.step()
        history.append(figures(data.selection)["accuracy"])
    return Run(history, figures(data.test))


def epochs_to(accuracy: list[float], target: float) -> float:
    """Epochs until the accuracy is first reached, inf where it never is."""
    return next((i + 1.0 for i, value in enumerate(accuracy) if value >= target), math.inf)


def controlled(policy: str) -> Callable[[nn.Module, int, int], Optimizer]:
    """Makes a PolicyOptimizer that starts from 0.001, Adam's learning rate."""
    contestant = Contestant("", 1e-3, policy)
    return lambda model, epoch, epochs: make_optimizer(contestant, model, epoch * epochs, epoch)


def text(values: list[float], digits: int = 4) -> str:
    """The mean, with its interval where there are several values."""
    found = mean_interval(values)
    if len(values) == 1:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def main(args: Args) -> None:
    torch.set_num_threads(1)
    task = find_task(TASKS[args.task])
    makers: dict[str, Any] = {
        "Adam, lr 0.001": lambda model, epoch, epochs: torch.optim.Adam(model.parameters(), 1e-3),
        f"controlled by {args.policy}": controlled(args.policy),
    }
    runs = {
        name: [train(task, make, args.epochs, seed) for seed in args.seeds]
        for name, make in makers.items()
    }
    adam, ours = runs.values()
    target = (
        float(np.mean([max(run.accuracy) for run in adam])) if args.target is None else args.target
    )
    print(
        f"{task.name}: {args.epochs} epochs, batch {BATCH}, seeds "
        f"{', '.join(map(str, args.seeds))}\n"
    )
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
    if len(args.seeds) > 1:
        print("\ncontrolled minus Adam, paired:")
        for figure in FIGURES:
            gap = paired_difference(
                [run.test[figure] for run in ours], [run.test[figure] for run in adam]
            )
            print(f"- {figure}: {gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")


if __name__ == "__main__":
    main(tyro.cli(Args))
