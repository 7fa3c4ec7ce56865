"""Noise-to-signal ratio of AdaptiveUPGD over a training, by kind of noise and size of layer.

With and without VGS. The noise of each step is drawn again from a copy of the optimizer's
generator, so the ratios are measured on the noise that was really added.

    python -m experiments.noise_to_signal --epochs 30
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.mnist1d_training import load, mlp, train
from lr_gym.optim import AdaptiveUPGD, VarianceGradientScaler

VARIANTS: dict[str, dict[str, Any]] = {
    "fixed": {"sigma": 0.005},
    "adaptive, rms": {"sigma": 0.05, "adaptive_noise": True},
    "adaptive, norm (source)": {"sigma": 0.05, "adaptive_noise": True, "noise_scale": "norm"},
    "adaptive, rms, global": {"sigma": 0.05, "adaptive_noise": True, "noise_norm": "global"},
    "adaptive, rms, noise_beta 0.99": {"sigma": 0.05, "adaptive_noise": True, "noise_beta": 0.99},
    "adaptive, rms, noise_beta 0.999": {"sigma": 0.05, "adaptive_noise": True, "noise_beta": 0.999},
}


class Recorder:
    """Notes the ratios of each parameter tensor at each step."""

    def __init__(self, optimizer: AdaptiveUPGD, scaler: VarianceGradientScaler | None) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.params: list[Tensor] = optimizer.param_groups[0]["params"]
        self.std: list[list[float]] = []  # noise std over gradient rms
        self.norm: list[list[float]] = []  # ||noise|| / ||gradient||
        self.update: list[float] = []  # expected noise over Adam direction
        self.factor: list[float] = []
        self.size: list[float] = []  # norm of the whole gradient, before VGS

    def step(self, *_: Any) -> None:
        """Scale the gradients, step, and note the ratios of this step's noise."""
        grads = [p.grad for p in self.params if p.grad is not None]
        self.size.append(float(torch.stack([g.norm() for g in grads]).norm()))
        if self.scaler is not None:
            self.factor.append(float(self.scaler.step()))
        draws = copy.deepcopy(self.optimizer.noise).normal(grads)
        self.optimizer.step()
        stds = [float(self.optimizer._stds[p]) for p in self.params]
        self.std.append(
            [s * g.numel() ** 0.5 / float(g.norm()) for s, g in zip(stds, grads, strict=True)]
        )
        self.norm.append(
            [float(s * d.norm() / g.norm()) for s, d, g in zip(stds, draws, grads, strict=True)]
        )
        self.update.append(self.optimizer.metrics()["noise/update"])


def record(variant: str, alpha: float | None, epochs: int, seed: int, data: Any) -> Recorder:
    """Train once with one kind of noise; `alpha` None leaves the VarianceGradientScaler out."""
    model = mlp(seed)
    optimizer = AdaptiveUPGD(model.parameters(), seed=seed, **VARIANTS[variant])
    scaler = (
        None
        if alpha is None
        else VarianceGradientScaler(model.parameters(), alpha=alpha, warmup_steps=100)
    )
    recorder = Recorder(optimizer, scaler)
    train(model, recorder.step, data, epochs=epochs, seed=seed)
    return recorder


def per_layer(epochs: int, seed: int, data: Any) -> None:
    """Print how the ratio of noise to gradient varies over a training, for each tensor."""
    print(
        "\nRange over the run of noise std / gradient rms in percent, by elements of the tensor:\n"
    )
    for i, (variant, options) in enumerate(VARIANTS.items()):
        for alpha in (None, 0.3):
            r = record(variant, alpha, epochs, seed, data)
            std, counts = 100 * np.array(r.std), [p.numel() for p in r.params]
            if i == 0 and alpha is None:
                print(
                    "| noise | VGS | "
                    + " | ".join(f"{n:,}" for n in counts)
                    + " | noise / update, median |"
                )
                print("|---" * (len(counts) + 3) + "|")
            cells = [f"{lo:.3g}-{hi:.3g}" for lo, hi in zip(std.min(0), std.max(0), strict=True)]
            print(
                f"| {variant} | {'off' if alpha is None else 'on'} | " + " | ".join(cells), end=""
            )
            print(f" | {100 * np.median(r.update):.2g} % |")
            if variant == "adaptive, rms":
                worst = abs(std / (100 * options["sigma"]) - 1).max()
                bound = 4 / np.sqrt(2 * np.array(counts))
                inside = (abs(np.array(r.norm) / options["sigma"] - 1) <= bound)[
                    :, np.array(counts) >= 100
                ]
                print(f"    largest deviation of the std from sigma {100 * worst:.4f} %; ", end="")
                print(
                    f"realised norm within 4/sqrt(2n) in {100 * inside.mean():.2f} % of "
                    f"{inside.size} cases"
                )


def amplification(epochs: int, seeds: int, data: Any) -> None:
    """Print how much a VarianceGradientScaler amplifies fixed noise relative to the gradient."""
    print(
        "\nFixed noise under VGS, after its warm-up: factor and amplification 1/factor, mean "
        "[range]:\n"
    )
    print("| alpha | factor | amplification |\n|---|---|---|")
    for alpha in (0.1, 0.2, 0.3, 0.5):
        factors = np.array(
            [record("fixed", alpha, epochs, seed, data).factor[100:] for seed in range(seeds)]
        )
        gain = 1 / factors
        print(
            f"| {alpha} | {factors.mean():.3f} [{factors.min():.3f}, {factors.max():.3f}] ", end=""
        )
        print(f"| {gain.mean():.2f} [{gain.min():.2f}, {gain.max():.2f}] |")


def decay() -> None:
    """Print whether each kind of noise shrinks together with a shrinking gradient."""
    print(
        "\nQuadratic whose gradient is made to shrink 1000 times over 300 steps, n = 1000, sigma "
        "0.05:\n"
    )
    print(
        "| noise | std / rms, first step | last step | largest relative deviation "
        "|\n|---|---|---|---|"
    )
    for variant in (
        "fixed",
        "adaptive, rms",
        "adaptive, rms, noise_beta 0.99",
        "adaptive, rms, noise_beta 0.999",
    ):
        param = torch.zeros(1000, requires_grad=True)
        optimizer = AdaptiveUPGD([param], **VARIANTS[variant])
        direction = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        recorder = Recorder(optimizer, None)
        for step in range(300):
            param.grad = direction * 1000 ** (-step / 299)
            recorder.step()
        std = 100 * np.array(recorder.std)[:, 0]
        print(
            f"| {variant} | {std[0]:.3g} % | {std[-1]:.3g} % | {abs(std / std[0] - 1).max():.3g} |"
        )


def start_up() -> None:
    """Print how the moving average of a gradient norm starts, here and in the source."""
    print("\nEMA of a constant gradient norm 0.01, beta 0.999, over its true value:\n")
    print(
        "| step | started at 1 and divided by 1 - beta^t (source) | started at 0 (ours) "
        "|\n|---|---|---|"
    )
    source, ours = 1.0, 0.0
    for t in range(1, 10_001):
        source, ours = 0.999 * source + 0.001 * 0.01, 0.999 * ours + 0.001 * 0.01
        if t in (1, 10, 100, 1000, 10_000):
            correction = 1 - 0.999**t
            print(f"| {t} | {source / correction / 0.01:,.2f} | {ours / correction / 0.01:.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load()[0]
    per_layer(args.epochs, 0, data)
    amplification(args.epochs, args.seeds, data)
    decay()
    start_up()


if __name__ == "__main__":
    main()
