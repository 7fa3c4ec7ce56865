r"""Fit a policy to sweeps that were played before.

Sweeps cost nearly all of the time of the agent `sweep`, and networks seconds. So sweeps of several
runs can be put together, and the network be fitted anew: with more members, with more steps. The
policy has no guard and no certificate: `python -m lr_gym.analysis.measure_ranges` and
`python -m lr_gym.analysis.certificate` make them.

SWEEPS are output folders of `train_agent.py --agent sweep`, or files that `sweep_features --save`
has written, all with the same features.

    python -m experiments.fit_sweeps docs/results/sweeps/muon*.safetensors \
      --preset muon --members 5 --steps 2000 --output muon.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from agents.command_line import parse
from agents.sweep.ensemble import Member, distilled
from agents.sweep.rate_network import RateNetwork, policy_of
from agents.sweep.sweeps import PEAK, SweepConfig, Sweeps
from experiments.sweep_features import joined
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import MLPPolicy, save_policy


def fitted(
    seen: Sweeps, spec: ControlSpec, config: SweepConfig, interval: int, seed: int
) -> MLPPolicy:
    """The policy of networks that learn from all sweeps, as the agent's own learn."""
    widths = [len(spec.features) - 1, *(width - 1 for width in config.hidden)]
    rates = [config.learning_rate * (1.0 - step / config.steps) for step in range(config.steps)]
    members = [
        Member(widths, config.log_rates, seed + member, config.learning_rate, config.weight_decay)
        for member in range(config.members)
    ]
    for member in members:
        member.learn(seen, rates)
    network = members[0].network
    if len(members) > 1:
        network = RateNetwork(widths, config.log_rates, seed)
        distilled([member.network for member in members], network, seen.observation)
    about = {
        "agent": "sweep",
        "tasks": "random",
        "sweeps": len(seen.curves),
        "members": config.members,
        "steps": config.steps,
        "seed": seed,
    }
    return policy_of(network, spec, interval, config.shift, about)


def main() -> None:
    """Fit a policy and write its file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--preset", default="generalist", help="preset of the agent sweep")
    parser.add_argument("--members", type=int, default=1, help="networks; one is fitted to all")
    parser.add_argument("--steps", type=int, default=520, help="steps of each network")
    parser.add_argument("--interval", type=int, default=10, help="steps between two decisions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the networks")
    parser.add_argument("--output", type=Path, required=True, help="policy file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    preset = parse(
        ["--agent", "sweep", "--preset", args.preset, "--output-dir", str(args.output.parent)]
    )
    config = dataclasses.replace(preset.sweep, members=args.members, steps=args.steps)
    seen, names = joined(args.sweeps)
    known = [name for name in preset.control.features if name != PEAK]
    if names != known:
        raise ValueError(f"the sweeps show {names}, and the preset {args.preset} wants {known}")
    policy = fitted(seen, preset.control, config, args.interval, args.seed)
    save_policy(policy, args.output)
    print(f"{args.output}: {config.members} networks, {len(seen.curves)} sweeps")


if __name__ == "__main__":
    main()
