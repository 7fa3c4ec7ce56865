"""The parameters of a PolicyOptimizer laid out in layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lr_gym.layers import Layout, hidden_matrices, layout_of_named, layout_of_tensors
from lr_gym.optim.notices import warn_user
from lr_gym.optim.slots import Slot
from lr_gym.updates.rule import BaseRule

__all__ = ["lay_out"]


def lay_out(
    groups: Sequence[dict[str, Any]], rule: BaseRule, granularity: str
) -> tuple[Layout, list[Slot]]:
    """Find the layers of all parameters: by name where every parameter has one, else by shape.

    Args:
        groups: parameter groups of the optimizer.
        rule: rule of the base optimizer.
        granularity: "per_layer" or "global".

    Returns:
        The layers, and every parameter in its place.

    Raises:
        ValueError: for parameters on several devices.
    """
    params = [param for group in groups for param in group["params"]]
    _check_one_device(params)
    layout = _layout(groups, params, granularity)
    owners = [group for group in groups for _ in group["params"]]
    starts = itertools.accumulate(layout.sizes, initial=0)
    hidden = hidden_matrices((group["params"], group.get("muon")) for group in groups)
    slots = [
        Slot(param, group, layer, start, rule.for_tensor(param in hidden))
        for param, group, layer, start in zip(params, owners, layout.layer_of, starts, strict=False)
    ]
    return layout, slots


def _layout(groups: Sequence[dict[str, Any]], params: Sequence[Tensor], granularity: str) -> Layout:
    names = [name for group in groups for name in group.get("param_names", ())]
    if len(names) != len(params):
        if granularity == "per_layer":
            _check_groups_begin_layers(groups)
        return layout_of_tensors(params, granularity)
    if len(set(names)) < len(names):  # two models, say, whose parameters have the same names
        names = [
            f"group{i}.{name}" for i, group in enumerate(groups) for name in group["param_names"]
        ]
    return layout_of_named(zip(names, params, strict=True), granularity)


def _check_one_device(params: Sequence[Tensor]) -> None:
    devices = sorted({str(param.device) for param in params})
    if len(devices) > 1:
        raise ValueError(
            f"PolicyOptimizer decides for parameters of one device; got {', '.join(devices)}: "
            "make one optimizer for each"
        )


def _check_groups_begin_layers(groups: Sequence[dict[str, Any]]) -> None:
    """Warn of groups without names whose first tensor joins a layer of the group before."""
    for i, group in enumerate(groups):
        if i and group["params"] and group["params"][0].ndim < 2:
            warn_user(
                f"the first tensor of group {i} is no matrix, so it counts as a part of the last "
                "layer of the group before: give (name, parameter) pairs, as "
                "model.named_parameters() does"
            )
            return
