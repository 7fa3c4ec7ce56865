"""GARO with frozen random weights against SGD at lr 0.01, at step 0 and over trainings on mnist1d.

All methods share the data, the initial weights and the data order of a seed. GARO's random cell is
drawn from the same seed.

    python -m experiments.garo_frozen --seeds 10
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from experiments.mnist1d_training import interval, load, loss_and_accuracy, mlp, train
from lr_gym.optim import GlobalAdaptiveSGD

METHODS: dict[str, Callable[[Any, int], Optimizer]] = {
    "SGD(lr=0.01)": lambda params, seed: SGD(params, lr=0.01),
    "GARO, global, frozen": lambda params, seed: GlobalAdaptiveSGD(params, seed=seed),
    "GARO, layer-wise, frozen": lambda params, seed: GlobalAdaptiveSGD(
        params, seed=seed, layerwise=True
    ),
    "GARO, lr=0.1, frozen": lambda params, seed: GlobalAdaptiveSGD(params, lr=0.1, seed=seed),
    "SGD(lr=0.1)": lambda params, seed: SGD(params, lr=0.1),
    "Adam(lr=0.001)": lambda params, seed: Adam(params, lr=1e-3),
    "AdamW(lr=0.001)": lambda params, seed: AdamW(params, lr=1e-3),
}


def first_step_difference(seed: int, data: Any) -> float:
    """Largest difference between a step of GARO and one of SGD(lr=0.01), over the largest step."""
    models: list[nn.Module] = [mlp(seed), mlp(seed)]
    before = torch.cat([p.detach().flatten().clone() for p in models[0].parameters()])
    for model, name in zip(models, ("SGD(lr=0.01)", "GARO, global, frozen"), strict=True):
        optimizer = METHODS[name](model.parameters(), seed)
        nn.functional.cross_entropy(model(data.x[:128]), data.y[:128]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    sgd, garo = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in models)
    return float((garo - sgd).abs().max() / (sgd - before).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in METHODS}
    emitted: list[dict[str, float]] = []
    first = []
    for seed in range(args.seeds):
        data = load(seed=1000 + seed)
        first.append(first_step_difference(seed, data[0]))
        for name, make in METHODS.items():
            model = mlp(seed)
            optimizer = make(model.parameters(), seed)
            train(model, lambda *_, o=optimizer: o.step(), data[0], epochs=args.epochs, seed=seed)
            results[name].append(
                (loss_and_accuracy(model, data[0])[0], *loss_and_accuracy(model, data[2]))
            )
            if name == "GARO, global, frozen" and isinstance(optimizer, GlobalAdaptiveSGD):
                emitted.append(optimizer.metrics())
    print(
        f"after step 0, largest difference to SGD over largest step: {max(first):.1e} "
        f"({args.seeds} seeds)"
    )
    for key in ("lr", "momentum", "weight_decay"):
        values = [line[key] for line in emitted]
        print(
            f"{key} emitted at the last step: {min(values):.3g} to {max(values):.3g} over the seeds"
        )
    print(
        f"| method | train loss after {args.epochs} epochs | test loss | minus SGD(lr=0.01) | test "
        "accuracy |"
    )
    print("|---|---|---|---|---|")
    base = results["SGD(lr=0.01)"]
    for name, rows in results.items():
        columns = [list(column) for column in zip(*rows, strict=True)]
        difference = list(np.subtract(columns[1], [row[1] for row in base]))
        against = "" if rows is base else interval(difference)
        train_loss, test_loss, accuracy = map(interval, columns)
        print(f"| {name} | {train_loss} | {test_loss} | {against} | {accuracy} |")


if __name__ == "__main__":
    main()
