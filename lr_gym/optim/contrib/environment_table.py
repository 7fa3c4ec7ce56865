"""A Q-table of the environment for EnhancedSGD: its bins there, and its way into the optimizer."""

from __future__ import annotations

import math
from typing import Any

import torch

from lr_gym.optim.contrib.lr_q_control import EDGES, default_controller
from lr_gym.policies.q_policy import QTablePolicy
from lr_gym.policies.q_table import QLearningController

__all__ = ["controller_of", "observed_edges"]


def observed_edges(decisions: int) -> dict[str, tuple[float, ...]]:
    """`EDGES` in the units of the environment's observation, under its names of the features.

        loss_change = tanh(4 log(1 + loss_trend))
        grad_trend = tanh(variance_change / 2)    compared with the running mean instead
        depth, progress                           within [-1, 1]; a part of all decisions

    The environment does not observe the entropy.

    Args:
        decisions: number of decisions of a training.
    """
    return {
        "loss_change": tuple(math.tanh(4 * math.log1p(x)) for x in EDGES["loss_trend"]),
        "grad_trend": tuple(math.tanh(x / 2) for x in EDGES["variance_change"]),
        "depth": tuple(2 * x - 1 for x in EDGES["depth"]),
        "progress": tuple(2 * (10**x - 1) / decisions - 1 for x in EDGES["progress"]),
    }


def controller_of(policy: QTablePolicy, **options: Any) -> QLearningController:
    """A controller for `EnhancedSGD(q_controller=...)` that continues a table of the environment.

    Every bin of the entropy, which is not observed there, starts with the same values.

    Args:
        policy: a policy from `train_agent.py --agent q_learning --preset enhanced_sgd`.
        **options: more arguments of `QLearningController`.

    Raises:
        ValueError: the policy has other features, bins or actions.
    """
    edges = observed_edges(policy.spec.decisions)
    own_edges = [list(row) for row in edges.values()]
    if policy.spec.features != tuple(edges) or policy.controller.edges != own_edges:
        raise ValueError(
            f"EnhancedSGD needs a table on {', '.join(edges)} with its own bins (preset "
            f"enhanced_sgd); got one on {', '.join(policy.spec.features)}"
        )
    controller = default_controller("momentum" in policy.spec.controls, **options)
    expected = controller.actions[:, : len(policy.spec.controls)]
    if not torch.equal(policy.controller.actions, expected):
        raise ValueError(
            f"EnhancedSGD needs a table with the actions {expected.tolist()}; got "
            f"{policy.controller.actions.tolist()}"
        )
    bins = [len(row) + 1 for row in controller.edges]
    entropy = list(EDGES).index("entropy")
    observed_bins = [count for i, count in enumerate(bins) if i != entropy]
    tables = (
        (controller.q, policy.controller.q),
        (controller.visits, policy.controller.visits),
    )
    for target, source in tables:
        target.view(*bins, -1).copy_(source.view(*observed_bins, -1).unsqueeze(entropy))
    return controller
