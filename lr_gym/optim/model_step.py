"""Measure, update and average every tensor of a controlled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.control.layer_stats import layer_statistics
from lr_gym.layers import Layout
from lr_gym.optim.base_step import plain_update, same_shape_batches
from lr_gym.optim.batching import BLOCK
from lr_gym.optim.controlled_model import ControlledModel
from lr_gym.optim.distributed import add_up, replicas
from lr_gym.optim.finishing import finish_of
from lr_gym.optim.fused_step import fused_update
from lr_gym.optim.group_rates import PEAK_LR
from lr_gym.optim.moments import MASSES, masses, moments
from lr_gym.optim.pretrained import PRETRAINED
from lr_gym.optim.sampling import Piece, pieces_of, square_sums, sums_of_pieces
from lr_gym.optim.settings import Settings
from lr_gym.optim.sharded_step import sharded_matrix_update
from lr_gym.optim.slots import Slot, gradient_of
from lr_gym.types import LayerStats, numbers_like
from lr_gym.updates.averaging import snapshot_, snapshot_weight

__all__ = ["average", "measured", "prepare_state", "update"]

States = Mapping[Tensor, dict[str, Any]]  # state of each parameter


def measured(model: ControlledModel, states: States, settings: Settings) -> LayerStats:
    """Statistics (1, L) of the pending gradient, and of weights and moments if the policy looks.

    Parameters without a gradient are not looked at: frozen ones may have types that know no
    arithmetic. A layer without any gradient has statistics of 0. Where parameters are sharded, sums
    over the shards of all ranks are added up.
    """
    slots = [slot for slot in model.slots if slot.param.grad is not None]
    sizes = tuple(slot.param.numel() for slot in slots)
    layout = Layout(model.layout.names, tuple(slot.layer for slot in slots), sizes)
    shown = model.shown()
    count = numbers_like(layout.layer_sizes(), shown.lr)  # (L,)
    ranks = model.ranks if any(slot.sharded for slot in model.slots) else None
    # every rank adds its part of what several ranks hold
    weights = [1.0 if ranks is None else 1.0 / replicas(slot.param, ranks) for slot in slots]
    if model.controller.spec.gradient_only:
        grads = [gradient_of(slot) for slot in slots]
        sums = 0.0 * shown.lr
        if grads:
            sums = square_sums(layout, grads, settings.sample, weights, sums.dtype)
        grad_rms = ((sums if ranks is None else add_up(sums, ranks)) / count).sqrt()
        zero = torch.zeros_like(grad_rms)
        return LayerStats(zero, grad_rms, zero, zero, zero, zero)
    sums = shown.lr.new_zeros(7, 1, layout.num_layers)  # as `tensor_sums` orders them
    if slots:
        pieces = _pieces(slots, states, settings, weights)
        rules = [slot.rule for slot in slots]
        own_masses = masses(states, slots, shown.lr)
        sums = sums_of_pieces(rules, layout, pieces, own_masses, shown.momentum)
    return layer_statistics(sums if ranks is None else add_up(sums, ranks), count)


def _pieces(
    slots: Sequence[Slot], states: States, settings: Settings, weights: Sequence[float]
) -> list[Piece]:
    """Blocks and samples of all tensors on this rank, weighted."""
    pieces: list[Piece] = []
    for i, (slot, weight) in enumerate(zip(slots, weights, strict=True)):
        first, second = moments(states, slot)
        tensors = (slot.data, gradient_of(slot), first, *([] if second is None else [second]))
        if tensors[0].numel() > 0:
            found = pieces_of(tensors, i, settings.sample, BLOCK)
            pieces += [piece._replace(weight=piece.weight * weight) for piece in found]
    return pieces


def update(model: ControlledModel, states: States, settings: Settings, step: int) -> None:
    """One step of the base optimizer on every tensor that has a gradient.

    Args:
        model: the model with its multipliers.
        states: state of each parameter.
        settings: what the optimizer was made with.
        step: optimizer steps made.
    """
    slots = [slot for slot in model.slots if slot.param.grad is not None and slot.param.numel() > 0]
    scheduled = model.scheduled(step)
    model.used = model.multiplier, scheduled
    rates = {group: model.multiplier.lr[0] * lr for group, lr in scheduled.items()}
    if settings.fused is not False:
        slots = fused_update(
            states,
            slots,
            rates,
            decoupled=settings.rule.decoupled,
            anywhere=settings.fused is True,
        )
    for slot in filter(_gathers, slots):
        lr = rates[id(slot.group)][slot.layer].reshape(1)
        momentum, _ = _controlled(model, [slot], lr)
        sharded_matrix_update(states, slot, lr, momentum)
    for members in same_shape_batches([slot for slot in slots if not _gathers(slot)]):
        lr = torch.stack([rates[id(members[0].group)][slot.layer] for slot in members])
        momentum, noise = _controlled(model, members, lr)
        plain_update(states, members, lr, momentum, noise, seed=settings.seed, step=step)


def _gathers(slot: Slot) -> bool:
    """Whether the update of a parameter needs the shards of all ranks."""
    return slot.sharded and slot.rule.family == "muon"


def prepare_state(model: ControlledModel, states: States, settings: Settings) -> None:
    """Make the whole state of every parameter, without counting a step.

    Args:
        model: the model with its multipliers; every lr and every gradient is 0.
        states: state of each parameter.
        settings: what the optimizer was made with.
    """
    update(model, states, settings, step=0)
    model.used = None
    for group in model.groups:
        group.setdefault(PEAK_LR, 0.0)
        if model.guard is not None:
            group.setdefault(PRETRAINED, None)
    for slot in model.slots:
        state = states.get(slot.param, {})
        for key in ("step", *MASSES):  # this was no step
            if key in state:
                state[key].zero_()
        if state and settings.policy.spec.average is not None:
            snapshot_(state, slot.param, 1.0)


def average(model: ControlledModel, states: States, settings: Settings, step: int) -> None:
    """Let the weights join their average, at the end of every interval and of the training.

    Args:
        model: the model with its controller.
        states: state of each parameter, which holds its average.
        settings: what the optimizer was made with.
        step: optimizer steps made.
    """
    power = settings.policy.spec.average
    interval = model.controller.interval
    finish = finish_of(model.groups)
    if power is None or (finish.end is not None and step > finish.end):
        return
    if step % interval and step not in (settings.total_steps, finish.end):
        return
    weight = snapshot_weight(power, -(-step // interval))
    for slot in model.slots:
        if slot.param.requires_grad or "average" in states[slot.param]:
            snapshot_(states[slot.param], slot.param, weight)


def _controlled(
    model: ControlledModel, slots: Sequence[Slot], lr: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Momentum (n,) and noise (n,) or None of n tensors, the policy's where it controls them."""
    controls = model.controller.spec.controls
    momentum = torch.full_like(lr, slots[0].group["betas"][0])
    noise = None
    if "momentum" in controls:
        momentum = torch.stack([model.multiplier.momentum[0, slot.layer] for slot in slots])
    if "noise" in controls:
        noise = torch.stack([model.multiplier.noise[0, slot.layer] for slot in slots])
    return momentum, noise
