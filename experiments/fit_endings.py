r"""Learn when to end a training from trials that were played before, and compare ways to decide.

Trials cost nearly all of the time of the agent `endings`, and networks seconds. So trials can be
kept, put together, and networks be fitted anew. The table has the mean regret in nats of ways to
decide, 0 being the best ending of each training in hindsight, and the mean share of the steps. Each
network is judged on tasks that it has not learned from (cross-validation over tasks). The best
patience of the hand rule and the best one moment are chosen on the same tasks, so their rows are
optimistic. The network that sees no loss can be no more than a schedule. The last column is the
regret minus that of the last row, paired by task; intervals are over tasks.

TRIALS are output folders of `train_agent.py --agent endings`, or files that --save has written. A
file that is named twice counts twice; --compare refuses that. The policy has the guard of the
policy that sets the rates, and no certificate: `python -m lr_gym.analysis.certificate` makes one.

    python -m experiments.fit_endings docs/results/endings/*.safetensors --compare
    python -m experiments.fit_endings docs/results/endings/*.safetensors \
      --init builtin:default --output held_out.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor

from agents.endings.member import MEMBER_SEED, Member, mean_logit
from agents.endings.policy import joined_policy
from agents.endings.stopping import regret_when_ended, stopping_time
from agents.endings.trials import EndingConfig, Trials
from agents.regression import falling_rates
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import MLPPolicy, load_policy, save_policy

LEVELS = 127  # features lie in [-1, 1]
FOLDS = 4
STEPS = 1000  # of each network
FIRST = 5  # decisions that the hand rule waits for, one more than PatienceRule does
PATIENCES = (2, 4, 6, 8, 12, 16)
INTERVAL = 10  # inner steps between two decisions where the length of a training is not known
MONITOR = "monitor"
# name in the table -> beginnings of the names of the features that the network sees
SEEN: dict[str, tuple[str, ...]] = {
    "network, no loss": ("progress", "remaining", "horizon", "passes"),
    "network, held-out loss": (MONITOR,),
    "network, and training loss": (MONITOR, "loss"),
    "network, and progress": (MONITOR, "loss", "progress", "remaining"),
    "network, all": ("",),
}


def read_trials(path: Path) -> tuple[Trials, dict[str, Any]]:
    """Trials, and the spec under which they were played, as JSON values."""
    if path.is_dir():
        state = torch.load(path / "checkpoint.pt", weights_only=True)["learner"]
        return Trials(*state["seen"]), json.loads((path / "args.json").read_text())["control"]
    with safe_open(path, framework="pt") as file:
        spec = json.loads(file.metadata()["spec"])
        stored = Trials(*(file.get_tensor(field) for field in Trials._fields))
    return stored._replace(
        observation=(stored.observation.float() / LEVELS).half(),
        loss=stored.loss.float(),
        steps=stored.steps.float(),
    ), spec


def write_trials(trials: Trials, spec: ControlSpec, path: Path) -> None:
    """Write trials in few bytes: features in steps of 1 / LEVELS, losses and shares in 16 bits."""
    stored = trials._replace(
        observation=(trials.observation.float() * LEVELS).round().to(torch.int8),
        loss=trials.loss.half(),
        steps=trials.steps.half(),
    )
    save_file(dict(stored._asdict()), path, {"spec": json.dumps(spec.to_json())})


def joined(paths: Sequence[Path]) -> tuple[Trials, ControlSpec]:
    """All trials together, and their spec."""
    found = [read_trials(path) for path in paths]
    specs = [ControlSpec.from_json(spec) for _, spec in found]
    if len(kinds := {(spec.features, spec.decisions, spec.schedule) for spec in specs}) > 1:
        raise ValueError(f"the trials differ in features, decisions or schedule: {sorted(kinds)}")
    return functools.reduce(Trials.joined, (trials for trials, _ in found)), specs[0]


def fitted(trials: Trials, config: EndingConfig, steps: int, seed: int) -> list[Member]:
    """Networks that have learned from all trials."""
    rates = falling_rates(config.learning_rate, steps, 0, 1)
    features = trials.observation.shape[-1]
    members = [
        Member(features, config, seed + MEMBER_SEED * number) for number in range(config.members)
    ]
    for member in members:
        member.learn(trials, rates)
    return members


def unseen_logit(trials: Trials, config: EndingConfig, steps: int) -> Tensor:
    """Log odds (n, D) of networks that have not learned from the task of each training."""
    logit = torch.zeros(trials.known.shape)
    for fold in range(FOLDS):
        own = trials.task % FOLDS == fold
        members = fitted(trials.rows(~own), config, steps, fold)
        logit[own] = mean_logit(members, trials.observation[own])
    return logit


def rule_logit(trials: Trials, features: Sequence[str], patience: int) -> tuple[Tensor, Tensor]:
    """Log odds of the hand rule without a least improvement, and where it may act."""
    column = trials.observation[..., features.index("monitor_stall")].float()
    stall = (10.0 ** (2.0 * column) - 1.0).round()  # decisions since the loss was best
    enough = torch.arange(stall.shape[1]) >= FIRST
    return torch.where(stall >= patience, 1.0, -1.0), trials.known & enough


def compare(trials: Trials, spec: ControlSpec, config: EndingConfig, steps: int) -> str:
    """The table, in Markdown."""
    regret = trials.regret(config.price, config.worst)
    rows = {"never ended": (regret[:, -1], trials.steps[:, -1])}
    best = int(regret.mean(0)[FIRST:].argmin()) + FIRST
    rows["the same moment in all"] = (regret[:, best], trials.steps[:, best])
    for patience in PATIENCES:
        logit, known = rule_logit(trials, spec.features, patience)
        rows[f"hand rule, patience {patience}"] = _outcome(trials, logit, known, regret)
    for name, beginnings in SEEN.items():
        columns = [i for i, feature in enumerate(spec.features) if feature.startswith(beginnings)]
        shown = trials._replace(observation=trials.observation[..., columns])
        logit = unseen_logit(shown, config, steps) - config.margin
        rows[name] = _outcome(trials, logit, trials.known, regret)
    means = {name: task_means(lost, trials.task) for name, (lost, _) in rows.items()}
    last = next(reversed(means.values()))
    lines = ["| decided by | regret | steps | minus the last row |", "|---|---|---|---|"]
    for name, (_, used) in rows.items():
        own = f"| {name} | {with_interval(means[name])} | {float(used.mean()):.0%} |"
        lines.append(f"{own} {with_interval(means[name] - last)} |")
    return "\n".join(lines)


def with_interval(values: np.ndarray) -> str:
    """Mean of values (n,) and its 95 % interval by the t distribution."""
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    mean = values.mean()
    return f"{mean:.4f} ({mean - half:.4f} to {mean + half:.4f})"


def task_means(values: Tensor, task: Tensor) -> np.ndarray:
    """Mean of values (n,) over the trainings of each task."""
    return np.array([float(values[task == number].mean()) for number in range(int(task[-1]) + 1)])


def _outcome(trials: Trials, logit: Tensor, known: Tensor, regret: Tensor) -> tuple[Tensor, Tensor]:
    """Regret (n,) and share of the steps (n,) of a way to decide."""
    time = stopping_time(logit, known).unsqueeze(1)
    return regret_when_ended(logit, known, regret), trials.steps.gather(1, time).squeeze(1)


def policy_of(
    trials: Trials, spec: ControlSpec, config: EndingConfig, args: argparse.Namespace
) -> MLPPolicy:
    """A policy of networks that have learned from all trials."""
    rates = None if args.init is None else load_policy(args.init)
    if rates is not None and not isinstance(rates, MLPPolicy):
        raise ValueError(f"init must be a network; {args.init} is none")
    members = fitted(trials, config, args.steps, args.seed)
    about = {
        "agent": "endings",
        "tasks": " ".join(path.stem for path in args.trials),
        "init": args.init,
        "trainings": len(trials.task),
        "members": config.members,
        "steps": args.steps,
        "price": config.price,
        "margin": config.margin,
        "seed": args.seed,
    }
    if rates is not None:
        spec = dataclasses.replace(spec, base=rates.spec.base)
    networks = [member.network for member in members]
    return joined_policy(
        rates, networks, spec, INTERVAL, about, margin=config.margin, seen=trials.range()
    )


def main() -> None:
    """Compare, save trials, or fit a policy and write its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trials", type=Path, nargs="+")
    parser.add_argument("--compare", action="store_true", help="print the table")
    parser.add_argument("--save", type=Path, help="file to which the trials are written")
    parser.add_argument("--init", help="policy that sets the learning rates")
    parser.add_argument("--output", type=Path, help="policy file")
    parser.add_argument("--members", type=int, default=EndingConfig.members, help="networks")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each network")
    parser.add_argument(
        "--price", type=float, default=EndingConfig.price, help="nats that all steps cost"
    )
    margin = EndingConfig.margin
    parser.add_argument("--margin", type=float, default=margin, help="log odds that end a training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the networks")
    args = parser.parse_args()
    if not (args.compare or args.save or args.output):
        parser.error("nothing to do: give --compare, --save or --output")
    if args.compare and len({*args.trials}) < len(args.trials):
        parser.error("--compare takes each file once: tasks must not be seen on both sides")
    torch.set_num_threads(1)
    config = EndingConfig(members=args.members, price=args.price, margin=args.margin)
    trials, spec = joined(args.trials)
    if args.save is not None:
        write_trials(trials, spec, args.save)
    if args.compare:
        print(compare(trials, spec, config, args.steps))
    if args.output is not None:
        save_policy(policy_of(trials, spec, config, args), args.output)
        print(f"{args.output}: {config.members} networks, {len(trials.task)} trainings")


if __name__ == "__main__":
    main()
