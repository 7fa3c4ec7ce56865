"""What PolicyOptimizer costs over torch's AdamW, on large models and small ones: time and memory.

    python -m benchmarks.deployed_cost
    python -m benchmarks.deployed_cost --whole-step --batch-size 16
    python -m benchmarks.deployed_cost --muon --models MiniLM --rounds 2

Each round steps every optimizer, in a new random order, on the same parameters and random
gradients, and ratios are taken within a round. A round is one interval between two decisions, that
is INTERVAL steps; statistics are measured on its first step. The built-in policies run as users get
them, with their guard; the other policies never act. With --whole-step a round is one interval of
whole training steps, forward and backward passes included. Memory is the bytes of the optimizer's
state.
"""

from __future__ import annotations

import argparse
import functools
import gc
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lr_gym.control.spec import ControlSpec
from lr_gym.layers import muon_groups
from lr_gym.optim import PolicyOptimizer
from lr_gym.policies.policy import constant_policy
from lr_gym.tasks import architectures

INTERVAL = 10


def minilm() -> nn.Module:
    """all-MiniLM-L6: 30522 words, width 384, 6 blocks of 12 heads, feed-forward width 1536."""
    layer = nn.TransformerEncoderLayer(
        384, 12, 1536, batch_first=True, activation="gelu", dropout=0.0
    )
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(30522, 384), encoder, nn.Linear(384, 2))


def mlp() -> nn.Module:
    """The model of the task mnist1d-mlp: six small tensors."""
    return architectures.mlp((40, 100, 100, 10))


def transformer() -> nn.Module:
    """The model of the task mnist1d-transformer: 31 small tensors."""
    return architectures.transformer(length=40, patch=4, width=32, heads=4, blocks=2, classes=10)


# Name -> (model, inputs for a number of examples, loss of the outputs).
MODELS: dict[
    str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], Callable[[Tensor], Tensor]]
] = {
    "ResNet-18": (
        torchvision.models.resnet18,
        lambda count: torch.randn(count, 3, 64, 64),
        lambda out: out.square().mean(),
    ),
    "MiniLM": (
        minilm,
        lambda count: torch.randint(30522, (count, 32)),
        lambda out: out.mean(1).square().mean(),
    ),
    "MLP": (mlp, lambda count: torch.randn(count, 40), lambda out: out.square().mean()),
    "transformer": (
        transformer,
        lambda count: torch.randn(count, 40),
        lambda out: out.square().mean(),
    ),
}


def muon_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """PolicyOptimizer with Muon on the hidden matrices and AdamW elsewhere."""
    policy = constant_policy(ControlSpec(base="muon", schedule="constant"), INTERVAL)
    return PolicyOptimizer(muon_groups(model), policy, 1e-9)


def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """The contestants, all on the same parameters."""
    policy = constant_policy(ControlSpec(schedule="constant"), INTERVAL)
    named = list(model.named_parameters())
    params = [param for _, param in named]
    return {
        "AdamW()": torch.optim.AdamW(params, lr=1e-9),
        "AdamW(foreach=True)": torch.optim.AdamW(params, lr=1e-9, foreach=True),
        "AdamW(fused=True)": torch.optim.AdamW(params, lr=1e-9, fused=True),
        "PolicyOptimizer()": PolicyOptimizer(named, policy, 1e-9),
        "PolicyOptimizer(sample=None)": PolicyOptimizer(named, policy, 1e-9, sample=None),
        "PolicyOptimizer(fused=False)": PolicyOptimizer(named, policy, 1e-9, fused=False),
        "PolicyOptimizer('builtin:default')": PolicyOptimizer(
            named, "builtin:default", 1e-9, 50 * INTERVAL
        ),
        "PolicyOptimizer('builtin:anytime')": PolicyOptimizer(
            named, "builtin:anytime", 1e-9, 50 * INTERVAL
        ),
    }


def whole_step(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    """An ordinary training step."""
    optimizer.zero_grad()
    loss().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state, with those of the controller."""
    optimizer.state_dict()  # writes the controller's state
    tensors = (
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def contest(rounds: int, steps: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Processor seconds of INTERVAL calls of each contestant, for every round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for round_ in range(rounds + 1):
        for name in order.sample(list(steps), len(steps)):
            start = time.process_time()
            for _ in range(INTERVAL):
                steps[name]()
            if round_:  # the first round creates the states
                times[name].append(time.process_time() - start)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> str:
    """Median and quartiles of the ratio within rounds."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(times[one], times[other], strict=True)], n=4
    )
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--whole-step", action="store_true")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="pictures, sequences of words, or rows"
    )
    parser.add_argument(
        "--muon", action="store_true", help="time Muon too, whose step takes far longer"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", "PolicyOptimizer: the policy has learned from nothing like")
    print("| model | optimizer | ms | over AdamW foreach | over AdamW fused | state over AdamW's |")
    print("|---|---|---|---|---|---|")
    for name in args.models:
        make, batch, loss_of = MODELS[name]
        model, inputs = make(), batch(args.batch_size)
        contestants = optimizers(model)
        if args.muon:
            contestants["PolicyOptimizer(base='muon')"] = muon_optimizer(model)
        for param in model.parameters():
            param.grad = 1e-3 * torch.randn_like(param)

        loss = functools.partial(
            lambda model, inputs, loss_of: loss_of(model(inputs)), model, inputs, loss_of
        )
        steps: dict[str, Callable[[], Any]] = {
            key: functools.partial(whole_step, optimizer, loss)
            if args.whole_step
            else optimizer.step
            for key, optimizer in contestants.items()
        }
        times = contest(args.rounds, steps)
        reference = state_bytes(contestants["AdamW(foreach=True)"])
        for key, optimizer in contestants.items():
            columns = [ratio(times, key, f"AdamW({kind}=True)") for kind in ("foreach", "fused")]
            milliseconds = 1e3 * statistics.median(times[key]) / INTERVAL
            print(f"| {name} | {key} | {milliseconds:.1f} | {' | '.join(columns)} |", end="")
            print(f" {state_bytes(optimizer) / reference:.5f} |", flush=True)
        del contestants, model
        gc.collect()


if __name__ == "__main__":
    main()
