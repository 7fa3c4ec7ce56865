"""A policy with weight decay over a training that memorises.

Mnist1d-mlp, some 640 passes over 3,000 examples.

From 1e-3, untuned, with the guard; losses are of the selection split. Under Muon 0.1 is what
PolicyOptimizer takes there by default. `experiments/beyond_training.py` has Adam, tuned WSD and the
policy without decay.

    PYTHONPATH=. python experiments/policy_with_decay.py --decays 0 0.01 0.1
"""

from __future__ import annotations

import argparse

import torch

from experiments.beyond_training import variant
from lr_gym.benchmark.contestants import POLICY_LR
from lr_gym.benchmark.run import evaluation_seed
from lr_gym.optim import PolicyOptimizer, muon_groups
from lr_gym.policies.policy import load_policy
from lr_gym.tasks.initial import plain_model
from lr_gym.training.inner_loop import minibatch


def final_loss(policy: str, decay: float, horizon: int, index: int) -> float:
    """Selection loss at the end of a training whose seed is that of evaluations."""
    task, seed = variant(100, horizon), evaluation_seed(index)
    data, model = task.data(), plain_model(task, seed)
    examples, muon = len(data.gradient.inputs), load_policy(policy).spec.base == "muon"
    optimizer = PolicyOptimizer(
        muon_groups(model) if muon else model.named_parameters(),
        policy,
        POLICY_LR,
        horizon,
        weight_decay=decay,
        steps_per_epoch=examples / task.batch_size,
    )
    for rows in minibatch(seed.expand(horizon), torch.arange(horizon), task.batch_size, examples):
        loss = task.loss(model(data.gradient.inputs[rows]), data.gradient.targets[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss.detach())
        optimizer.step()
    with torch.no_grad():
        return float(task.loss(model(data.selection.inputs), data.selection.targets).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="builtin:muon")
    parser.add_argument("--decays", type=float, nargs="+", default=[0.0, 0.01, 0.1])
    parser.add_argument("--horizon", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| decay | seed | selection loss |\n|---|---|---|")
    for decay in args.decays:
        for seed in range(args.seeds):
            loss = final_loss(args.policy, decay, args.horizon, seed)
            print(f"| {decay:g} | {seed} | {loss:.3f} |", flush=True)


if __name__ == "__main__":
    main()
