"""A small tanh network that becomes a policy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.regression import linear_layer
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.policies.policy import MLPPolicy

__all__ = ["policy_of_network", "tanh_network"]


def tanh_network(widths: Sequence[int], seed: int) -> nn.Sequential:
    """A tanh network whose last layer is 0, so that its action is 0 at first.

    Args:
        widths: Widths of the input, the hidden layers and the output.
        seed: Seed of the other layers' initial weights.
    """
    modules: list[nn.Module] = []
    generator = torch.Generator().manual_seed(seed)
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        modules += [nn.Tanh()] * (i > 0) + [linear_layer(fan_in, fan_out, generator)]
    for param in modules[-1].parameters():
        nn.init.zeros_(param)
    return nn.Sequential(*modules)


def policy_of_network(
    network: nn.Sequential, envs: Sequence[LRControlVectorEnv], about: dict[str, Any]
) -> MLPPolicy:
    """Make a policy of a network, with copies of its weights.

    Args:
        network: The network.
        envs: Environments that it has learned in.
        about: What the policy's file tells about it.
    """
    linears = [module for module in network if isinstance(module, nn.Linear)]
    spec = envs[0].control_spec
    return MLPPolicy(
        spec=spec,
        interval=int(np.median([env.inner_steps_per_decision for env in envs])),
        weights=tuple(linear.weight.detach().clone() for linear in linears),
        biases=tuple(linear.bias.detach().clone() for linear in linears),
        mean=torch.zeros(len(spec.features)),
        std=torch.ones(len(spec.features)),
        about=about,
    )
