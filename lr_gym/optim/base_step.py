"""One step of a base optimizer on tensors of PolicyOptimizer.

Moments, and updates by our rules or torch's kernels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lr_gym.optim.base import in_blocks
from lr_gym.updates.rules import BaseRule, MomentScale, gradient_noise, step_

__all__ = [
    "BLOCK",
    "MASSES",
    "Slot",
    "drop_foreign",
    "fused_update",
    "gradient_of",
    "masses",
    "moments",
    "plain_update",
    "same_shape_batches",
]

BLOCK = 2**18  # elements; smaller ones cost more in calls than they save in memory traffic
SMALL = (
    2**15
)  # elements of a tensor that is updated together with others: calls cost more than copies
TOGETHER = 64  # of them at most, for the memory of copies
KERNELS = ("cpu", "cuda")  # devices whose fused kernels are used unasked
MASSES = ("first_mass", "second_mass")  # keys of a tensor's state: see update.MomentScale

State = dict[str, Any]


class Slot(NamedTuple):
    """A parameter and its place.

    Attributes:
        param: the parameter.
        group: of the optimizer.
        layer: index of its layer.
        start: number of elements before it in the model.
        rule: of its updates.
    """

    param: Tensor
    group: dict[str, Any]
    layer: int
    start: int
    rule: BaseRule


def gradient_of(slot: Slot) -> Tensor:
    """The gradient to descend along, zeros where there is none; a sparse one is an error."""
    grad = slot.param.grad
    if grad is None:
        return torch.zeros_like(slot.param)
    if grad.is_sparse:
        raise RuntimeError("sparse gradients are not supported; use a layer with sparse=False")
    return -grad if slot.group["maximize"] else grad


def moments(state: Mapping[Tensor, State], slot: Slot) -> tuple[Tensor, Tensor | None]:
    """A tensor's moments; without a gradient none is kept."""
    param, adam = slot.param, slot.rule.family == "adam"
    own = state[param] if param.grad is not None else dict(state.get(param, {}))
    first = "exp_avg" if adam else "momentum_buffer"
    if own.get(first) is None:
        _migrate_moments(own, slot.rule.family)
    if own.get(first) is None:
        own[first] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if adam:
            own["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
    return own[first], own["exp_avg_sq"] if adam else None


def _migrate_moments(own: State, family: str) -> None:
    """A tensor's moments are another rule's: what was AdamW's and is now Muon's keeps the first.

    Else all is new.
    """
    kept = own.pop("exp_avg", None) if family == "muon" else None
    if kept is None:
        for key in ("step", *MASSES):
            own.pop(key, None)
    for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
        own.pop(key, None)
    if kept is not None:
        own["momentum_buffer"] = kept


def drop_foreign(own: State, family: str) -> None:
    """Of a state that was loaded: SGD's momentum is a sum and Muon's a mean.

    Only SGD never counts squares.
    """
    mass = own.get("second_mass")
    if mass is not None and "momentum_buffer" in own and (float(mass) == 0.0) != (family == "sgd"):
        for key in ("momentum_buffer", *MASSES):
            own.pop(key)


def masses(state: Mapping[Tensor, State], slots: Sequence[Slot], like: Tensor) -> MomentScale:
    """Masses (1, n) of the moments of n tensors, of the dtype and on the device of `like`.

    After steps by the plain path they are kept; after fused ones, or torch's own Adam, the number
    of steps tells.
    """
    states = [state.get(slot.param, {}) for slot in slots]
    if all(key in own for own in states for key in MASSES):
        return MomentScale(
            *(torch.cat([own[key].to(like) for own in states]).unsqueeze(0) for key in MASSES)
        )
    zero, found = torch.zeros((), device=like.device), []
    steps = torch.stack([own.get("step", zero).to(zero) for own in states]).double()
    for i, key in enumerate(MASSES):
        betas = [slot.group["betas"][i] for slot in slots]
        counted = {beta: (1.0 - beta**steps).to(like.dtype).unbind() for beta in set(betas)}
        rows = [
            own[key].to(like).reshape(()) if key in own else counted[beta][j]
            for j, (own, beta) in enumerate(zip(states, betas, strict=True))
        ]
        found.append(torch.stack(rows).unsqueeze(0))
    return MomentScale(*found)


def same_shape_batches(slots: Sequence[Slot]) -> list[list[Slot]]:
    """Tensors that one call can update: up to TOGETHER small ones of one shape, rule and group.

    A large one alone.
    """
    together: dict[tuple[Any, ...], list[Slot]] = {}
    for i, slot in enumerate(slots):
        param = slot.param
        key = (
            (param.shape, param.dtype, slot.rule.family, id(slot.group))
            if param.numel() <= SMALL
            else (i,)
        )
        together.setdefault(key, []).append(slot)
    return [
        members[i : i + TOGETHER]
        for members in together.values()
        for i in range(0, len(members), TOGETHER)
    ]


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
    """One step on tensors that are `same_shape_batches`, as so many runs at once.

    On a large one in blocks that fit a CPU's cache.

    Args:
        state: of the optimizer.
        slots: the n tensors, which have gradients.
        lr: (n,) effective learning rates.
        momentum: (n,) momentum or beta1.
        noise: (n,) levels of gradient noise; None is none.
        seed: of the noise.
        step: inner steps made, for which the noise is drawn.
    """
    group = slots[0].group
    rule = dataclasses.replace(slots[0].rule, beta2=group["betas"][1], eps=group["eps"])
    grads, adam = [gradient_of(slot) for slot in slots], rule.family == "adam"
    kept = [moments(state, slot) for slot in slots]
    changed = [[slot.param for slot in slots], [first for first, _ in kept]]
    changed += [[second for _, second in kept if second is not None]] if adam else []
    added = [] if noise is None else [_noise(slots, grads, noise, seed, step)]
    before = masses(state, slots, lr)
    scale = MomentScale(before.mass[0], before.second[0]).advanced(rule, momentum)
    for slot, first, second in zip(
        slots, torch.split(scale.mass, 1), torch.split(scale.second, 1), strict=True
    ):
        state[slot.param].update(first_mass=first, second_mass=second)
        state[slot.param].pop("step", None)
    weight_decay = torch.full_like(lr, group["weight_decay"]) if group["weight_decay"] else None
    for rows in _rows([*changed, grads, *added], whole=rule.family == "muon"):
        step_(
            rule,
            rows[0],
            rows[len(changed)],
            rows[1],
            rows[2] if adam else None,
            scale,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            noise=None if noise is None else rows[-1],
        )
        if len(slots) > 1:  # the rows are copies
            for column, row in zip(changed, rows, strict=False):
                torch._foreach_copy_(column, row.unbind())


def _noise(
    slots: Sequence[Slot], grads: Sequence[Tensor], level: Tensor, seed: int, step: int
) -> list[Tensor]:
    """What to add to the gradient of each tensor; level (n,)."""
    seeds = torch.full((1,), seed, dtype=torch.int64, device=level.device)
    return [
        gradient_noise(grad.unsqueeze(0), own, seeds, step, slot.start)[0]
        for slot, grad, own in zip(slots, grads, torch.split(level, 1), strict=True)
    ]


def _rows(columns: Sequence[Sequence[Tensor]], *, whole: bool) -> Iterable[list[Tensor]]:
    """Columns of n tensors each as tensors (n, *shape).

    Copies of them, or of one alone its blocks, or the `whole`.
    """
    if len(columns[0]) > 1:
        return [[torch.stack(list(column)) for column in columns]]
    alone = [column[0] for column in columns]
    return (
        [t.unsqueeze(0) for t in part]
        for part in ([alone] if whole else in_blocks(*alone, size=BLOCK))
    )


def fused_update(
    state: Mapping[Tensor, State],
    slots: Sequence[Slot],
    rates: Mapping[int, Tensor],
    *,
    decoupled: bool,
    anywhere: bool,
) -> list[Slot]:
    """One step on the tensors that torch's fused kernels take.

    A call for all of one group and learning rate.

    On the CPU, where rates can be read for nothing, layers of one rate share a call; elsewhere each
    has its own.

    Args:
        state: of the optimizer.
        slots: tensors that have gradients.
        rates: id of a group -> (L,) effective learning rates.
        decoupled: weight decay is AdamW's.
        anywhere: not only on the devices of KERNELS.

    Returns:
        The tensors that they do not take.
    """
    columns = {
        of: rate.tolist() if rate.device.type == "cpu" else _unbound(rate)
        for of, rate in rates.items()
    }
    calls: dict[tuple[Any, ...], tuple[Slot, tuple[list[Tensor], ...]]] = {}
    left: list[Slot] = []
    for slot in slots:
        own = state[slot.param]
        if not _fits_kernel(own, slot, anywhere):
            left.append(slot)
            continue
        rate = columns[id(slot.group)][slot.layer]
        key = (rate if isinstance(rate, float) else slot.layer, id(slot.group), slot.param.dtype)
        if key not in calls:
            calls[key] = slot, ([], [], [], [], [])
        params, grads, firsts, seconds, steps = calls[key][1]
        params.append(slot.param)
        grads.append(slot.param.grad)  # type: ignore[arg-type]
        firsts.append(own["exp_avg"])
        seconds.append(own["exp_avg_sq"])
        steps.append(own["step"])
    if calls:
        torch._foreach_add_([step for _, (*_, steps) in calls.values() for step in steps], 1)
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    for slot, (params, grads, firsts, seconds, steps) in calls.values():
        group = slot.group
        kernel(
            params,
            grads,
            firsts,
            seconds,
            [],
            steps,
            lr=columns[id(group)][slot.layer],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )
    return left


def _unbound(rates: Tensor) -> Sequence[Tensor]:
    """Each of the rates (L,), as the kernels of its device read them."""
    return (rates.float() if rates.is_cuda else rates).unbind()


def _fits_kernel(own: State, slot: Slot, anywhere: bool) -> bool:
    """Whether the kernels take a tensor that has a gradient.

    Makes the moments and the count of steps they need.
    """
    param, grad = slot.param, slot.param.grad
    if slot.rule.family != "adam" or not (anywhere or param.device.type in KERNELS):
        return False
    if "exp_avg" not in own:
        moments({param: own}, slot)
    assert grad is not None
    dtype, first, second = param.dtype, own["exp_avg"], own["exp_avg_sq"]
    if grad.is_sparse or not (grad.dtype == first.dtype == second.dtype == dtype):
        return False
    if not (
        param.is_contiguous()
        and grad.is_contiguous()
        and first.is_contiguous()
        and second.is_contiguous()
    ):
        return False
    if "first_mass" in own:  # both follow from the number of steps
        del own["first_mass"]
        own["step"] = _steps_of(own.pop("second_mass"), slot.group["betas"][1])
    elif "step" not in own:
        own["step"] = torch.zeros((), device=param.device)
    return True


def _steps_of(second_mass: Tensor, beta2: float) -> Tensor:
    """Number of steps t of a mass (1,) that is 1 - beta2^t, as torch counts it.

    Exact until the mass rounds to 1.
    """
    left = (1.0 - second_mass.double()).clamp_min(torch.finfo(torch.float32).eps / 2)
    steps = torch.round(torch.log(left) / math.log(beta2)) if beta2 > 0.0 else torch.ones_like(left)
    return steps.to(torch.float32).reshape(())
