"""The ordinary training loop that every contestant runs in.

Trainings with the same seed start from the same weights and see the same minibatches. The selection
split chooses learning rates. The test split is looked at only where a training is reported: its
loss along the training is drawn as a curve, and nothing is chosen by it.

On a stream every minibatch is a test before it is learned from. The mean of these losses is what
chooses and what is reported, on different seeds.

This file knows recipes, not contestants: it must not import the table of optimizers, since then
every training would have to be run again whenever one of the optimizers changes (see
`fingerprint`).
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.benchmark.evaluation_mode import BATCH_NORM_BATCHES, averaged_weights
from lr_gym.benchmark.held_out import held_out_losses
from lr_gym.benchmark.online import OnlineData
from lr_gym.benchmark.recipes import Recipe
from lr_gym.benchmark.schedulers import SCHEDULERS, advance
from lr_gym.benchmark.training_data import (
    CURVE_POINTS,
    Final,
    FixedData,
    Score,
    TrainingData,
    score,
)
from lr_gym.envs.reward import loss_limit
from lr_gym.rng import Stream, random_bits
from lr_gym.tasks.initial import plain_model
from lr_gym.tasks.stream import DataStream
from lr_gym.tasks.task import Split, Task, check_source
from lr_gym.types import check_count

__all__ = ["Outcome", "device_of", "evaluation_seed", "train"]


class Outcome(NamedTuple):
    """What came out of a training.

    Losses are inf where the training diverged, and nan where they were not looked at.

    Attributes:
        selection_loss: loss on the selection split at the end. A stream has no splits: here and in
            `test_loss` stands the mean over all minibatches of the loss before learning from it,
            above its floor. Tuning and reporting use different seeds.
            Contestants that keep their best weights are judged at these.
        test_loss: loss on the test split at the end.
        metrics: the task's metrics on the test split at the end; on a stream their means over all
            minibatches before learning from them, and those of `online.STREAM_METRICS`.
        steps: numbers of updates after which the curve was read; empty without `test`.
        curve: for each entry of `steps` the loss of the first CURVE_EXAMPLES test examples; on a
            stream the mean loss above the floor since the entry before. Where a training ended
            early, its last loss and learning rates are repeated up to the horizon.
        lr: for each entry of `steps` the effective learning rate of each layer, or of all.
        layers: names of the layers in an entry of `lr`.
        updates: updates that were made; fewer than the horizon where the training diverged, or
            where the contestant ended it.
        seconds: duration of the whole training, data and scores included.
        error: the exception that was raised, None for none.
        guarded: whether the guard of a policy acted.
        training: seconds of the updates alone, without those of measuring any loss.
    """

    selection_loss: float
    test_loss: float
    metrics: dict[str, float]
    steps: list[int]
    curve: list[float]
    lr: list[list[float]]
    layers: list[str]
    updates: int = 0
    seconds: float = 0.0
    error: str | None = None
    guarded: bool = False
    training: float = 0.0


def evaluation_seed(index: int) -> Tensor:
    """Run seed (1,) of an evaluation.

    No environment ever hands it out: the seeds of environments clear the top bit, these set it.
    """
    return random_bits(torch.tensor([index]), Stream.EPISODE, 0, 1).squeeze(-1) | (-(2**63))


def device_of(task: Task) -> torch.device:
    """The device that a task asks for, or the CPU on a machine without a GPU."""
    return torch.device(task.device if torch.cuda.is_available() else "cpu")


class _Training:
    """A model with its data, optimizer and scheduler."""

    def __init__(self, recipe: Recipe, lr: float, task: Task, seed: int, horizon: int) -> None:
        self.recipe = recipe
        self.task = task
        self.horizon = horizon
        device = device_of(task)
        run_seed = evaluation_seed(seed)
        self.data = _training_data(task, run_seed, horizon, device)
        self.model = plain_model(task, run_seed).to(device)
        self.optimizer = recipe.make(self.model, lr, self.data.length)
        self.scheduler = SCHEDULERS[recipe.schedule](self.optimizer, lr, horizon)
        self.held_out = held_out_losses(recipe.held_out, task.name, self.data.monitor, horizon)
        # a stream is judged by all of its minibatches
        self._may_end = recipe.held_out.tell and not self.data.length.endless
        self._restored = False
        if recipe.averages:
            self.optimizer.train()  # type: ignore[attr-defined]

    def loss_at(self, step: int) -> Tensor:
        """Loss of a minibatch; its gradient is left in the parameters."""
        inputs, targets = self.data.batch(step)
        outputs = self.model(inputs)
        loss = self.task.loss(outputs, targets).mean()
        self.data.note(loss.detach(), outputs.detach(), targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def score(self, split: Split) -> Score:
        """Loss and metrics at the weights at which the optimizer wants to be evaluated."""
        with self._evaluated():
            return score(self.task, self.model, split)

    def watch_held_out(self, updates: int) -> None:
        """Measure the held-out loss, where it is due after so many updates."""
        held_out = self.held_out
        if held_out is None or not held_out.due(updates, over=self.ended):
            return
        with self._evaluated():
            loss, _ = score(self.task, self.model, held_out.split)
            held_out.note(loss, self.model)
        if held_out.use.tell:
            self.optimizer.observe_validation(loss)  # type: ignore[attr-defined]

    @property
    def ended(self) -> bool:
        """Whether the contestant ends the training before the horizon."""
        if self._may_end and self.optimizer.finished:  # type: ignore[attr-defined]
            return True
        return self.held_out is not None and self.held_out.stops

    def restore_best(self) -> bool:
        """Put the weights of the lowest held-out loss into the model, if any were kept.

        The model cannot be trained on afterwards.

        Returns:
            Whether there were any.
        """
        if self.held_out is None or self.held_out.checkpoint is None:
            return False
        self.model.load_state_dict(self.held_out.checkpoint)
        self._restored = True
        return True

    def _evaluated(self) -> AbstractContextManager[None]:
        # restored weights were copied at the weights at which the optimizer wants to be evaluated
        if self._restored or not self.recipe.averages:
            return nullcontext()
        batches = (
            self.data.batch(step)[0] for step in range(min(BATCH_NORM_BATCHES, self.horizon))
        )
        return averaged_weights(self.model, self.optimizer, batches)


def _training_data(
    task: Task, run_seed: Tensor, horizon: int, device: torch.device
) -> TrainingData:
    source = check_source(task.name, task.data())
    if isinstance(source, DataStream):
        return OnlineData(task, source, run_seed, horizon, device)
    return FixedData(task, source, run_seed, horizon, device)


class _Curve:
    """Losses and learning rates along a training; nothing is read without `test`."""

    def __init__(self, training: _Training, test: bool) -> None:
        self.training = training
        self.test = test
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.rates: list[dict[str, float]] = []

    def read_loss(self, updates: int) -> None:
        if self.test:
            self.steps.append(updates)
            self.losses.append(self.training.data.curve_loss(self.training.score))

    def read_end(self) -> None:
        """Read the loss at the end, which is also that of all later points."""
        if not self.test:
            return
        horizon = self.training.horizon
        every = max(1, horizon // self.training.data.curve_points)
        read = self.steps[-1] if self.steps else 0
        later = [step for step in range(every, horizon, every) if step > read] + [horizon]
        loss = self.training.data.curve_loss(self.training.score)
        self.steps += later
        self.losses += [loss] * len(later)
        self.rates += self.rates[-1:] * (len(self.steps) - len(self.rates))

    def read_rates(self) -> None:
        if self.test:
            self.rates.append(self.training.recipe.rates(self.training.optimizer))


def train(
    recipe: Recipe,
    lr: float,
    task: Task,
    seed: int,
    *,
    test: bool = False,
    horizon: int | None = None,
) -> Outcome:
    """Train once: a plain module, a plain loop, the optimizer of the recipe.

    Args:
        recipe: how the optimizer is made and used.
        lr: learning rate; the peak of a schedule, or the initial one of a policy.
        task: what is trained.
        seed: index of the evaluation seed.
        test: whether the test split is looked at; on a stream, whether curve and metrics are.
        horizon: inner steps, None for the task's own.
    """
    begin = time.perf_counter()
    steps = check_count("horizon", task.horizon if horizon is None else horizon)
    training = _Training(recipe, lr, task, seed, steps)
    curve = _Curve(training, test)
    if training.data.curve_starts:
        curve.read_loss(0)
        curve.read_rates()
    updates = _update_all(training, curve)
    final = Final(math.inf, math.inf, {})
    # A contestant that keeps its best weights still has them when it diverges.
    if training.restore_best() or not updates.diverged:
        final = training.data.final(training.score, test)
        curve.read_end()
    return Outcome(
        *final,
        curve.steps,
        curve.losses,
        lr=[list(rates.values()) for rates in curve.rates],
        layers=list(curve.rates[0]) if curve.rates else [],
        updates=updates.number,
        seconds=time.perf_counter() - begin,
        guarded=recipe.guarded(training.optimizer),
        training=updates.seconds,
    )


class _Updates(NamedTuple):
    """What making the updates of a training came to."""

    number: int
    seconds: float
    diverged: bool


def _update_all(training: _Training, curve: _Curve) -> _Updates:
    """Make every update, or stop where the training diverges or the contestant ends it."""
    horizon = training.horizon
    every = max(1, horizon // CURVE_POINTS)
    curve_every = max(1, horizon // training.data.curve_points)
    losses: list[float] = []  # training losses since the last point of the curve
    limit = math.inf
    seconds = 0.0
    for done in range(1, horizon + 1):
        begin = time.perf_counter()
        loss = training.loss_at(done - 1)
        first = done == 1
        last = done == horizon
        point = done % every == 0 and not last
        if first:
            limit = float(loss_limit(loss))
        # On a GPU every float() waits for the device, so losses are not read at every step.
        if first or point or last or training.scheduler is not None:
            losses.append(float(loss))
        # Divergence is looked for at the same steps for every contestant, with a scheduler or
        # without: a loss that rises above the limit and comes down again is no divergence.
        if (first or point or last) and not losses[-1] <= limit:
            return _Updates(done, seconds, diverged=True)
        if last:
            curve.read_rates()  # after the last update a schedule has ended
        training.recipe.step(training.optimizer, loss)
        seconds += time.perf_counter() - begin
        training.watch_held_out(done)
        if not last and done % curve_every == 0:
            curve.read_loss(done)
            curve.read_rates()
        if training.ended:
            return _Updates(done, seconds, diverged=False)
        if not last:
            advance(training.scheduler, losses, point)
    return _Updates(horizon, seconds, diverged=False)
