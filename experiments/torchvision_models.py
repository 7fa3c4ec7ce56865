"""The guard of a deployed policy on 20 classification models of torchvision.

They have kinds of layers that no policy has learned from, and up to 130 million parameters. Each
model starts from random weights and makes the first ten steps of a training of `--total-steps` on
two random images: none may diverge, and the optimizer must warn once where its guard acts. A policy
that was saved without ranges gets those of `--tasks`.

    python -m experiments.torchvision_models --policy builtin:default --tasks mnist1d-mlp
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import nn
from torchvision import models

from lr_gym.analysis.measure_ranges import RUNS, observed_range
from lr_gym.envs.rollout import controlled_env
from lr_gym.envs.vector_env import INITIAL_LR
from lr_gym.optim import PolicyOptimizer, muon_groups
from lr_gym.policies.policy import SavedPolicy, load_policy

# Name -> side of its images, and the options with which it is built.
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}),
    "vgg11_bn": (32, {}),
    "resnet18": (64, {}),
    "resnext50_32x4d": (64, {}),
    "densenet121": (64, {}),
    "squeezenet1_1": (64, {}),
    "googlenet": (64, {"aux_logits": False, "init_weights": False}),
    "inception_v3": (96, {"aux_logits": False, "init_weights": False}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "efficientnet_b0": (64, {}),
    "efficientnet_v2_s": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "mnasnet0_5": (64, {}),
    "regnet_y_400mf": (64, {}),
    "convnext_tiny": (64, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "swin_t": (64, {}),
    "swin_v2_t": (64, {}),
    "maxvit_t": (224, {}),
}
CLASSES = 10
BATCH = 2
STEPS = 10


def train(
    model: nn.Module,
    side: int,
    policy: SavedPolicy,
    lr: float,
    total_steps: int,
    generator: torch.Generator,
) -> tuple[list[float], PolicyOptimizer, int]:
    """Train. Returns losses before each step and at the end, the optimizer, and its warnings."""
    images = torch.randn(BATCH, 3, side, side, generator=generator)
    classes = torch.randint(CLASSES, (BATCH,), generator=generator)
    optimizer = PolicyOptimizer(muon_groups(model), policy, lr=lr, total_steps=total_steps)
    losses = []

    def loss_of() -> torch.Tensor:
        return nn.functional.cross_entropy(model(images), classes)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            loss = loss_of()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.observe(loss)
            optimizer.step()
            losses.append(loss.item())
    with torch.no_grad():
        losses.append(loss_of().item())
    return (
        losses,
        optimizer,
        sum(str(warning.message).startswith("PolicyOptimizer") for warning in caught),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="builtin:default")
    parser.add_argument(
        "--tasks", nargs="+", default=["mnist1d-mlp"], help="tasks that the policy has learned on"
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--total-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    policy = load_policy(args.policy)
    if policy.ranges is None:
        envs = (controlled_env(policy.spec, task, RUNS, INITIAL_LR) for task in args.tasks)
        policy = dataclasses.replace(policy, ranges=observed_range(policy, envs))
    print(
        "| model | layers | million parameters | loss before | after 10 steps | finite "
        "| guard acted | lowest trust | mean trust | mean rate over the user's |"
    )
    print("|---" * 10 + "|")
    for name in args.models:
        side, options = MODELS[name]
        torch.manual_seed(args.seed)
        model = getattr(models, name)(weights=None, num_classes=CLASSES, **options)
        generator = torch.Generator().manual_seed(args.seed)
        losses, optimizer, warned = train(model, side, policy, args.lr, args.total_steps, generator)
        finite = all(map(math.isfinite, losses)) and all(
            bool(p.isfinite().all()) for p in model.parameters()
        )
        rates = [value for key, value in optimizer.metrics().items() if key.startswith("lr/")]
        trust = [value for key, value in optimizer.metrics().items() if key.startswith("trust/")]
        acted = ["no", "yes, warned once"][warned] if warned < 2 else f"warned {warned} times"
        row = [
            name,
            len(trust),
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
            f"{losses[0]:.3f}",
            f"{losses[-1]:.3f}",
            "yes" if finite else "NO",
            acted,
            f"{min(trust):.2f}",
            f"{sum(trust) / len(trust):.2f}",
            f"{sum(rates) / len(rates) / args.lr:.2f}",
        ]
        print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
