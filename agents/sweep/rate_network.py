"""The network that names a learning rate, how it learns, and how it becomes a policy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from agents.regression import linear_layer, regress
from agents.sweep.sweeps import PEAK, Sweeps, known_columns
from lr_gym.control.features import PEAK_CENTRE, PEAK_WIDTH
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import MLPPolicy

__all__ = ["RateNetwork", "learn", "policy_of", "regret_at"]

# The present learning rate passes through tanh scaled by this: so near 0, tanh is linear.
LINEAR = 0.01
BEYOND = 0.5  # regret in nats per step of the sweep's grid, outside of the grid
LN_10 = math.log(10.0)


class RateNetwork(nn.Module):
    """Names the logarithm of a learning rate from an observation.

    It does not see the present learning rate. If it did, the rate it names could depend on the
    present one, and the policy could come to rest at more than one rate.
    """

    def __init__(self, widths: Sequence[int], log_rates: Tensor, seed: int) -> None:
        """The last layer starts at 0: at first, the network always names the middle of the sweep.

        Args:
            widths: Widths of the input and of the hidden layers.
            log_rates: (rates,) logarithms of the sweep's learning rates.
            seed: Seed of the initial weights.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.linears = nn.ModuleList()
        for fan_in, fan_out in itertools.pairwise(widths):
            self.linears.append(linear_layer(fan_in, fan_out, generator))
        self.linears.append(skip_init(nn.Linear, widths[-1], 1))  # type: ignore[no-untyped-call]
        for tensor in self.linears[-1].parameters():
            nn.init.zeros_(tensor)
        self.middle = float(log_rates[0] + log_rates[-1]) / 2.0
        self.spread = float(log_rates[-1] - log_rates[0]) / 4.0

    def forward(self, observation: Tensor) -> Tensor:
        """Name the logarithms (n,) of learning rates, from observations (n, F - 1) without PEAK."""
        x = observation
        for i, linear in enumerate(self.linears):
            x = linear(x.tanh() if i else x)
        return self.middle + self.spread * x.squeeze(-1)


def regret_at(log_lr: Tensor, curves: Tensor, log_rates: Tensor) -> Tensor:
    """Regret of learning rates, read off curves.

    A curve is linear between its learning rates. Beyond them it rises by BEYOND with every step of
    the grid.

    Args:
        log_lr: (n,) logarithms of the learning rates.
        curves: (n, rates) regret at the learning rates of the sweep.
        log_rates: (rates,) logarithms of these, evenly spaced.

    Returns:
        (n,) regret in nats.
    """
    place = (log_lr - log_rates[0]) / (log_rates[1] - log_rates[0])
    # just below the last index, so that there is always a neighbour to the right
    inside = place.clamp(0.0, len(log_rates) - 1 - 1e-4)
    left = inside.detach().floor().long().unsqueeze(1)
    values = curves.gather(1, torch.cat([left, left + 1], dim=1))
    between = values[:, 0].lerp(values[:, 1], inside - left.squeeze(1))
    return between + BEYOND * (place - inside).abs()


def learn(
    network: RateNetwork,
    optimizer: torch.optim.Optimizer,
    seen: Sweeps,
    log_rates: Tensor,
    learning_rates: Iterable[float],
    generator: torch.Generator,
) -> None:
    """Lower the regret of the rates that the network names, on BATCH random rows at each step.

    Args:
        network: The network, trained in place.
        optimizer: Optimizer of the network's parameters.
        seen: The sweeps to learn from.
        log_rates: (rates,) logarithms of the sweeps' learning rates.
        learning_rates: Learning rate of the optimizer at each step.
        generator: Generator from which the rows are drawn.
    """

    def regret(rows: Tensor) -> Tensor:
        log_lr = network(seen.observation[rows].float())
        return regret_at(log_lr, seen.curves[seen.sweep[rows].long()], log_rates).mean()

    regress(optimizer, regret, len(seen.sweep), learning_rates, generator)


def policy_of(
    network: RateNetwork, spec: ControlSpec, interval: int, shift: float, about: dict[str, Any]
) -> MLPPolicy:
    """Build the policy that goes to the learning rate which the network names.

    Its action is (named + shift - present) / action_step, in logarithms of learning rates over
    their units, so one named number gives every layer its own rate. The present one is a feature.
    It passes beside the network, through one more neuron in each layer, where it is so small that
    tanh is linear to 1e-4.

    Args:
        network: Network whose inputs are the features of `spec` without PEAK.
        spec: Spec with action="recursive", controls=("lr",) and the feature PEAK.
        interval: Inner steps between two decisions of the policy.
        shift: Nats above the learning rate that the network names.
        about: What the policy's file tells about it.

    Returns:
        The policy, with copies of the network's weights.
    """
    assert spec.action_step is not None
    weights, biases = [], []
    last = len(network.linears) - 1
    for i, linear in enumerate(network.linears):
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.detach().clone()
        bias = linear.bias.detach().clone()
        if i == last:
            scale = network.spread / spec.action_step
            present = torch.full((1, 1), -PEAK_WIDTH * LN_10 / (LINEAR * spec.action_step))
            weight = torch.cat([weight * scale, present], dim=1)
            bias = bias * scale + (network.middle + shift - PEAK_CENTRE * LN_10) / spec.action_step
        else:
            weight = torch.block_diag(weight, torch.ones(1, 1))  # type: ignore[no-untyped-call]
            bias = torch.cat([bias, torch.zeros(1)])
        if i == 0:
            # the learning rate is the last column here, and has its own place in an observation
            weight[-1, -1] = LINEAR
            columns = [*known_columns(spec.features), spec.features.index(PEAK)]
            weight = weight[:, np.argsort(columns)]
        weights.append(weight)
        biases.append(bias)
    features = len(spec.features)
    return MLPPolicy(
        spec=spec,
        interval=interval,
        weights=tuple(weights),
        biases=tuple(biases),
        mean=torch.zeros(features),
        std=torch.ones(features),
        about=about,
    )
