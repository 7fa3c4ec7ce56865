"""A policy fitted anew to the sweeps that a training of `--agent sweep --suite random` remembers.

From some sources of data only and seeing some features only, which costs seconds where new sweeps
cost an hour. With the score of `validation_score.py`, guard and certificate as `train_agent.py`
makes them, which takes ten minutes more.

    PYTHONPATH=. python experiments/fit_again.py runs/sweep runs/again --sources mnist1d digits
    tables --shift 0.35
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from validation_score import alone, losses

import train_agent
from agents.arguments import parse
from agents.build import build_learner
from agents.random_suite import random_batch
from agents.sweep import RateNetwork, Sweeps, learn, others, policy_of
from lr_gym.benchmark.scores import relative_loss
from lr_gym.envs.vector_env import INITIAL_LR
from lr_gym.policies.policy import POLICY_FILE, save_policy
from lr_gym.tasks.random_tasks import RANGES

STEPS = 1500  # of the network
RUNS = 24  # trainings of each task by which the policy is judged


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training", type=Path, help="output folder of the training")
    parser.add_argument("output_dir", type=Path, help="for the policy; must not exist")
    parser.add_argument(
        "--sources", nargs="+", choices=sorted(set(RANGES["source"])), default=set(RANGES["source"])
    )
    parser.add_argument(
        "--features", nargs="+", help="that it sees; all of the training's by default"
    )
    parser.add_argument(
        "--shift", type=float, default=0.0, help="nats above what the network names"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the network and of the rows it learns from"
    )
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True)
    torch.set_num_threads(1)
    began = json.loads((args.training / "args.json").read_text())
    of = parse(
        ["--agent", "sweep", "--preset", began["preset"], "--output-dir", str(args.output_dir)]
    )
    of = dataclasses.replace(
        of,
        **{
            key: began[key] for key in ("seed", "slots", "decisions", "horizon", "features", "base")
        },
    )
    checkpoint = torch.load(args.training / "checkpoint.pt", weights_only=True)
    sweeps = Sweeps(*checkpoint["learner"]["seen"])
    updates = checkpoint["progress"]["updates"]
    batches = [
        random_batch(of.seed, update, of.slots, of.decisions, of.horizon, of.base)
        for update in range(updates)
    ]
    sources = [task.source in args.sources for batch in batches for task in batch]
    sweeps = sweeps.only(torch.tensor(sources))
    features = tuple(args.features or of.features or ())
    recorded, seen = (
        [names[index] for index in others(names)] for names in (of.features or (), features)
    )
    columns = [recorded.index(name) for name in seen]
    sweeps = sweeps._replace(observation=sweeps.observation[:, columns])

    config = of.sweep
    network = RateNetwork(
        (len(columns), *(width - 1 for width in config.hidden)), config.logarithms, args.seed
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    rates = [config.learning_rate * (1.0 - step / STEPS) for step in range(STEPS)]
    learn(
        network,
        optimizer,
        sweeps,
        config.logarithms,
        rates,
        torch.Generator().manual_seed(args.seed),
    )

    of = dataclasses.replace(of, features=features, workers=1)
    blank = build_learner(of)[0].policy({})
    policy = policy_of(network, blank.spec, blank.interval, args.shift, {})
    score = round(relative_loss(losses(policy, INITIAL_LR, RUNS), alone(RUNS)), 3)
    about = {**train_agent.about(of, updates, score), "sources": sorted(args.sources)}
    file = args.output_dir / POLICY_FILE
    save_policy(dataclasses.replace(policy, about=about), file)
    print(
        f"{len(sweeps.curves)} tasks, {len(sweeps.sweep)} rows, score {score}: {file}", flush=True
    )
    train_agent.remember_range(file, of)
    train_agent.look_at(file, of)


if __name__ == "__main__":
    main()
