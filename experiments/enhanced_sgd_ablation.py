"""EnhancedSGD with each feature switched off (or on) in turn, and what its Q-table does.

All variants share the initial weights and the data order of a seed, on each of five tasks. The
score of a training is the log10 of its final training loss (mean over the last tenth of the steps).
The effect of a variant is its score minus that of the defaults, so a positive number says that the
default is better.

    python -m experiments.enhanced_sgd_ablation --seeds 5
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from experiments.mnist1d_training import interval, load, mlp
from lr_gym.optim import EnhancedSGD, QLearningController

VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no Q-learning": {"q_learning": False},
    "no adaptive momentum": {"adaptive_momentum": False},
    "no entropy in the reward": {"entropy_weight": 0.0},
    "no entropy/variance adjustment": {"entropy_adjustment": False},
    "no gradient retention": {"gradient_buffer_size": 0},
    "no Lookahead": {"lookahead_k": 0},
    "Lookahead alpha 0.5": {"lookahead_alpha": 0.5},
    "no clipping": {"gradient_clipping": False},
    "no spike correction": {"loss_correction_factor": 1.0},
    "with noise 0.01": {"noise_scale": 0.01},
    "with centring": {"gradient_centering": True},
    "with Bayesian init": {"bayesian_init": True},
    "all off (SGD 0.01, momentum 0.9)": {
        "q_learning": False,
        "entropy_adjustment": False,
        "gradient_buffer_size": 0,
        "lookahead_k": 0,
        "gradient_clipping": False,
        "loss_correction_factor": 1.0,
    },
}


class Task(NamedTuple):
    """Data, a model for each seed, and a loss."""

    x: Tensor
    y: Tensor
    model: Callable[[int], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]


def _net(*widths: int) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for i, (a, b) in enumerate(itertools.pairwise(widths)):
                layers += [nn.Linear(a, b)] + ([nn.ReLU()] if i < len(widths) - 2 else [])
            return nn.Sequential(*layers)

    return build


def tasks() -> dict[str, Task]:
    """Make the small tasks of the ablation, by name."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 16, generator=generator)
    labels = (x @ torch.randn(16, 1, generator=generator) > 0).float()
    target = torch.sin(x @ torch.randn(16, 4, generator=generator) / 2).sum(1, keepdim=True)
    uneven = x * torch.logspace(0, -1.5, 16)
    digits = load_digits()
    pixels = torch.as_tensor(digits.data).float() / 16
    mnist = load()[0]
    bce = functional.binary_cross_entropy_with_logits
    return {
        "logistic": Task(x, labels, _net(16, 1), bce),
        "regression": Task(x, target, _net(16, 32, 1), functional.mse_loss),
        "ill-conditioned": Task(
            uneven, uneven @ torch.ones(16, 1), _net(16, 1), functional.mse_loss
        ),
        "digits": Task(
            pixels,
            torch.as_tensor(digits.target).long(),
            _net(64, 32, 10),
            functional.cross_entropy,
        ),
        "mnist1d": Task(mnist.x, mnist.y, lambda seed: mlp(seed, 64), functional.cross_entropy),
    }


def run(
    task: Task,
    seed: int,
    steps: int,
    options: dict[str, Any],
    table: QLearningController | None = None,
) -> tuple[float, EnhancedSGD]:
    """Train once; returns the score and the optimizer."""
    model, generator = task.model(seed), torch.Generator().manual_seed(seed)
    optimizer = EnhancedSGD(model.parameters(), seed=seed, q_controller=table, **options)
    losses = []
    last = max(1, steps // 10)
    for step in range(steps):
        rows = torch.randint(len(task.x), (64,), generator=generator)
        loss = task.loss(model(task.x[rows]), task.y[rows])
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        detached = loss.detach()
        optimizer.step(closure=lambda loss=detached: loss, current_epoch=step // 50)  # type: ignore[misc]
        losses.append(detached)
    return float(
        torch.stack(losses[-last:]).mean().clamp(1e-12, 1e6).nan_to_num(1e6).log10()
    ), optimizer


def q_table(steps: int, seeds: int, table_of: dict[str, Task]) -> None:
    """Visits, policy and rewards within one run, and for one table carried through many runs."""
    print("\nQ-table within one run, mean over seeds:\n")
    print(
        "| task | cells updated | updates | states visited | more than once | greedy action "
        "changed in |"
    )
    print("|---|---|---|---|---|---|")
    for name, task in table_of.items():
        lines = []
        for seed in range(seeds):
            controller = run(task, seed, steps, {})[1].q_controller
            per_state = controller.visits.sum(1)
            changed = (controller.q.argmax(1) != 0) & (per_state > 0)
            lines.append(
                [
                    float((controller.visits > 0).sum()),
                    float(per_state.sum()),
                    float((per_state > 0).sum()),
                    float((per_state > 1).sum()),
                    float(changed.sum()),
                ]
            )
        print(f"| {name} | " + " | ".join(f"{v:.1f}" for v in np.mean(lines, axis=0)) + " |")

    print("\nOne table carried through 30 trainings, tasks in turn:\n")
    print(
        "| training | mean reward | visits | states visited | greedy actions changed since the "
        "last row |"
    )
    print("|---|---|---|---|---|")
    table: QLearningController | None = None
    old: Tensor | None = None
    rewards = []
    for number in range(30):
        name = list(table_of)[number % len(table_of)]
        _, optimizer = run(table_of[name], 100 + number, steps, {}, table)
        table = optimizer.q_controller
        rewards.append(float(np.nanmean(optimizer.scales.rewards)))
        if (number + 1) % len(table_of) == 0:
            greedy = table.q.argmax(1)
            moved = int((greedy != old).sum()) if old is not None else int((greedy != 0).sum())
            old = greedy.clone()
            mean = np.mean(rewards[-len(table_of) :])
            states = int((table.visits.sum(1) > 0).sum())
            first = number - len(table_of) + 2
            total = int(table.visits.sum())
            print(f"| {first}-{number + 1} | {mean:.4f} | {total} | {states} | {moved} |")
    assert table is not None
    print(
        "\nA fresh run with that table, exploration at its floor, minus the defaults, log10 loss:\n"
    )
    table.epsilon = table.min_epsilon
    for name, task in table_of.items():
        gains = []
        for seed in range(seeds):
            learned = QLearningController(table.edges, table.actions.tolist())
            learned.load_state_dict(table.state_dict())
            gains.append(run(task, seed, steps, {}, learned)[0] - run(task, seed, steps, {})[0])
        print(f"- {name}: {interval(gains)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table_of = tasks()
    scores = {
        variant: np.array(
            [
                [run(t, seed, args.steps, options)[0] for seed in range(args.seeds)]
                for t in table_of.values()
            ]
        )
        for variant, options in VARIANTS.items()
    }
    print(
        "log10 of the final training loss minus that of the defaults: positive favours the "
        "defaults\n"
    )
    print("| variant | " + " | ".join(table_of) + " | all tasks, mean and 95 % interval |")
    print("|---" * (len(table_of) + 2) + "|")
    for variant, values in scores.items():
        if variant == "defaults":
            cells = [f"({v:.2f})" for v in values.mean(1)]
            print(f"| defaults (log10 loss itself) | {' | '.join(cells)} | ({values.mean():.2f}) |")
            continue
        effect = values - scores["defaults"]
        cells = [f"{v:+.2f}" for v in effect.mean(1)]
        print(
            f"| {variant} | {' | '.join(cells)} | {interval(list(effect.flatten()))} |", flush=True
        )
    q_table(args.steps, args.seeds, table_of)


if __name__ == "__main__":
    main()
