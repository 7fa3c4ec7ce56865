"""What the features of an observation tell of the learning rate that a task asks for.

From the sweeps that `train_agent.py --agent sweep` remembers: networks of the same size learn to
name a rate from some of the features, five-fold over tasks, and are judged on tasks that they have
not seen. The figure is the regret in nats against the best rate of each sweep, mean over tasks,
with a bootstrap interval over tasks; beside it the best single rate for all tasks, chosen on the
tasks learned from.

    PYTHONPATH=. python experiments/what_features_tell.py runs/sweep
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from agents.arguments import parse
from agents.sweep import RateNetwork, SweepConfig, Sweeps, learn, others, regret_of
from lr_gym.benchmark.metrics import mean_interval

FOLDS, STEPS = 5, 500
# regret, in nats, below which every rate of a sweep would have done: such tasks ask for nothing
DECIDED = 0.02


def fit(sweeps: Sweeps, learned: Tensor, columns: list[int], config: SweepConfig) -> RateNetwork:
    """A network of the agent's size, learned from the rows (n,) bool, that sees those columns only."""
    network = RateNetwork((len(columns), *config.hidden), config.logarithms, seed=0)
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    seen = Sweeps(sweeps.observation[learned][:, columns], sweeps.sweep[learned], sweeps.curves)
    rates = [config.learning_rate * (1.0 - step / STEPS) for step in range(STEPS)]
    learn(network, optimizer, seen, config.logarithms, rates, torch.Generator().manual_seed(0))
    return network


@torch.no_grad()
def regrets(
    sweeps: Sweeps, network: RateNetwork, judged: Tensor, columns: list[int], config: SweepConfig
) -> Tensor:
    """Mean regret of each task with rows among the judged ones (n,) bool."""
    index = sweeps.sweep[judged].long()
    regret = regret_of(
        network(sweeps.observation[judged][:, columns].float()),
        sweeps.curves[index],
        config.logarithms,
    )
    sums, counts = (
        torch.zeros(len(sweeps.curves)),
        torch.bincount(index, minlength=len(sweeps.curves)),
    )
    return (sums.index_add_(0, index, regret) / counts)[counts > 0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training", type=Path, help="output folder of the training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sweeps = Sweeps(
        *torch.load(args.training / "checkpoint.pt", weights_only=True)["learner"]["seen"]
    )
    began = json.loads((args.training / "args.json").read_text())
    preset = parse(["--agent", "sweep", "--preset", began["preset"], "--output-dir", "unused"])
    config = preset.sweep
    features = [(preset.features or ())[index] for index in others(preset.features or ())]
    decided = sweeps.curves.max(1).values > DECIDED
    fold = torch.where(decided, torch.arange(len(decided)) % FOLDS, -1)
    of_row = fold[sweeps.sweep.long()]
    sets = {"all": features} | {
        f"all but {name}": [other for other in features if other != name] for name in features
    }
    print(
        f"{int(decided.sum())} tasks of {len(decided)}, {len(of_row)} rows\n\n| seen | regret "
        "|\n|---|---|"
    )
    single = []
    for k in range(FOLDS):
        best = sweeps.curves[decided & (fold != k)].mean(0).argmin()
        single += sweeps.curves[fold == k][:, best].tolist()
    rows = {"nothing: one rate for all": single}
    for name, seen in sets.items():
        columns = [features.index(feature) for feature in seen]
        rows[name] = []
        for k in range(FOLDS):
            network = fit(sweeps, (of_row != k) & (of_row >= 0), columns, config)
            rows[name] += regrets(sweeps, network, of_row == k, columns, config).tolist()
    for name, values in rows.items():
        found = mean_interval(values)
        print(f"| {name} | {found.mean:.4f} ({found.low:.4f} to {found.high:.4f}) |")


if __name__ == "__main__":
    main()
