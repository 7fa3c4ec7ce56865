"""The parameters of a PolicyOptimizer laid out in layers, and what is known of them while a training runs."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lr_gym.control.spec import ControlState
from lr_gym.layers import Layout, hidden_matrices, layout_of_named, layout_of_tensors
from lr_gym.optim.guard import Guard
from lr_gym.optim.slots import Slot
from lr_gym.types import Hyperparams
from lr_gym.updates.rules import BaseRule

__all__ = ["ControlledModel", "lay_out"]


@dataclasses.dataclass
class ControlledModel:
    """What is known once parameters and devices are.

    The layers, and the controller's state (B = 1).

    Attributes:
        layout: the layers.
        slots: every parameter.
        leads: the first slot of each layer, whose group's lr and momentum are the layer's.
        control: the controller's state.
        multiplier: (1, L) decoded hyperparameters at group lr 1, without schedule.
        guard: of a policy that knows what it has seen.
    """

    layout: Layout
    slots: list[Slot]
    leads: list[Slot]
    control: ControlState
    multiplier: Hyperparams
    guard: Guard | None

    def holds(self, params: Sequence[Tensor]) -> bool:
        """Whether these are the parameters that it was laid out for."""
        return len(params) == len(self.slots) and all(
            slot.param is param for slot, param in zip(self.slots, params, strict=True)
        )

    def sizes(self) -> list[float]:
        """Parameters of each layer that learn."""
        sizes = [0.0] * self.layout.num_layers
        for slot in self.slots:
            sizes[slot.layer] += slot.param.numel() * slot.param.requires_grad
        return sizes


def lay_out(
    groups: Sequence[dict[str, Any]], rule: BaseRule, granularity: str
) -> tuple[Layout, list[Slot], list[Slot]]:
    """The layers of all parameters, by their names where all have one, else by their shapes.

    Args:
        groups: of the optimizer.
        rule: the base optimizer's.
        granularity: "per_layer" or "global".

    Returns:
        The layers, every parameter in its place, and the first one of each layer.

    Raises:
        ValueError: for parameters of several devices.
    """
    pairs = [(param, group) for group in groups for param in group["params"]]
    params = [param for param, _ in pairs]
    if len(devices := sorted({str(param.device) for param in params})) > 1:
        raise ValueError(
            f"PolicyOptimizer decides for parameters of one device; got {', '.join(devices)}: make "
            "one for each"
        )
    names = [name for group in groups for name in group.get("param_names", ())]
    if len(names) == len(params):
        if len(set(names)) < len(names):  # two models have the same ones
            names = [
                f"group{i}.{name}"
                for i, group in enumerate(groups)
                for name in group["param_names"]
            ]
        layout = layout_of_named(zip(names, params, strict=True), granularity)
    else:
        layout = layout_of_tensors(params, granularity)
        if granularity == "per_layer":
            _check_groups(groups)
    starts = itertools.accumulate(layout.sizes, initial=0)
    hidden = hidden_matrices((group["params"], group.get("muon")) for group in groups)
    slots = [
        Slot(param, group, layer, start, rule.of(param in hidden))
        for (param, group), layer, start in zip(pairs, layout.layer_of, starts, strict=False)
    ]
    leads = [next(slot for slot in slots if slot.layer == i) for i in range(layout.num_layers)]
    return layout, slots, leads


def _check_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Warn of groups without names that do not begin with a layer of their own."""
    for i, group in enumerate(groups):
        if i and group["params"] and group["params"][0].ndim < 2:
            warnings.warn(
                f"PolicyOptimizer: the first tensor of group {i} is no matrix, so it counts as a "
                "part of the last "
                "layer of the group before: give (name, parameter) pairs, as "
                "model.named_parameters() does",
                stacklevel=7,
            )
            return
