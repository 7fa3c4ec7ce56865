"""The parameters of a PolicyOptimizer laid out in layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lr_gym.layers import Layout, hidden_matrices, layout_of_named, layout_of_tensors, row_blocks
from lr_gym.optim.notices import warn_user
from lr_gym.optim.slots import Slot
from lr_gym.updates.muon import Muon
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
    names = _names(groups, params)
    layout = _layout(groups, names, params, granularity)
    if rule.family == "muon" and names is None:
        _check_groups_choose_muon(groups)
    owners = [group for group in groups for _ in group["params"]]
    starts = itertools.accumulate(layout.sizes, initial=0)
    hidden = hidden_matrices((group["params"], group.get("muon")) for group in groups)
    slots = [
        Slot(param, group, layer, start, rule.for_tensor(param in hidden, blocks))
        for param, group, layer, start, blocks in zip(
            params, owners, layout.layer_of, starts, _blocks(owners, names, params), strict=False
        )
    ]
    for slot in slots:
        _check_blocks(slot)
    return layout, slots


def _names(groups: Sequence[dict[str, Any]], params: Sequence[Tensor]) -> list[str] | None:
    """A name of its own for each parameter; None unless all of them were given with one."""
    names = [name for group in groups for name in group.get("param_names", ())]
    if len(names) < len(params):
        return None
    if len(set(names)) < len(names):  # two models, say, whose parameters have the same names
        names = [
            f"group{i}.{name}" for i, group in enumerate(groups) for name in group["param_names"]
        ]
    return names


def _layout(
    groups: Sequence[dict[str, Any]],
    names: Sequence[str] | None,
    params: Sequence[Tensor],
    granularity: str,
) -> Layout:
    if names is not None:
        return layout_of_named(zip(names, params, strict=True), granularity)
    if granularity == "per_layer":
        _check_groups_begin_layers(groups)
    return layout_of_tensors(params, granularity)


def _blocks(
    owners: Sequence[dict[str, Any]], names: Sequence[str] | None, params: Sequence[Tensor]
) -> list[int]:
    """How many maps the rows of each parameter hold: what its group says, else what names tell."""
    found = [1] * len(params)
    if names is not None:
        found = row_blocks(zip(names, params, strict=True))
    given = [group.get("blocks") for group in owners]
    return [own if said is None else said for said, own in zip(given, found, strict=True)]


def _check_blocks(slot: Slot) -> None:
    """Raise a ValueError where a group asks for blocks that the rows of a matrix do not make."""
    if isinstance(slot.rule, Muon) and len(slot.param) % slot.rule.blocks:
        raise ValueError(
            f"a group says blocks={slot.rule.blocks}, but {len(slot.param)} rows of a matrix of "
            f"shape {tuple(slot.param.shape)} are no multiple of it: put this matrix into a group "
            "of its own"
        )


def _check_one_device(params: Sequence[Tensor]) -> None:
    devices = sorted({str(param.device) for param in params})
    if len(devices) > 1:
        raise ValueError(
            f"PolicyOptimizer decides for parameters of one device; got {', '.join(devices)}: "
            "make one optimizer for each"
        )


def _check_groups_begin_layers(groups: Sequence[dict[str, Any]]) -> None:
    """Warn of groups without names whose vectors cannot be told apart by shape.

    The vectors at the start of a group join the last matrix of the group before. Where the first
    group begins with vectors, they are a layer of their own, which is wrong if it holds no matrix:
    frameworks collect the biases of all layers in such a group.
    """
    filled = [group["params"] for group in groups if group["params"]]
    for i, params in enumerate(filled):
        if params[0].ndim >= 2:
            continue
        if i or (len(filled) > 1 and all(param.ndim < 2 for param in params)):
            warn_user(
                f"the first tensor of group {i} is no matrix, and the parameters have no names, so "
                "biases are not known to belong to the layers of their weights: give (name, "
                "parameter) pairs, as model.named_parameters() does, or pass "
                "lr_gym.optim.named_groups(groups, model)"
            )
            return


def _check_groups_choose_muon(groups: Sequence[dict[str, Any]]) -> None:
    """Warn of groups without names that do not say which of their matrices Muon updates."""
    for i, group in enumerate(groups):
        if group.get("muon") is None and any(param.ndim >= 2 for param in group["params"]):
            warn_user(
                f"the parameters have no names, and group {i} does not say whether Muon updates "
                "its matrices, so the last matrix of all groups is taken for the readout and "
                "embeddings are given to Muon: pass lr_gym.optim.muon_groups(model), or for groups "
                "of your own lr_gym.optim.named_groups(groups, model)"
            )
            return
