"""Time of one step of each optimizer over AdamW(foreach=True), on the tensors of ResNet-18.

Each round steps every optimizer once, in a new random order, on the same parameters and gradients,
and ratios are taken within a round. Where other programs share the machine, they disturb the ratio
of the fastest steps least.

    python -m benchmarks.optimizer_cost --rounds 15
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor

from lr_gym.optim import (
    AdaptiveUPGD,
    EnhancedSGD,
    GlobalAdaptiveSGD,
    GradientAgreementOptimizer,
    VarianceGradientScaler,
)

REFERENCE = "AdamW(foreach=True)"
PLAIN = {"entropy_adjustment": False, "gradient_buffer_size": 0}


def steps(params: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """What a round times: a function for each optimizer that makes one step."""
    loss = torch.tensor(1.0)

    def enhanced(**options: Any) -> Callable[[], Any]:
        optimizer = EnhancedSGD(params, lr=1e-6, **options)
        return lambda: optimizer.step(closure=lambda: loss)

    def agreement(base: torch.optim.Optimizer, score: str) -> Callable[[], Any]:
        return GradientAgreementOptimizer(base, score).step

    scaler = VarianceGradientScaler(params, warmup_steps=0, alpha=0.0)
    return {
        REFERENCE: torch.optim.AdamW(params, lr=1e-6, foreach=True).step,
        "AdamW(foreach=False)": torch.optim.AdamW(params, lr=1e-6, foreach=False).step,
        "AdamW(fused=True)": torch.optim.AdamW(params, lr=1e-6, fused=True).step,
        "SGD(momentum=0.9)": torch.optim.SGD(params, lr=1e-6, momentum=0.9, foreach=False).step,
        "GradientAgreement(AdamW, std)": agreement(
            torch.optim.AdamW(params, lr=1e-6, foreach=True), "std"
        ),
        "GradientAgreement(AdamW, std, restore_grad=True)": GradientAgreementOptimizer(
            torch.optim.AdamW(params, lr=1e-6, foreach=True), restore_grad=True
        ).step,
        "GradientAgreement(AdamW, std_over_rms)": agreement(
            torch.optim.AdamW(params, lr=1e-6, foreach=True), "std_over_rms"
        ),
        "GradientAgreement(AdamW, snr)": agreement(
            torch.optim.AdamW(params, lr=1e-6, foreach=True), "snr"
        ),
        "AdaptiveUPGD(sigma=0)": AdaptiveUPGD(params, lr=1e-6, sigma=0.0).step,
        "AdaptiveUPGD(sigma=0, foreach=True)": AdaptiveUPGD(
            params, lr=1e-6, sigma=0.0, foreach=True
        ).step,
        "AdaptiveUPGD()": AdaptiveUPGD(params, lr=1e-6).step,
        "AdaptiveUPGD(adaptive_noise=True)": AdaptiveUPGD(
            params, lr=1e-6, adaptive_noise=True
        ).step,
        "VarianceGradientScaler": scaler.step,
        "GlobalAdaptiveSGD()": GlobalAdaptiveSGD(params, lr=1e-6).step,
        "GlobalAdaptiveSGD(layerwise=True)": GlobalAdaptiveSGD(
            params, lr=1e-6, layerwise=True
        ).step,
        "EnhancedSGD(noise and entropy off)": enhanced(**PLAIN),
        "EnhancedSGD()": enhanced(),
        "EnhancedSGD(noise_scale=0.01)": enhanced(noise_scale=0.01),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    params = [
        p.detach().to(args.device).requires_grad_()
        for p in torchvision.models.resnet18().parameters()
    ]
    for p in params:
        p.grad = 1e-3 * torch.randn_like(p)
    table = steps(params)
    times: dict[str, list[float]] = {name: [] for name in table}
    order = random.Random(0)
    for round_ in range(args.rounds + 2):
        for name in order.sample(list(table), len(table)):
            if args.device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            table[name]()
            if args.device != "cpu":
                torch.cuda.synchronize()
            if round_ >= 2:  # the first rounds create the states
                times[name].append(1e3 * (time.perf_counter() - start))
    elements = sum(p.numel() for p in params)
    print(f"{len(params)} tensors, {elements:,} elements, {args.device}, torch {torch.__version__}")
    print(
        "| optimizer | ms/step | over AdamW | quartiles | fastest over fastest "
        "|\n|---|---|---|---|---|"
    )
    for name, values in times.items():
        ratios = [v / r for v, r in zip(values, times[REFERENCE], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        fastest = min(values) / min(times[REFERENCE])
        print(
            f"| {name} | {statistics.median(values):.1f} | {middle:.2f} | {low:.2f}-{high:.2f} | "
            f"{fastest:.2f} |"
        )


if __name__ == "__main__":
    main()
