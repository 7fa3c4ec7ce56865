"""Controller: everything between the losses and gradients of trainings and their hyperparameters.

The environment and the deployed optimizer both hold one, so that what a policy sees and does while
it learns and when it is deployed comes from the same lines:

    state = controller.start(runs, layers, like)
    state = controller.add_loss(state, loss)                               at every inner step
    state = controller.add_held_out(state, loss)                           now and then
    observation, state = controller.observe(state, stats, hyper, context, step)   at a decision
    hyper, state = controller.act(state, policy(observation), base)               at a decision
    lr = hyper.lr * controller.schedule(step)                              at every inner step

A controller holds constants only; state goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.action import FINISH_ABOVE, decode, move
from lr_gym.control.context import Clock, TrainingContext
from lr_gym.control.feature import Observed
from lr_gym.control.finish import Endings
from lr_gym.control.held_out import (
    HeldOut,
    add_held_out,
    emptied,
    held_out_known,
    no_held_out,
    remember_held_out,
)
from lr_gym.control.memory import Memory, empty_memory, remember
from lr_gym.control.observation import observe
from lr_gym.control.spec import ControlSpec
from lr_gym.types import Hyperparams, LayerStats, numbers_like
from lr_gym.updates.schedules import base_schedule

__all__ = ["ControlState", "Controller"]


class ControlState(NamedTuple):
    """What a controller carries from one inner step to the next.

    Attributes:
        memory: what it remembers from decision to decision.
        offset: (B, L, A) position of each control, see `lr_gym.control.action`.
        action: (B, L, A) the last action.
        loss_sum: (B,) sum of the training losses since the last decision.
        loss_count: (B,) number of these losses.
        held_out: the held-out losses, of which nothing but the newest is kept under a policy that
            does not look at them.
    """

    memory: Memory
    offset: Tensor
    action: Tensor
    loss_sum: Tensor
    loss_count: Tensor
    held_out: HeldOut


class Controller:
    """What connects a policy with trainings of one length.

    Attributes:
        spec: how the policy observes and acts.
        horizon: inner steps of a training, None where nobody knows.
        interval: inner steps between two decisions.
    """

    def __init__(self, spec: ControlSpec, horizon: int | None, interval: int | None = None) -> None:
        """Work out when decisions are due.

        Args:
            spec: how the policy observes and acts.
            horizon: inner steps of a training, None where nobody knows.
            interval: inner steps between two decisions, for trainings of unknown length only.

        Raises:
            ValueError: where neither horizon nor interval is given.
        """
        if horizon is not None:
            interval = spec.interval(horizon)
        if interval is None:
            raise ValueError("give an interval: the horizon, from which it follows, is unknown")
        self.spec = spec
        self.horizon = horizon
        self.interval = interval
        self._schedule = base_schedule(spec.schedule)

    def start(self, runs: int, layers: int, like: Tensor) -> ControlState:
        """The state before the first step.

        Args:
            runs: B.
            layers: L.
            like: a tensor whose device and dtype the state gets.
        """
        zeros = like.new_zeros(runs, layers, len(self.spec.controls))
        return ControlState(
            memory=empty_memory(runs, layers, like),
            offset=zeros,
            action=zeros.clone(),
            loss_sum=like.new_zeros(runs),
            loss_count=like.new_zeros(runs),
            held_out=no_held_out(runs, like),
        )

    def progress(self, step: Any) -> Any:
        """Share of the training that is over, within [0, 1]; 0 where its length is unknown.

        Args:
            step: inner steps made, a number or an array of the host.
        """
        if isinstance(step, int):  # what a deployed optimizer asks at every step
            return 0.0 if self.horizon is None else min(step / self.horizon, 1.0)
        if self.horizon is None:
            return np.zeros_like(np.asarray(step, dtype=np.float64))
        return np.minimum(np.asarray(step) / self.horizon, 1.0)

    def schedule(self, step: Any) -> NDArray[np.float64]:
        """Factor of the base schedule on the learning rate; its first value at unknown lengths.

        Args:
            step: inner steps made, a number or an array of the host.

        Returns:
            Factors in the shape of `step`.
        """
        return self._schedule(self.progress(step))

    def shown_schedule(
        self, step: Any, progress_known: Tensor, endings: Endings | None = None
    ) -> Tensor:
        """`schedule` on the device; runs whose progress is not known stay at its first value.

        Args:
            step: (..., B) inner steps made, numbers of the host.
            progress_known: (B,) as in TrainingContext.
            endings: what is decided about the ends of the trainings; None for nothing. From such a
                decision on the rate falls linearly from where it was.
        """
        shown = step if endings is None else endings.schedule_step(step)
        factor = numbers_like(self.schedule(shown), progress_known)
        factor = torch.where(progress_known > 0, factor, float(self._schedule(0.0)))
        if endings is None:
            return factor
        return factor * numbers_like(endings.factor(step), progress_known)

    def add_loss(self, state: ControlState, loss: Tensor) -> ControlState:
        """Add training losses to the sums of this interval; a loss that is not finite is left out.

        Mixed precision skips steps whose loss overflows, and the other losses of the interval
        still tell how the training goes. A step that a run did not take has the loss NaN, and so it
        is left out too.

        Args:
            state: the state before.
            loss: (B,) losses of one inner step, or (K, B) of K steps.
        """
        known = torch.isfinite(loss)
        finite = torch.where(known, loss, 0.0)
        if loss.ndim > 1:
            finite = finite.sum(0)
            known = known.sum(0)
        return state._replace(loss_sum=state.loss_sum + finite, loss_count=state.loss_count + known)

    def add_held_out(self, state: ControlState, loss: Tensor) -> ControlState:
        """Take note of held-out losses (B,), which the next decision is shown.

        A loss that is not finite is left out, such as NaN for a run that was not evaluated.
        """
        return state._replace(held_out=add_held_out(state.held_out, loss))

    def observe(
        self,
        state: ControlState,
        stats: LayerStats,
        hyper: Hyperparams,
        context: TrainingContext,
        step: Any,
    ) -> tuple[Tensor, ControlState]:
        """Observe at a decision, and update the memory.

        Args:
            state: the state, with the losses since the last decision.
            stats: statistics of the pending gradient.
            hyper: (B, L) hyperparameters in force until now, without the base schedule.
            context: what stays fixed during the trainings.
            step: (B,) inner steps made, numbers of the host.

        Returns:
            The observation (B, L, F), and the state with its sums of losses emptied.
        """
        clock = self._clock(context, step)
        memory = remember(state.memory, stats, state.loss_sum / state.loss_count)
        scheduled = hyper._replace(lr=hyper.lr * clock.schedule.unsqueeze(1))
        remember_new = remember_held_out if self.spec.watches_held_out else emptied
        held_out = remember_new(state.held_out)
        observed = Observed(
            stats, memory, scheduled, state.offset, state.action, context, clock, held_out
        )
        state = state._replace(
            memory=memory,
            held_out=held_out,
            loss_sum=torch.zeros_like(state.loss_sum),
            loss_count=torch.zeros_like(state.loss_count),
        )
        return observe(self.spec.features, observed), state

    def act(
        self,
        state: ControlState,
        action: Tensor,
        base: Hyperparams,
        *,
        moving: Tensor | None = None,
        restrain: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Hyperparams, ControlState]:
        """Decode an action into the hyperparameters that hold until the next decision.

        Args:
            state: the state after `observe`.
            action: (B, L, A) within [-1, 1].
            base: (B, L) hyperparameters of the base optimizer, without the base schedule.
            moving: (B, L) bool, False for layers that keep their offset and their last action;
                None lets all layers act.
            restrain: the guard, a function (offsets before, offsets that the policy wants) ->
                offsets, (B, L, A) each; None lets the policy act freely.

        Returns:
            The hyperparameters (B, L), without the base schedule, and the state.
        """
        action = action.to(state.offset.dtype)
        offset = move(self.spec.mode, self.spec.controls, state.offset, action)
        if moving is not None:
            action = torch.where(moving.unsqueeze(-1), action, state.action)
            offset = torch.where(moving.unsqueeze(-1), offset, state.offset)
        if restrain is not None:
            offset = restrain(state.offset, offset)
        hyper = decode(self.spec.controls, offset, base)
        return hyper, state._replace(offset=offset, action=action)

    def finishing(self, state: ControlState, context: TrainingContext) -> Tensor:
        """Whether the last action ends each training, (B,) bool.

        The layers of a training decide by their mean. Where no held-out loss is known, nothing ends
        a training before its time.

        Args:
            state: the state after `act`.
            context: what stays fixed during the trainings.
        """
        known = held_out_known(state.held_out) * context.monitor_known > 0
        if not self.spec.finishes:
            return torch.zeros_like(known)
        return known & (state.offset[..., -1].mean(1) > FINISH_ABOVE)

    def _clock(self, context: TrainingContext, step: Any) -> Clock:
        like = context.progress_known
        return Clock(
            step=numbers_like(np.asarray(step, dtype=np.float64), like),
            horizon=torch.full_like(like, self.horizon or 1),
            progress=numbers_like(self.progress(step), like),
            schedule=self.shown_schedule(step, like),
        )
