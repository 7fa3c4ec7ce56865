"""Episodes: B trainings under a controller, on the device.

An episode is one training. The functions here take an EnvState and return the next one; nothing
waits for the device. Seeds, spaces, restarts and everything else on the host are in `vector_env`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.context import TrainingContext
from lr_gym.control.controller import Controller, ControlState
from lr_gym.control.finish import Endings
from lr_gym.control.units import layer_units
from lr_gym.envs.env_state import EnvState, Interval, Weights, evaluated_state
from lr_gym.envs.judgement import Judgement, judged_by_split, judged_on_stream
from lr_gym.envs.run_distribution import RunDistribution, monitored
from lr_gym.layers import embedding_tables
from lr_gym.tasks import Task
from lr_gym.training.executor import Executor
from lr_gym.types import Hyperparams, numbers_like
from lr_gym.updates.averaging import averaged, snapshot_weight

__all__ = ["Episodes"]


class Episodes:
    """Trainings of one task under one controller.

    Attributes:
        controller: the controller.
        loop: what executes the trainings.
        units: (L,) unit of the learning rate of each layer.
    """

    def __init__(
        self,
        task: Task,
        controller: Controller,
        runs: RunDistribution,
        *,
        weight_decay: float,
        price: float,
        device: torch.device | str,
        dtype: torch.dtype,
        compile: bool,
    ) -> None:
        """Load the task's data.

        Args:
            task: what is trained.
            controller: a controller of trainings of a known length.
            runs: what each run draws for itself.
            weight_decay: weight decay of the base optimizer.
            price: nats that the steps of a whole training cost.
            device: where the trainings run.
            dtype: floating-point type of the trainings.
            compile: whether the trainings are compiled.
        """
        assert controller.horizon is not None
        spec = controller.spec
        self.controller = controller
        self.loop = Executor(
            task,
            base=spec.base,
            granularity=spec.granularity,
            noise="noise" in spec.controls,
            weight_decay=weight_decay > 0.0,
            device=device,
            dtype=dtype,
            compile=compile,
        )
        self.units = np.array(_units(self.loop, spec.granularity))
        self._runs = runs
        self._weight_decay = weight_decay
        self._price = price
        self._horizon = controller.horizon
        self._passes = 1.0  # of a stream: nothing is seen twice
        self._monitors = False
        if not self.streams:
            self._monitors = spec.watches_held_out and self.loop.data.monitor is not None
            examples = len(self.loop.data.gradient.inputs)
            self._passes = self._horizon * task.batch_size / examples

    @property
    def streams(self) -> bool:
        """Whether the data are a stream, so that trainings are judged by their loss on the way."""
        return self.loop.stream is not None

    def start(self, run_seed: Tensor, lr: NDArray[np.float64] | None) -> tuple[EnvState, Tensor]:
        """Start a training for each seed.

        Args:
            run_seed: (B,) int64 on the device.
            lr: (B, L) initial learning rates; None lets each run draw its own.

        Returns:
            The state, and the first observation (B, L, F).
        """
        runs = len(run_seed)
        inner = self.loop.init(run_seed)
        drawn_lr = self._runs.lr(run_seed)
        if lr is not None:
            drawn_lr = numbers_like(lr, drawn_lr)
        base = self._base(drawn_lr)
        initial_loss = inner.loss if self.streams else self.loop.evaluate(inner, "reward")
        control = self.controller.start(runs, self.loop.layout.num_layers, inner.loss)
        averages = self.controller.spec.average is not None
        state = EnvState(
            inner=inner,
            control=self.controller.add_loss(control, inner.loss),
            base=base,
            hyper=Hyperparams(*(value.clone() for value in base)),
            context=self._context(run_seed),
            initial_train_loss=inner.loss.clone(),
            initial_loss=initial_loss.clone(),
            loss=initial_loss.clone(),
            collected=torch.zeros_like(initial_loss),
            average=(_copies(inner.params), _copies(inner.buffers)) if averages else (),
        )
        return self._observe(state, np.zeros(runs, dtype=np.int64))

    def run_interval(
        self, state: EnvState, action: Tensor, step: NDArray[np.int64], endings: Endings
    ) -> Interval:
        """Act, train until the next decision is due, observe and reward.

        A training whose end is decided takes no more notice of actions.

        Args:
            state: the trainings, not to be used afterwards.
            action: (B, L, A) within [-1, 1].
            step: (B,) inner steps made before.
            endings: what was decided about the ends of the trainings before.
        """
        hyper, control, endings = self._act(state, action, step, endings)
        limit = np.minimum(self.controller.interval, endings.end(self._horizon) - step)
        steps = step + np.arange(limit.max())[:, None]  # (K, B) number of each step to be made
        factor = self.controller.shown_schedule(steps, state.context.progress_known, endings)
        inner, losses = self.loop.advance(state.inner, hyper, factor, limit)
        control = self.controller.add_loss(control, losses)
        state = state._replace(inner=inner, control=control, hyper=hyper)
        step = step + limit
        state = state._replace(average=self._averaged(state, step))
        state, observation = self._observe(state, step)
        judged = self._judged(state, losses, step, limit)
        state = state._replace(loss=judged.loss, collected=state.collected + judged.reward)
        return Interval(state, observation, judged.reward, judged.divergence, endings, limit)

    def _judged(
        self, state: EnvState, losses: Tensor, step: NDArray[np.int64], limit: NDArray[np.int64]
    ) -> Judgement:
        """What an interval was worth.

        Args:
            state: the trainings after it.
            losses: (K, B) its training losses.
            step: (B,) inner steps made.
            limit: (B,) how many of them in this interval.
        """
        taken = numbers_like(np.arange(limit.max())[:, None] < limit, losses) > 0
        worst = torch.where(taken, losses, -torch.inf).max(0).values
        if not self.streams:
            loss = self.evaluate(state, "reward")
            cost = numbers_like(self._price * limit / self._horizon, loss)
            return judged_by_split(state, loss, worst, self.loop.task.optimum, cost)
        interval = self.controller.interval
        total = torch.where(taken, losses, 0.0).sum(0)
        left = numbers_like((self._horizon - step + limit) / interval, total)
        return judged_on_stream(state, worst, total, numbers_like(limit, total), left, interval)

    def _act(
        self, state: EnvState, action: Tensor, step: NDArray[np.int64], endings: Endings
    ) -> tuple[Hyperparams, ControlState, Endings]:
        """Hyperparameters, state of the controller, and endings after an action (B, L, A)."""
        if not self.controller.spec.finishes:
            return *self.controller.act(state.control, action, state.base), endings
        undecided = torch.from_numpy(endings.undecided).to(action.device, non_blocking=True)
        moving = undecided.unsqueeze(1).expand_as(state.base.lr)
        hyper, control = self.controller.act(state.control, action, state.base, moving=moving)
        # the host must know how many steps are left, so it waits for the device here
        finishing = self.controller.finishing(control, state.context).cpu().numpy()
        return hyper, control, endings.decide(finishing, step, self._horizon)

    def evaluate(self, state: EnvState, split: str) -> Tensor:
        """Mean loss (B,) of each run on a split, with the weights that it is judged by.

        On a stream it is the loss of each minibatch before it was learned from, above its floor, so
        far on average, whatever the split.
        """
        if self.streams:
            return -state.collected * self.controller.interval / state.inner.step.clamp_min(1)
        return self.loop.evaluate(evaluated_state(state), split)

    def effective_lr(self, state: EnvState, step: NDArray[np.int64], endings: Endings) -> Tensor:
        """Learning rate (B, L) in force, base schedule and decided ends included."""
        factor = self.controller.shown_schedule(step, state.context.progress_known, endings)
        return state.hyper.lr * factor.unsqueeze(1)

    def _base(self, lr: Tensor) -> Hyperparams:
        """Hyperparameters (B, L) of the base optimizer from learning rates (B, 1) or (B, L)."""
        ones = torch.ones(
            len(lr), self.loop.layout.num_layers, dtype=self.loop.dtype, device=self.loop.device
        )
        return Hyperparams(
            lr=ones * lr.to(self.loop.dtype),
            momentum=ones * self.loop.rule.momentum,
            noise=ones * 0.0,
            weight_decay=ones * self._weight_decay,
        )

    def _context(self, run_seed: Tensor) -> TrainingContext:
        loss_known, progress_known, passes_known, monitor_known = self._runs.known(
            run_seed, self.loop.dtype
        )
        if self.streams:  # they have no end, and no examples that come again
            progress_known = torch.zeros_like(progress_known)
            passes_known = torch.zeros_like(passes_known)
        ones = torch.ones_like(loss_known)
        sizes = ones[:, None] * numbers_like(self.loop.layout.layer_sizes(), ones)
        return TrainingContext(
            passes=ones * self._passes,
            sizes=sizes,
            units=ones[:, None] * numbers_like(self.units, ones),
            loss_known=loss_known,
            progress_known=progress_known,
            passes_known=passes_known,
            monitor_known=monitor_known,
        )

    def _observe(self, state: EnvState, step: NDArray[np.int64]) -> tuple[EnvState, Tensor]:
        stats = self.loop.stats(state.inner, state.hyper)
        observation, control = self.controller.observe(
            state.control, stats, state.hyper, state.context, step
        )
        if self._monitors:
            # Validation takes time, so that a loss is seen one decision after its weights were.
            control = self.controller.add_held_out(control, _monitor_loss(self.loop, state))
        return state._replace(control=control), observation

    def _averaged(self, state: EnvState, step: NDArray[np.int64]) -> Weights | tuple[()]:
        """The averaged weights after a decision; () where none are kept."""
        power = self.controller.spec.average
        if power is None or not state.average:
            return ()
        decisions = np.ceil(step / self.controller.interval)
        weight = numbers_like(snapshot_weight(power, decisions), state.loss)
        params, buffers = state.average
        return (
            averaged(params, state.inner.params, weight),
            averaged(buffers, state.inner.buffers, weight),
        )


def _monitor_loss(loop: Executor, state: EnvState) -> Tensor:
    """Loss (B,) on each run's own part of the monitor split, with the weights it is judged by.

    Runs that are never shown it are computed along, to keep all shapes equal.
    """
    split = loop.data.monitor
    assert split is not None
    shown = monitored(state.inner.run_seed, len(split.inputs)).to(loop.dtype)
    weights = shown / shown.sum(1, keepdim=True)
    return loop.evaluate(evaluated_state(state), "monitor", weights)


def _units(loop: Executor, granularity: str) -> list[float]:
    """Unit of the learning rate of each layer of the trained model."""
    embeddings = embedding_tables(loop.model)
    units = [
        rule.unit(param.shape, embedding=param in embeddings)
        for rule, param in zip(loop.rules, loop.model.parameters(), strict=True)
    ]
    return layer_units(loop.layout, granularity, units, loop.layout.sizes)


def _copies(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in tensors)
