"""One policy of several networks: one sets the learning rates, the others end the training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lr_gym.control.action import FINISH, FINISH_ABOVE
from lr_gym.control.spec import ControlSpec
from lr_gym.policies.policy import MLPPolicy
from lr_gym.policies.ranges import ObservedRanges

__all__ = ["joined_policy", "joined_spec"]


def joined_spec(rates: MLPPolicy | None, spec: ControlSpec) -> ControlSpec:
    """What a policy that sets rates and ends trainings sees and sets.

    Args:
        rates: the policy that sets the rates, or None.
        spec: the spec under which the network that ends trainings has learned.

    Raises:
        ValueError: where the policy that sets rates makes other decisions or has another base.
    """
    if rates is None:
        return spec
    own = rates.spec
    if (own.base, own.schedule, own.decisions) != (spec.base, spec.schedule, spec.decisions):
        raise ValueError(
            f"init has base={own.base!r}, schedule={own.schedule!r}, decisions={own.decisions}; "
            f"this training has {spec.base!r}, {spec.schedule!r}, {spec.decisions}"
        )
    if own.finishes or own.mode.discrete:
        raise ValueError(f"init must set rates only, by values; got {own.controls}, {own.action!r}")
    new = tuple(name for name in spec.features if name not in own.features)
    return dataclasses.replace(
        own, controls=(*own.controls, FINISH), features=(*own.features, *new)
    )


def joined_policy(
    rates: MLPPolicy | None,
    networks: Sequence[nn.Sequential],
    spec: ControlSpec,
    interval: int,
    about: dict[str, Any],
    *,
    margin: float,
    seen: Tensor | None = None,
) -> MLPPolicy:
    """Put all networks side by side into one, so that none sees what the other ones do.

    Args:
        rates: the policy that sets the rates, of as many layers as the networks; None sets none.
        networks: each gives log odds of ending the training, from what `spec` shows; the policy
            goes by their mean.
        spec: the spec under which the networks have learned.
        interval: inner steps between two decisions where the length of a training is not known;
            that of the policy that sets the rates counts, if there is one.
        about: what the policy's file tells about it.
        margin: log odds above which the policy ends a training.
        seen: (2, F) range of what the networks have learned from, F features of `spec`. The policy
            then keeps the guard of the one that sets the rates, extended by the new features;
            without it there is no guard.
    """
    own = _mean_of(networks)
    # where the log odds are above the margin, the action has to be above FINISH_ABOVE
    own[-1] = own[-1][0], own[-1][1] - margin + FINISH_ABOVE
    whole = joined_spec(rates, spec)
    if rates is None:
        others = _empty_layers(len(own), len(spec.controls) - 1)
        mean = torch.zeros(len(spec.features))
        std = torch.ones(len(spec.features))
    else:
        if len(rates.weights) != len(own):
            raise ValueError(
                f"init has {len(rates.weights)} layers and the networks have {len(own)}: set "
                "--endings.hidden to as many widths as init has hidden layers"
            )
        others = list(zip(rates.weights, rates.biases, strict=True))
        added = len(whole.features) - len(rates.mean)
        mean = torch.cat([rates.mean, torch.zeros(added)])
        std = torch.cat([rates.std, torch.ones(added)])
    places = [whole.features.index(name) for name in spec.features]
    first, bias = own[0]
    # the network has learned from what is not standardised
    own[0] = first * std[places], bias + first @ mean[places]
    layers = [_beside(*pair) for pair in zip(others, own, strict=True)]
    layers[0] = _first(others[0], own[0], places, len(whole.features))
    return MLPPolicy(
        spec=whole,
        interval=interval if rates is None else rates.interval,
        weights=tuple(weight for weight, _ in layers),
        biases=tuple(bias for _, bias in layers),
        mean=mean,
        std=std,
        about=about,
        ranges=None if rates is None else _joined_ranges(rates, spec, whole, seen),
    )


def _joined_ranges(
    rates: MLPPolicy, spec: ControlSpec, whole: ControlSpec, seen: Tensor | None
) -> ObservedRanges | None:
    """The ranges of the policy that sets the rates, and those of the features that are new."""
    if rates.ranges is None or seen is None:
        return None
    new = [spec.features.index(name) for name in whole.features[len(rates.mean) :]]
    features = torch.cat([rates.ranges.features, seen[:, new].float()], dim=1)
    # actions on the end of a training span all of [-1, 1]
    offsets = torch.cat([rates.ranges.offsets, torch.tensor([[-1.0], [1.0]])], dim=1)
    return ObservedRanges(features, offsets, rates.ranges.lr)


def _mean_of(networks: Sequence[nn.Sequential]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the layers of one network that gives the mean of all."""
    linears = [[m for m in network if isinstance(m, nn.Linear)] for network in networks]
    layers = []
    for depth, members in enumerate(zip(*linears, strict=True)):
        weights = [member.weight.detach() for member in members]
        biases = [member.bias.detach() for member in members]
        if depth == len(linears[0]) - 1:
            count = len(members)
            layers.append((torch.cat(weights, 1) / count, torch.stack(biases).mean(0)))
        elif depth == 0:
            layers.append((torch.cat(weights), torch.cat(biases)))
        else:
            layers.append((_side_by_side(*weights), torch.cat(biases)))
    return layers


def _empty_layers(depth: int, outputs: int) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the layers of a network that sees nothing and whose actions are 0."""
    counts = [0] * depth + [outputs]
    return [
        (torch.zeros(fan_out, fan_in), torch.zeros(fan_out))
        for fan_in, fan_out in itertools.pairwise(counts)
    ]


def _beside(above: tuple[Tensor, Tensor], below: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of two linear layers that do not see each other's inputs."""
    return _side_by_side(above[0], below[0]), torch.cat([above[1], below[1]])


def _side_by_side(*weights: Tensor) -> Tensor:
    """Weight of linear layers that do not see each other's inputs."""
    weight: Tensor = torch.block_diag(*weights)  # type: ignore[no-untyped-call]
    return weight


def _first(
    above: tuple[Tensor, Tensor], below: tuple[Tensor, Tensor], seen: list[int], inputs: int
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the first layers, which see some of the same inputs."""
    weight = above[0].new_zeros(len(above[0]) + len(below[0]), inputs)
    weight[: len(above[0]), : above[0].shape[1]] = above[0]
    weight[len(above[0]) :, seen] = below[0]
    return weight, torch.cat([above[1], below[1]])
