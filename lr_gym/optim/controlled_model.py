"""ControlledModel: the layers of one model with what their controller carries along (B = 1)."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

from lr_gym.control.action import decode
from lr_gym.control.context import TrainingContext
from lr_gym.control.controller import Controller, ControlState
from lr_gym.control.units import layer_units
from lr_gym.layers import Layout
from lr_gym.optim.distributed import add_up, check_equal_on_ranks, ranks_of
from lr_gym.optim.finishing import finish_metrics, finish_of
from lr_gym.optim.group_rates import applied_lrs, reference_lr, scheduled_lr
from lr_gym.optim.guard import Guard
from lr_gym.optim.model_layout import lay_out
from lr_gym.optim.pretrained import (
    base_offsets,
    is_pretrained,
    no_trust,
    norm_votes,
    note_start_weights,
    undecided,
)
from lr_gym.optim.settings import Settings
from lr_gym.optim.sharded_step import check_shards
from lr_gym.optim.slots import Slot
from lr_gym.optim.state import load_rows, save_rows
from lr_gym.policies.policy import Policy
from lr_gym.types import Hyperparams, LayerStats, numbers_like

__all__ = ["ControlledModel", "Decided", "controlled_model"]


class Decided(NamedTuple):
    """What a decision says about the end of the training.

    Attributes:
        held_out: (1,) mean of the held-out losses since the last decision, NaN where none was
            given.
        finishing: (1,) bool, whether the policy ends the training.
    """

    held_out: Tensor
    finishing: Tensor


@dataclasses.dataclass
class ControlledModel:
    """What is known once parameters and devices are.

    Attributes:
        layout: the layers.
        slots: every parameter in its place.
        first_slot_of_layer: (L) slots whose groups give the lr and the momentum of each layer.
        policy: the policy, on the device of the parameters.
        controller: the controller of this training.
        control: what the controller carries along.
        multiplier: (1, L) hyperparameters at a group lr of 1, without the base schedule.
        guard: the guard of a policy that knows what it learned from, else None.
        ranks: the group of ranks that decide together, None where this process decides alone.
        groups: parameter groups of the optimizer.
        params: each group with the parameters that it had when the layers were laid out.
        betas: betas of the groups when `multiplier` was decoded.
        watched: whether anything looks at held-out losses.
        checked: whether the ranks are known to hold the same parameters.
        used: multipliers and scheduled rates of the last step, None before the first.
    """

    layout: Layout
    slots: list[Slot]
    first_slot_of_layer: list[Slot]
    policy: Policy
    controller: Controller
    control: ControlState
    multiplier: Hyperparams
    guard: Guard | None
    ranks: Any | None
    groups: Sequence[dict[str, Any]]
    params: list[tuple[dict[str, Any], list[Tensor]]]
    betas: list[Any]
    watched: bool = False
    checked: bool = False
    used: tuple[Hyperparams, dict[int, float | Tensor]] | None = None

    def holds(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether these are the groups and parameters that the layers were laid out for."""
        if len(groups) != len(self.params):
            return False
        return all(  # asked at every step, so without a loop in Python over the parameters
            group is known
            and len(group["params"]) == len(params)
            and all(map(operator.is_, group["params"], params))
            for group, (known, params) in zip(groups, self.params, strict=True)
        )

    def add_loss(self, loss: Tensor | float) -> None:
        """Take note of a training loss, one number; a tensor may be on any device.

        Raises:
            ValueError: for more than one number.
        """
        value = _one_number(loss, self.control.loss_sum, "observe")
        self.control = self.controller.add_loss(self.control, value)

    def add_held_out(self, loss: Tensor | float) -> None:
        """Take note of a held-out loss, as `add_loss` does of a training loss."""
        value = _one_number(loss, self.control.loss_sum, "observe_validation")
        self.control = self.controller.add_held_out(self.control, value)

    def reference(self) -> Tensor:
        """(1, L) the learning rate that the policy starts from, the same for every layer."""
        return torch.full_like(self.multiplier.lr, reference_lr(self.groups))

    def shown(self) -> Hyperparams:
        """(1, L) hyperparameters as the policy sees them, without the base schedule.

        What became of a group's lr since the start is not shown: the policy would take a warmup,
        say, for a start that is to be mended.
        """
        return self.multiplier._replace(lr=self.multiplier.lr * self.reference())

    def scheduled(self, step: int) -> dict[int, float | Tensor]:
        """The lr of each group under the base schedule at a step, by the group's id.

        Once the end of the training is decided, the schedule stands still, and the rate falls
        linearly from where it was.
        """
        finish = finish_of(self.groups)
        if finish.end is None:
            factor = float(self.controller.schedule(step))
            return {id(group): scheduled_lr(group, factor) for group in self.groups}
        factor = float(self.controller.schedule(min(step, finish.decided)))
        falling = finish.factor(step)
        return {id(group): scheduled_lr(group, factor) * falling for group in self.groups}

    def applied(self, step: int) -> Hyperparams:
        """(1, L) hyperparameters of the last step, or of this one where none was made yet."""
        multiplier, scheduled = self.used or (self.multiplier, self.scheduled(step))
        rates = [float(scheduled[id(slot.group)]) for slot in self.first_slot_of_layer]
        return multiplier._replace(lr=multiplier.lr * numbers_like([rates], multiplier.lr))

    def applied_lrs(self, step: int) -> list[float]:
        """One learning rate for each group, as `applied` has them for its layers.

        Reads from the device.
        """
        multiplier, scheduled = self.used or (self.multiplier, self.scheduled(step))
        return applied_lrs(self.groups, self.slots, multiplier.lr[0], scheduled)

    def refresh(self) -> None:
        """Decode the momentum anew where somebody, such as OneCycleLR, has changed betas."""
        betas = _betas(self.groups)
        if betas != self.betas:
            self.betas = betas
            unit = _unit(self.first_slot_of_layer, self.multiplier.lr)
            self.multiplier = decode(self.controller.spec.controls, self.control.offset, unit)

    def decide(self, stats: LayerStats, settings: Settings, step: int) -> Decided:
        """Observe, ask the policy, and act.

        Args:
            stats: statistics of the pending gradient, (1, L) each.
            settings: what the optimizer was made with.
            step: optimizer steps made.
        """
        state = self.control
        looks = self.guard is not None and undecided(self.groups, step)
        zero = torch.zeros_like(state.loss_sum)
        votes = norm_votes(self.slots, zero) if looks else zero  # (1,)
        if self.ranks is not None:
            if not self.checked:
                check_equal_on_ranks([slot.param for slot in self.slots], self.ranks)
                self.checked = True
            # the mean over all ranks is that of the global batch
            held_out = state.held_out
            own = [state.loss_sum, state.loss_count, votes, held_out.loss_sum, held_out.loss_count]
            sums = add_up(torch.stack(own), self.ranks)
            state = state._replace(
                loss_sum=sums[0],
                loss_count=sums[1],
                held_out=held_out._replace(loss_sum=sums[3], loss_count=sums[4]),
            )
            votes = sums[2] / distributed.get_world_size(self.ranks)
        if looks:
            note_start_weights(self.groups, votes)
        held_out_loss = state.held_out.loss_sum / state.held_out.loss_count
        context = self._context(settings)
        observation, state = self.controller.observe(state, stats, self.shown(), context, [step])
        shown = observation if self.guard is None else self.guard.shown(observation)
        action, _ = self.policy.predict(shown[0])
        moving = stats.grad_rms > 0  # without a gradient there is nothing to go by
        self.multiplier, self.control = self.controller.act(
            state,
            action.unsqueeze(0),
            _unit(self.first_slot_of_layer, stats.grad_rms),
            moving=moving,
            restrain=self._restrain(observation, moving, context.units),
        )
        return Decided(held_out_loss, self.controller.finishing(self.control, context))

    def metrics(self, step: int) -> dict[str, float]:
        """Each layer's lr, multiplier, momentum and noise at the last step, and its guard's view.

        Reads from the device.
        """
        hyper = self.applied(step)
        columns = {
            "lr": hyper.lr,
            "multiplier": self.multiplier.lr,
            "momentum": hyper.momentum,
            "noise": hyper.noise,
        }
        values = {"step": float(step)}
        for key, column in columns.items():
            for name, value in zip(self.layout.names, column[0].tolist(), strict=True):
                values[f"{key}/{name}"] = value
        values |= finish_metrics(self.groups, step)
        return values if self.guard is None else values | self.guard.metrics()

    def store(self, states: Mapping[Tensor, dict[str, Any]], present: Sequence[Tensor]) -> None:
        """Write the controller's state where `state_dict` and copies look.

        Args:
            states: state of each parameter.
            present: parameters that the optimizer has now; rows of others are left out.
        """
        here = set(map(id, present))
        first = [
            slot.param if id(slot.param) in here else None for slot in self.first_slot_of_layer
        ]
        save_rows(states, first, self.control, self.guard, watched=self.watched)

    def _restrain(
        self, observation: Tensor, moving: Tensor, units: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What the guard does to offsets at a decision; None where there is no guard."""
        guard = self.guard
        if guard is None:
            return None
        if is_pretrained(self.groups):
            guard.state = no_trust(guard.state)
            return base_offsets
        lr = self.reference() / units
        return lambda before, wanted: guard.decide(observation, moving, lr, before, wanted)

    def _context(self, settings: Settings) -> TrainingContext:
        one = torch.ones_like(self.control.loss_sum)  # (1,)
        steps = settings.total_steps
        epoch = settings.steps_per_epoch
        return TrainingContext(
            passes=one * ((steps or 1) / (epoch or 1)),
            sizes=numbers_like([_trained_sizes(self.layout, self.slots)], one),
            units=self._units(),
            loss_known=one,
            progress_known=one * float(steps is not None),
            passes_known=one * float(epoch is not None),
            monitor_known=one,
        )

    def _units(self) -> Tensor:
        """(1, L) unit of the learning rate of each layer."""
        units = [
            slot.rule.unit(slot.param.shape, embedding=slot.group.get("embedding") is True)
            for slot in self.slots
        ]
        sizes = [slot.param.numel() * slot.param.requires_grad for slot in self.slots]
        granularity = self.controller.spec.granularity
        row = layer_units(self.layout, granularity, units, sizes)
        return numbers_like([row], self.multiplier.lr)


def controlled_model(
    groups: Sequence[dict[str, Any]], states: Mapping[Tensor, dict[str, Any]], settings: Settings
) -> ControlledModel:
    """Lay out the layers and set up the controller, from saved state where there is some.

    Args:
        groups: parameter groups of the optimizer.
        states: state of each parameter.
        settings: what the optimizer was made with.
    """
    layout, slots = lay_out(groups, settings.rule, settings.policy.spec.granularity)
    check_shards(slots, settings.policy.spec.controls)
    first = [next(slot for slot in slots if slot.layer == i) for i in range(layout.num_layers)]
    doubles = any(slot.param.dtype == torch.float64 for slot in slots)
    dtype = torch.float64 if doubles else torch.float32
    like = torch.zeros((), dtype=dtype, device=slots[0].data.device)
    controller = settings.controller()
    # a user's own policy may know nothing of guards
    ranges = getattr(settings.policy, "ranges", None) if settings.guard else None
    guard = None if ranges is None else Guard(ranges, controller.spec, layout.names, like)
    control = controller.start(1, layout.num_layers, like)
    load_rows(states, [slot.param for slot in first], control, guard)
    return ControlledModel(
        layout=layout,
        slots=slots,
        first_slot_of_layer=first,
        policy=settings.policy.to(like.device),
        controller=controller,
        control=control,
        multiplier=decode(controller.spec.controls, control.offset, _unit(first, like)),
        guard=guard,
        ranks=ranks_of(settings.process_group),
        groups=groups,
        params=[(group, list(group["params"])) for group in groups],
        betas=_betas(groups),
        watched=settings.watches_held_out,
    )


def _one_number(loss: Tensor | float, like: Tensor, method: str) -> Tensor:
    """A loss as (1,) in the dtype and on the device of `like`.

    Raises:
        ValueError: for more than one number, naming the method that was given it.
    """
    value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss), device="cpu")
    if value.numel() != 1:
        raise ValueError(
            f"{method} takes the loss as one number; got shape {tuple(value.shape)}: pass "
            "loss.mean()"
        )
    return value.to(like, non_blocking=True).reshape(1)


def _unit(first_slot_of_layer: Sequence[Slot], like: Tensor) -> Hyperparams:
    """(1, L) hyperparameters of the base optimizer at a learning rate of 1."""
    momentum = [[float(slot.group["betas"][0]) for slot in first_slot_of_layer]]
    momenta = numbers_like(momentum, like)
    ones = torch.ones_like(momenta)
    return Hyperparams(ones, momenta, torch.zeros_like(ones), torch.zeros_like(ones))


def _betas(groups: Sequence[dict[str, Any]]) -> list[Any]:
    return [group["betas"] for group in groups]


def _trained_sizes(layout: Layout, slots: Sequence[Slot]) -> list[float]:
    """Number of parameters of each layer that are trained."""
    sizes = np.zeros(layout.num_layers)
    for slot in slots:
        sizes[slot.layer] += slot.param.numel() * slot.param.requires_grad
    return [float(size) for size in sizes]
