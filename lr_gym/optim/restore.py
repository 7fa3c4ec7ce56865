"""Repairs of what torch's `load_state_dict` does to the state of a PolicyOptimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_gym.optim.moments import MASSES, drop_foreign
from lr_gym.optim.notices import warn_user
from lr_gym.optim.settings import Settings
from lr_gym.optim.state import KEYS

__all__ = ["POLICY", "restoring"]

POLICY = "policy"  # key of a group: the policy that drives it, see Settings.policy_id
MATRIX_KEYS = ("muon", "blocks", "embedding")  # keys of a group: what its matrices are


@contextmanager
def restoring(optimizer: Optimizer, settings: Settings) -> Iterator[None]:
    """A context for torch's `load_state_dict`, which repairs afterwards what that leaves wrong.

    Args:
        optimizer: the PolicyOptimizer.
        settings: what it was made with.
    """
    given = [{key: group.get(key) for key in MATRIX_KEYS} for group in optimizer.param_groups]
    loaded: dict[str, Any] = {}  # what is loaded after all hooks that the user has registered
    hook = optimizer.register_load_state_dict_pre_hook(lambda _, state: loaded.update(state))
    try:
        yield
    finally:
        hook.remove()
    for group, options in zip(optimizer.param_groups, given, strict=True):
        for key, value in options.items():
            if value is not None:  # a state of torch's own optimizers says nothing of it
                group.setdefault(key, value)
    own = settings.policy_id
    saved = {group.get(POLICY, own) for group in optimizer.param_groups}
    if saved != {own}:
        warn_user(
            "the state that was loaded was saved under another policy, whose decisions so far are "
            "the start of this one: load it into an optimizer with the same policy, or train on "
            "from the model alone"
        )
    for group in optimizer.param_groups:
        group[POLICY] = own
    params = [param for group in optimizer.param_groups for param in group["params"]]
    _restore_dtypes(optimizer.state, params, loaded, settings)


def _restore_dtypes(
    states: Mapping[Tensor, dict[str, Any]],
    params: Sequence[Tensor],
    loaded: Mapping[str, Any],
    settings: Settings,
) -> None:
    """Give state tensors the dtype that they were saved with.

    Torch casts what it loads to the dtype of the parameter, which would round the controller's
    rows, the averages and the masses of a model in half precision.

    Args:
        states: state of each parameter, as torch has loaded it; changed in place.
        params: parameters of the optimizer, in order.
        loaded: the state_dict that was loaded.
        settings: what the optimizer was made with.
    """
    saved = [index for group in loaded["param_groups"] for index in group["params"]]
    for param, index in zip(params, saved, strict=True):
        state = states[param]
        given = loaded["state"].get(index, {})
        for key in (*KEYS, "average", *MASSES):
            if key in given:
                state[key] = given[key].to(param.device, copy=True)
        drop_foreign(state, settings.rule.family)
        # torch moves the count of steps to the device only where a group has the key "fused"
        if settings.fused is not False and "step" in state:
            state["step"] = state["step"].to(param.device, torch.float32)
