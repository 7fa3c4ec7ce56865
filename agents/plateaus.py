"""A policy that comes down by itself: each plateau of a held-out loss takes something off the rate that it names.

What a network names from the task alone is too high for some trainings and too low for others that look the same. Too
low a rate shows in nothing that is seen while it matters; too high a rate shows as a held-out loss that no longer
falls, whether the training stalls or memorises. So such a policy starts above what its network names, where it is shown
a held-out loss, and gives way whenever that has stalled. Where it is shown none it is the policy that it was made of.

    python -m agents.plateaus runs/sweep/policy.safetensors runs/reacting.safetensors --nats 0.5 --shift 0.7

makes one of a policy that does not react yet.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from torch import Tensor

from lr_gym.mlp_policy import MLPPolicy
from lr_gym.observation import HELD_OUT_FEATURES, MANY_PLATEAUS
from lr_gym.policy import load_policy, save_policy

__all__ = ["react_to_plateaus"]

LINEAR = 0.01  # how little of tanh's curve the count passes through


def react_to_plateaus(policy: MLPPolicy, nats: float, shift: float = 0.0) -> MLPPolicy:
    """The policy that goes to a rate (shift - nats * plateaus) above, in logarithm, where it sees a held-out loss.

    HELD_OUT_FEATURES, which come last, pass beside the network through a unit of each hidden layer, in which tanh is
    linear to 1e-4. The guard trusts all that they can be.

    Args:
        policy: whose action is how far the rate is from where it should be, as those of the agent `sweep` are:
            recursive, of the learning rate alone, and it sees `peak_lr`.
        nats: that each plateau takes off.
        shift: nats by which it starts above.

    Raises:
        ValueError: for a policy of another kind, one that reacts already, or `nats` that are not above 0.
    """
    spec = policy.spec
    leads = spec.action == "recursive" and spec.controls == ("lr",) and "peak_lr" in spec.features
    if not leads or {*HELD_OUT_FEATURES} & {*spec.features}:
        raise ValueError(
            "a policy that is to react to plateaus must be recursive, set lr alone, and see peak_lr but none of "
            f"{', '.join(HELD_OUT_FEATURES)}; got action={spec.action!r}, controls={spec.controls}, "
            f"features={spec.features}"
        )
    if not nats > 0.0:
        raise ValueError(f"nats must be above 0; got {nats!r}")
    weights, biases = list(policy.weights), list(policy.biases)
    column = torch.tensor([[shift, -nats * MANY_PLATEAUS]]) / spec.mode.step  # what the new features add to the action
    for i in range(len(weights) - 1):
        passed = LINEAR * column / column.abs().sum() if i == 0 else torch.ones(1, 1)
        weights[i] = torch.block_diag(weights[i], passed)  # type: ignore[no-untyped-call]
        biases[i] = torch.cat([biases[i], torch.zeros(1)])
    arrives = column if len(weights) == 1 else column.abs().sum().view(1, 1) / LINEAR
    weights[-1] = torch.cat([weights[-1], arrives], dim=1)
    seen = policy.seen
    return dataclasses.replace(
        policy,
        spec=dataclasses.replace(spec, features=(*spec.features, *HELD_OUT_FEATURES)),
        weights=tuple(weights),
        biases=tuple(biases),
        mean=_with(policy.mean, 0.0, 0.0),
        std=_with(policy.std, 1.0, 1.0),
        seen=None if seen is None else seen._replace(features=_with(seen.features, [0.0, 0.0], [1.0, 1.0])),
    )


def _with(table: Tensor, *values: float | list[float]) -> Tensor:
    """Two more columns of a table (..., F)."""
    return torch.cat([table, torch.tensor(values)], dim=-1)


def main() -> None:
    """From one file to another; what the first says of its certificate does not hold for the second."""
    parser = argparse.ArgumentParser(prog="python -m agents.plateaus", description=main.__doc__)
    parser.add_argument("source", help="policy file, output folder of train_agent.py, or builtin:NAME")
    parser.add_argument("target", help="policy file to write")
    parser.add_argument("--nats", type=float, default=0.5, help="that each plateau takes off the rate")
    parser.add_argument("--shift", type=float, default=0.7, help="nats by which it starts above")
    args = parser.parse_args()
    policy = load_policy(args.source)
    if not isinstance(policy, MLPPolicy):
        parser.error(f"{args.source} is of the kind {policy.kind!r}: only networks can be made to react")
    reacting = react_to_plateaus(policy, args.nats, args.shift)
    about = {key: value for key, value in policy.about.items() if key != "certificate"}
    about["plateaus"] = {"nats": args.nats, "shift": args.shift}
    save_policy(dataclasses.replace(reacting, about=about), args.target)


if __name__ == "__main__":
    main()
