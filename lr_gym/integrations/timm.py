"""timm: importing this module registers PolicyOptimizer as the optimizer "lr_gym_policy" of timm.

timm makes groups without names. `timm_groups` makes the same ones with names; pass it as
`param_group_fn`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lr_gym.optim import PolicyOptimizer, named_groups
from lr_gym.optional import require

__all__ = ["timm_groups"]

_timm_optim = require("timm.optim", "integrations")

NAME = "lr_gym_policy"
# timm looks up what stands behind the last underscore of the name.
SHORT_NAME = NAME.rpartition("_")[2]


def timm_groups(
    model: nn.Module, weight_decay: float, layer_decay: float | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Make the groups that timm makes, with names, for its `param_group_fn`.

    Args:
        model: The model.
        weight_decay: The weight decay; biases, norms and what `model.no_weight_decay()` names have
            none.
        layer_decay: The factor of the learning rate from one block of the model to the one before;
            None for one rate.
        **options: Other options of timm's `param_groups_weight_decay` or
            `param_groups_layer_decay`.

    Returns:
        Groups for `PolicyOptimizer(groups, ...)`, see `lr_gym.optim.named_groups`.
    """
    options.setdefault("no_weight_decay_list", getattr(model, "no_weight_decay", set)())
    if layer_decay is None:
        groups = _timm_optim.param_groups_weight_decay(model, weight_decay, **options)
    else:
        options["layer_decay"] = layer_decay
        groups = _timm_optim.param_groups_layer_decay(model, weight_decay, **options)
    return named_groups(groups, model)


def _policy_optimizer(params: Iterable[Any], lr: float = 1e-3, **options: Any) -> PolicyOptimizer:
    """Make a PolicyOptimizer from what timm passes.

    Only timm's schedulers multiply by the `lr_scale` of a group, and a policy needs none of them.
    So the scale becomes a part of the group's lr.
    """
    groups = list(params)
    if groups and isinstance(groups[0], dict):
        groups = [{"lr": lr * group.get("lr_scale", 1.0), **group} for group in groups]
        for group in groups:
            group.pop("lr_scale", None)
    return PolicyOptimizer(groups, lr=lr, **options)


def _register() -> None:
    info = _timm_optim.OptimInfo(
        name=NAME,
        opt_class=_policy_optimizer,
        description="learning rates that a trained policy of lr_gym sets",
        has_eps=True,
        has_betas=True,
    )
    registry = _timm_optim._optim_factory.default_registry  # timm exports no function for this
    registry.register(info)
    registry.register_alias(SHORT_NAME, NAME)


_register()
