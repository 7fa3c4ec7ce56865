"""Gradient Agreement on mnist1d, against Adam, each with its own tuned learning rate.

Each seed has its own data set, initial weights and data order, the same for all methods. A method
tunes its learning rate in 20 Optuna trials of 10 epochs (log-uniform in 1e-5..1e-1, lowest
validation loss), then trains for 50 epochs from the same initial weights. The report is about the
test split.

    python -m experiments.gradient_agreement --seeds 10
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optuna
import torch
from torch.optim import Adam, Optimizer

from experiments.mnist1d_training import interval, load, loss_and_accuracy, mlp, train
from lr_gym.optim import GradientAgreementOptimizer

METHODS: dict[str, Callable[[Any, float], Optimizer]] = {
    "Adam": lambda params, lr: Adam(params, lr=lr),
    "agreement std": lambda params, lr: GradientAgreementOptimizer(Adam(params, lr=lr), "std"),
    "agreement std/rms": lambda params, lr: GradientAgreementOptimizer(
        Adam(params, lr=lr), "std_over_rms"
    ),
    "agreement snr": lambda params, lr: GradientAgreementOptimizer(Adam(params, lr=lr), "snr"),
}


def run(method: str, lr: float, data: Any, seed: int, epochs: int) -> dict[str, list[float]]:
    """Validation and test loss and test accuracy after each epoch."""
    model = mlp(seed)
    optimizer = METHODS[method](model.parameters(), lr)
    curves: dict[str, list[float]] = {"validation": [], "test": [], "accuracy": []}

    def record(epoch: int) -> None:
        curves["validation"].append(loss_and_accuracy(model, data[1])[0])
        loss, accuracy = loss_and_accuracy(model, data[2])
        curves["test"].append(loss)
        curves["accuracy"].append(accuracy)

    train(
        model,
        lambda loss, epoch: optimizer.step(),
        data[0],
        epochs=epochs,
        seed=seed,
        after_epoch=record,
    )
    return curves


def tune(method: str, data: Any, seed: int, trials: int) -> float:
    """The learning rate with the lowest validation loss."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        value = min(run(method, lr, data, seed, 10)["validation"])
        return value if np.isfinite(value) else 1e9

    study.optimize(objective, n_trials=trials)
    return float(study.best_params["lr"])


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the test loss of each method over the epochs, with its 95 % interval."""
    mpl.use("Agg")
    _, axes = plt.subplots(figsize=(7, 4))
    for method, rows in results.items():
        curves = np.array([row["test"] for row in rows])
        mean, error = curves.mean(0), 1.96 * curves.std(0, ddof=1) / len(curves) ** 0.5
        epochs = np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, mean, label=method)
        axes.fill_between(epochs, mean - error, mean + error, alpha=0.2)
    axes.set(
        xlabel="epoch",
        ylabel="test loss (nats)",
        title="mnist1d, lr tuned on validation, mean and 95 % interval",
    )
    axes.legend()
    plt.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/gradient_agreement"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for seed in range(args.seeds):
        data = load(seed=1000 + seed)
        for method, rows in results.items():
            lr = tune(method, data, seed, args.trials)
            rows.append({"lr": lr, **run(method, lr, data, seed, 50)})
        print(
            f"seed {seed}", {m: round(rows[-1]["lr"], 5) for m, rows in results.items()}, flush=True
        )
        (args.out / "results.json").write_text(json.dumps(results))
    print(
        "| method | lr, geometric mean | test loss, best-validation epoch | minus Adam | accuracy "
        "there |"
    )
    print("|---|---|---|---|---|")

    def chosen(method: str, what: str) -> list[float]:
        return [float(row[what][int(np.argmin(row["validation"]))]) for row in results[method]]

    for method, rows in results.items():
        difference = [
            a - b for a, b in zip(chosen(method, "test"), chosen("Adam", "test"), strict=True)
        ]
        lr = float(np.exp(np.mean([np.log(row["lr"]) for row in rows])))
        against = "" if method == "Adam" else interval(difference)
        loss, accuracy = (interval(chosen(method, what)) for what in ("test", "accuracy"))
        print(f"| {method} | {lr:.4f} | {loss} | {against} | {accuracy} |")
    for method, rows in results.items():
        print(f"{method}: test loss after epoch 50 {interval([row['test'][-1] for row in rows])}")
    plot(results, args.out / "comparison.png")


if __name__ == "__main__":
    main()
