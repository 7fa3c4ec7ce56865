"""B inner trainings of one task in lock-step: the mathematics of a step.

The state always holds the gradient of a minibatch that has not been applied yet, which is what
`optimizer.step()` finds after `loss.backward()`. So a step applies the pending gradient and takes
the next one.

The methods of `InnerLoop` are functions of tensors: they run on any device, for any number of runs,
eager or traced by a compiler. How they are executed is written in `executor.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lr_gym.control.layer_stats import measure
from lr_gym.layers import Layout, layout_of_named, muon_matrices, row_blocks
from lr_gym.rng import Stream, integers
from lr_gym.tasks.initial import build_model, initial_buffers, initial_parameters
from lr_gym.tasks.stacked import aliases_of, stacked_forward
from lr_gym.tasks.stream import StreamPosition
from lr_gym.tasks.task import Split, Task
from lr_gym.types import Hyperparams, LayerStats
from lr_gym.updates.noise import gradient_noise
from lr_gym.updates.rule import BaseRule, MomentMasses
from lr_gym.updates.rules import base_rule

__all__ = ["InnerLoop", "InnerState", "StepResult", "minibatch"]


class InnerState(NamedTuple):
    """B trainings. It changes at every inner step.

    Attributes:
        run_seed: (B,) int64; with the hyperparameters it determines the training.
        step: (B,) int64 updates made so far.
        params: per parameter (B, *shape).
        firsts: per parameter (B, *shape) momentum buffer or first moment.
        seconds: per parameter (B, *shape) second moment; (B, 0) where its rule has none.
        first_mass: (B, L) mass of the first moments, see `updates.rule.MomentMasses`.
        second_mass: (B,) mass of the second moments.
        grads: per parameter (B, *shape) gradient of minibatch `step`, pending.
        loss: (B,) loss of that minibatch.
        buffers: per buffer (B, *shape) after that minibatch: running statistics, counters, the
            run's own problem.
        stream: position of that minibatch in a stream of data; () where the data are fixed.
    """

    run_seed: Tensor
    step: Tensor
    params: tuple[Tensor, ...]
    firsts: tuple[Tensor, ...]
    seconds: tuple[Tensor, ...]
    first_mass: Tensor
    second_mass: Tensor
    grads: tuple[Tensor, ...]
    loss: Tensor
    buffers: tuple[Tensor, ...]
    stream: StreamPosition | tuple[()] = ()


class StepResult(NamedTuple):
    """The fields of `InnerState` that a step returns as new tensors; the rest it changes in place.

    Attributes are those of `InnerState`.
    """

    step: Tensor
    first_mass: Tensor
    second_mass: Tensor
    loss: Tensor
    grads: tuple[Tensor, ...]


def minibatch(run_seed: Tensor, step: Tensor, batch_size: int, examples: int) -> Tensor:
    """Indices of minibatch `step` of each run, drawn uniformly with replacement.

    Args:
        run_seed: int64 of any shape S.
        step: int64 broadcastable to S.
        batch_size: b, the number of indices in a minibatch.
        examples: size of the gradient split.

    Returns:
        int64 S + (b,).
    """
    return integers(run_seed, Stream.BATCH, step, batch_size, examples)


def _rules(rule: BaseRule, model: nn.Module) -> list[BaseRule]:
    """The rule of each parameter of a model."""
    named = list(model.named_parameters())
    hidden = muon_matrices(model)
    return [
        rule.for_tensor(param in hidden, blocks)
        for (_, param), blocks in zip(named, row_blocks(named), strict=True)
    ]


class InnerLoop:
    """The mathematics of training one task with one base optimizer.

    Attributes:
        task: the task.
        model: its architecture; the values of its own parameters are never looked at.
        names: names of the parameters, then of the buffers, in the order of `InnerState`.
        layout: the layer of each parameter.
        rule: the base optimizer.
        rules: its rule for each parameter.
    """

    def __init__(
        self,
        task: Task,
        *,
        base: str = "adamw",
        granularity: str = "per_layer",
        weight_decay: bool = False,
    ) -> None:
        """Build the task's model.

        Args:
            task: what is trained.
            base: a name of RULES.
            granularity: "per_layer" or "global".
            weight_decay: whether `Hyperparams.weight_decay` is looked at.

        Raises:
            ValueError: for an unknown name, or for a model with frozen parameters.
        """
        self.task = task
        self.model = build_model(task)
        named = list(self.model.named_parameters())
        frozen = [name for name, param in named if not param.requires_grad]
        if frozen:
            raise ValueError(
                f"parameters of task {task.name!r} are frozen ({', '.join(frozen[:3])}), but an "
                "inner loop trains all parameters: make them buffers, or let the task's data be "
                "the output of the frozen part"
            )
        buffer_names = [name for name, _ in self.model.named_buffers()]
        self.names = (*(name for name, _ in named), *buffer_names)
        self.layout: Layout = layout_of_named(named, granularity)
        self.rule = base_rule(base)
        self.rules = _rules(self.rule, self.model)
        self._weight_decay = weight_decay
        self._aliases = aliases_of(self.model)
        # Noise numbers the elements of the whole model, so each tensor starts where the last ended.
        self._starts = [sum(self.layout.sizes[:i]) for i in range(len(named))]

    def initial_state(self, run_seed: Tensor, dtype: torch.dtype) -> InnerState:
        """Start a training for each seed; there is no gradient yet.

        Args:
            run_seed: (B,) int64, on the device of the trainings.
            dtype: dtype of all other numbers.
        """
        runs = len(run_seed)
        params = initial_parameters(self.model, run_seed, dtype)
        zeros = params[0].new_zeros
        return InnerState(
            run_seed=run_seed,
            step=torch.zeros_like(run_seed),
            params=params,
            firsts=tuple(torch.zeros_like(p) for p in params),
            seconds=tuple(
                torch.zeros_like(p) if rule.family == "adam" else zeros(runs, 0)
                for rule, p in zip(self.rules, params, strict=True)
            ),
            first_mass=zeros(runs, self.layout.num_layers),
            second_mass=zeros(runs),
            grads=(),
            loss=zeros(runs),
            buffers=initial_buffers(self.model, run_seed, dtype),
        )

    def minibatches(self, state: InnerState, first: int, count: int, examples: int) -> Tensor:
        """Indices of `count` minibatches of each run, from number `state.step + first` on.

        Args:
            state: the trainings.
            first: 0 for the pending minibatch, 1 for the next one.
            count: K.
            examples: size of the gradient split.

        Returns:
            (K, B, b) int64.
        """
        ahead = torch.arange(first, first + count, device=state.step.device)
        steps = state.step + ahead.unsqueeze(1)
        return minibatch(state.run_seed.expand_as(steps), steps, self.task.batch_size, examples)

    def losses(
        self,
        params: tuple[Tensor, ...],
        buffers: tuple[Tensor, ...],
        inputs: Tensor,
        targets: Tensor,
        *,
        training: bool,
    ) -> Tensor:
        """Mean loss (B,) of each run on examples of its own, inputs and targets (B, n, ...)."""
        each = self.losses_of_each(params, buffers, inputs, targets, training=training)
        return each.view(len(inputs), -1).mean(1)

    def losses_of_each(
        self,
        params: tuple[Tensor, ...],
        buffers: tuple[Tensor, ...],
        inputs: Tensor,
        targets: Tensor,
        *,
        training: bool,
    ) -> Tensor:
        """Losses (B n,) of all examples of all runs, or a multiple of as many.

        In training mode the buffers are updated in place.

        Raises:
            ValueError: where the task's loss does not keep one value for each example.
        """
        if self.model.training != training:
            self.model.train(training)
        values = dict(zip(self.names, (*params, *buffers), strict=True))
        values |= {alias: values[name] for alias, name in self._aliases.items()}
        outputs = stacked_forward(self.model, values, inputs)
        each = self.task.loss(outputs.flatten(0, 1), targets.flatten(0, 1))
        _check_each(self.task.name, each, *targets.shape[:2])
        return each

    def gradient(
        self,
        params: tuple[Tensor, ...],
        buffers: tuple[Tensor, ...],
        examples: Split,
        indices: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss (B,) of a minibatch, and its gradient, per parameter (B, *shape).

        Args:
            params: per parameter (B, *shape).
            buffers: per buffer (B, *shape), updated in place.
            examples: the gradient split (n, ...).
            indices: (B, b) minibatch of each run; None where `examples` are the minibatches
                themselves, (B, b, ...).
        """
        inputs, targets = examples if indices is None else (part[indices] for part in examples)
        leaves = tuple(p.detach().requires_grad_() for p in params)
        with torch.enable_grad():
            losses = self.losses(leaves, buffers, inputs, targets, training=True)
            # No run's loss depends on another run's parameters, so the gradient of the sum holds
            # the gradient of every run.
            grads = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
        # Compiled functions return contiguous tensors; eager ones shall return the same layout.
        return losses.detach(), tuple(grad.contiguous() for grad in grads)

    def draw_noise(
        self, grads: tuple[Tensor, ...], level: Tensor, run_seed: Tensor, step: Tensor
    ) -> tuple[Tensor, ...]:
        """Noise to add to each gradient, per parameter (B, *shape).

        Args:
            grads: per parameter (B, *shape).
            level: (B, L) ratio of the noise to the gradient's root mean square.
            run_seed: (B,) int64.
            step: (B,) int64.
        """
        layers = self.layout.layer_of
        return tuple(
            gradient_noise(grad, level[:, layer], run_seed, step, start)
            for grad, layer, start in zip(grads, layers, self._starts, strict=True)
        )

    def inner_step(
        self,
        state: InnerState,
        hyper: Hyperparams,
        factor: Tensor,
        noise: tuple[Tensor, ...],
        examples: Split,
        indices: Tensor | None,
    ) -> StepResult:
        """Apply the pending gradient, and take that of the next minibatch.

        Both are one function, so that a compiler can fuse the passes over memory where they meet.
        Parameters, moments and buffers are updated in place.

        Args:
            state: the trainings.
            hyper: (B, L) each.
            factor: (B,) base schedule, which multiplies the learning rate.
            noise: per parameter (B, *shape) noise to add to the gradient; empty for none.
            examples: the gradient split (n, ...), or the next minibatches, see `gradient`.
            indices: (B, b) the next minibatch of each run, or None.
        """
        lr = hyper.lr * factor.unsqueeze(1)  # (B, L)
        masses = [
            self.rule.next_masses(
                MomentMasses(state.first_mass[:, layer], state.second_mass),
                hyper.momentum[:, layer],
            )
            for layer in range(self.layout.num_layers)
        ]
        seconds = self._seconds(state)
        for i, layer in enumerate(self.layout.layer_of):
            self.rules[i].step_(
                state.params[i],
                state.grads[i],
                state.firsts[i],
                seconds[i],
                masses[layer],
                lr=lr[:, layer],
                momentum=hyper.momentum[:, layer],
                weight_decay=hyper.weight_decay[:, layer] if self._weight_decay else None,
                noise=noise[i] if noise else None,
            )
        loss, grads = self.gradient(state.params, state.buffers, examples, indices)
        return StepResult(
            step=state.step + 1,
            first_mass=torch.stack([mass.first for mass in masses], dim=1),
            second_mass=masses[0].second,  # beta2 is constant, so it is the same in every layer
            loss=loss,
            grads=grads,
        )

    def stats(self, state: InnerState, momentum: Tensor) -> LayerStats:
        """Statistics (B, L) of the pending gradient; momentum (B, L)."""
        layers = self.layout.layer_of
        first_mass = torch.stack([state.first_mass[:, layer] for layer in layers], dim=1)
        second_mass = state.second_mass.unsqueeze(1).expand_as(first_mass)
        momentum = torch.stack([momentum[:, layer] for layer in layers], dim=1)  # (B, n)
        return measure(
            self.rules,
            self.layout,
            state.params,
            state.grads,
            state.firsts,
            self._seconds(state),
            MomentMasses(first_mass, second_mass),
            momentum,
        )

    def _seconds(self, state: InnerState) -> list[Tensor | None]:
        """Second moment of each parameter; None where its rule has none."""
        pairs = zip(self.rules, state.seconds, strict=True)
        return [second if rule.family == "adam" else None for rule, second in pairs]


def _check_each(task: str, each: Tensor, runs: int, examples: int) -> None:
    """Raise a ValueError where a task's loss does not keep one value for each example."""
    # A loss may keep several values for each example, such as one for each token.
    if each.ndim == 0 or len(each) % (runs * examples):
        raise ValueError(
            f"the loss of task {task!r} must keep one value for each example; got shape "
            f"{tuple(each.shape)} for {runs * examples} examples: give it reduction='none'"
        )
