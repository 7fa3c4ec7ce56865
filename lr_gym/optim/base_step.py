"""One step of PolicyOptimizer's base optimizer by the rules of `lr_gym.updates`.

The environment runs the same rules, so a policy meets the arithmetic that it has learned with.
`fused_step.py` has torch's kernels, which equal these rules to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.batching import same_kind_batches, stacked_or_in_blocks
from lr_gym.optim.moments import masses, moments
from lr_gym.optim.slots import Slot, gradient_of
from lr_gym.updates.noise import gradient_noise
from lr_gym.updates.rule import BaseRule, MomentMasses

__all__ = ["advance_masses_", "plain_update", "rule_of_group", "same_shape_batches"]

State = dict[str, Any]


def rule_of_group(slot: Slot) -> BaseRule:
    """The rule of a parameter with the constants of its group, which may be its own."""
    return dataclasses.replace(slot.rule, beta2=slot.group["betas"][1], eps=slot.group["eps"])


def same_shape_batches(slots: Sequence[Slot]) -> list[list[Slot]]:
    """Batches of parameters that one `plain_update` can take.

    All of a batch have one shape, type, rule and group; a large parameter is alone.
    """

    def kind(slot: Slot) -> Hashable:
        return slot.data.shape, slot.param.dtype, slot.rule, id(slot.group)

    return same_kind_batches(slots, lambda slot: slot.data.numel(), kind)


def plain_update(
    state: Mapping[Tensor, State],
    slots: Sequence[Slot],
    lr: Tensor,
    momentum: Tensor,
    noise: Tensor | None,
    *,
    seed: int,
    step: int,
) -> None:
    """Make one step on a batch of `same_shape_batches`.

    The rules know B runs of one tensor; here the n tensors of the batch take the place of the
    runs.

    Args:
        state: the optimizer's state.
        slots: the n parameters, which all have gradients.
        lr: (n,) effective learning rates.
        momentum: (n,) momentum or beta1.
        noise: (n,) gradient noise over gradient, rms; None for none.
        seed: seed of the noise.
        step: number of inner steps made before, which the noise depends on.
    """
    group = slots[0].group
    rule = rule_of_group(slots[0])
    grads = [gradient_of(slot) for slot in slots]
    written, has_second = _written_columns(state, slots)
    drawn = [] if noise is None else [_noise(slots, grads, noise, seed, step)]
    advanced = advance_masses_(state, slots, rule, momentum, lr)
    weight_decay = torch.full_like(lr, group["weight_decay"]) if group["weight_decay"] else None
    # Muon orthogonalises a whole matrix; all other rules are element by element.
    whole = rule.family == "muon"
    for tensors in stacked_or_in_blocks([*written, grads, *drawn], whole=whole):
        rule.step_(
            tensors[0],
            tensors[len(written)],
            tensors[1],
            tensors[2] if has_second else None,
            advanced,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            noise=tensors[-1] if drawn else None,
        )
        if len(slots) > 1:  # the stacked tensors are copies: write the results back
            for column, results in zip(written, tensors, strict=False):
                torch._foreach_copy_(column, results.unbind())


def _written_columns(
    state: Mapping[Tensor, State], slots: Sequence[Slot]
) -> tuple[list[list[Tensor]], bool]:
    """What a step writes to: parameters, first moments and, for Adam, second moments.

    The second result tells whether there are second moments.
    """
    kept = [moments(state, slot) for slot in slots]
    columns = [[slot.data for slot in slots], [first for first, _ in kept]]
    seconds = [second for _, second in kept if second is not None]
    return ([*columns, seconds], True) if seconds else (columns, False)


def advance_masses_(
    state: Mapping[Tensor, State],
    slots: Sequence[Slot],
    rule: BaseRule,
    momentum: Tensor,
    like: Tensor,
) -> MomentMasses:
    """Count the pending gradients in the masses (n,), store these and return them.

    Args:
        state: the optimizer's state.
        slots: the n parameters.
        rule: their rule.
        momentum: (n,) momentum or beta1.
        like: gives device and dtype of the masses.
    """
    before = masses(state, slots, like)
    advanced = rule.next_masses(MomentMasses(before.first[0], before.second[0]), momentum)
    columns = zip(
        slots, torch.split(advanced.first, 1), torch.split(advanced.second, 1), strict=True
    )
    for slot, first, second in columns:
        own = state[slot.param]
        own["first_mass"] = first
        own["second_mass"] = second
        # The masses replace torch's step count, which would be wrong from now on.
        own.pop("step", None)
    return advanced


def _noise(
    slots: Sequence[Slot], grads: Sequence[Tensor], level: Tensor, seed: int, step: int
) -> list[Tensor]:
    """What to add to the gradient of each parameter; `level` is (n,)."""
    seeds = torch.full((1,), seed, dtype=torch.int64, device=level.device)
    return [
        gradient_noise(grad.unsqueeze(0), own, seeds, step, slot.start)[0]
        for slot, grad, own in zip(slots, grads, torch.split(level, 1), strict=True)
    ]
