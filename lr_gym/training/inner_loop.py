"""B inner trainings of one task in lock-step: initial parameters, gradients, updates, losses.

The state always holds the gradient of a minibatch that has not been applied yet, which is what
`optimizer.step()` finds after `loss.backward()`. State goes in and comes out; its large tensors are
updated in place, so an old state must not be used again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lr_gym.control.layer_stats import measure
from lr_gym.layers import Layout, layout_of_named, muon_matrices
from lr_gym.rng import Stream, integers
from lr_gym.tasks.initial import build_model, initial_buffers, initial_parameters
from lr_gym.tasks.stacked import stacked_forward
from lr_gym.tasks.task import SPLITS, Split, Task, check_data
from lr_gym.training.compiled import Compiler
from lr_gym.training.cuda_graph import Captured, CudaCapture
from lr_gym.tree import leaves_of, put_rows, slice_rows, take_rows
from lr_gym.types import Hyperparams, LayerStats, check_device
from lr_gym.updates.rules import MomentScale, base_rule, gradient_noise, step_

__all__ = ["InnerLoop", "InnerState", "minibatch"]

# bytes that the runs go through which are computed together, of the order of a core's cache
BLOCK = 4_000_000


class InnerState(NamedTuple):
    """B trainings; changes at every inner step.

    Attributes:
        run_seed: (B,) int64; with the hyperparameters it determines the training.
        step: (B,) int64 updates made so far.
        params: per parameter (B, *shape).
        firsts: per parameter (B, *shape) momentum buffer or first moment.
        seconds: per parameter (B, *shape) second moment, (B, 0) for Muon's matrices; empty for SGD.
        first_mass: (B, L) see `update.MomentScale`.
        second_mass: (B,) the same of the second moment.
        grads: per parameter (B, *shape) gradient of minibatch `step`, pending.
        loss: (B,) loss of that minibatch.
        buffers: per buffer (B, *shape) after that minibatch: running statistics, counters, the
            run's own problem.
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


def minibatch(run_seed: Tensor, step: Tensor, batch_size: int, examples: int) -> Tensor:
    """Indices of minibatch `step` of each run, drawn uniformly with replacement.

    Args:
        run_seed: int64 of any shape S.
        step: int64 broadcastable to S.
        batch_size: b.
        examples: size of the gradient split.

    Returns:
        int64 S + (b,).
    """
    return integers(run_seed, Stream.BATCH, step, batch_size, examples)


class InnerLoop:
    """The batched training of one task with one base optimizer."""

    def __init__(
        self,
        task: Task,
        *,
        base: str = "adamw",
        granularity: str = "per_layer",
        noise: bool = False,
        weight_decay: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> None:
        """Load the task's data onto the device.

        Args:
            task: what is trained.
            base: a name of RULES.
            granularity: "per_layer" or "global".
            noise: whether `Hyperparams.noise` is looked at; drawing it costs more than the update.
            weight_decay: whether `Hyperparams.weight_decay` is looked at.
            device: where everything lives.
            dtype: of everything, float32 or float64: others are too narrow for bias corrections and
                log losses.
            compile: whether updates, gradients, statistics and evaluation are compiled for the
                number of runs of the first `init`, which takes a minute the first time and seconds
                once torch's cache on disk knows the task; other numbers of runs are computed as
                they stand, and equal results to rounding. On a CPU it is compiled for blocks of
                these runs, which train one after another; on a CUDA device the steps of an
                `advance` in which every run takes every step become one CUDA graph.
        """
        self.task = task
        self.device = check_device(device)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64; got {dtype}")
        self.dtype = dtype
        self.data = check_data(task.name, task.data()).to(self.device, dtype)
        self.model = build_model(task)
        named = list(self.model.named_parameters())
        if frozen := [name for name, param in named if not param.requires_grad]:
            raise ValueError(
                f"parameters of task {task.name!r} are frozen ({', '.join(frozen[:3])}), and all "
                "are trained: make "
                "them buffers, or the data what the frozen part makes of it"
            )
        self.names = (
            *(name for name, _ in named),
            *(name for name, _ in self.model.named_buffers()),
        )
        self._aliases = _aliases(self.model)
        self.layout: Layout = layout_of_named(named, granularity)
        self.rule = base_rule(base)
        hidden = muon_matrices(self.model)
        self.rules = [self.rule.of(param in hidden) for _, param in named]
        self._starts = [sum(self.layout.sizes[:i]) for i in range(len(named))]
        self._noise = noise
        self._weight_decay = weight_decay
        self._compiler = Compiler() if compile else None
        self._draw_noise = self._fixed(
            self._plain_noise
        )  # apart: inductor cannot schedule both as one
        self._step_ = self._fixed(self._plain_step_)
        self._measure = self._fixed(self._plain_measure)
        capture = CudaCapture(self.device) if compile and self.device.type == "cuda" else None
        self._graph = None if capture is None else Captured(self._all_steps_, capture)
        self._block = 0  # runs that are computed together once compiled
        self._evaluations: dict[int, Callable[..., Any]] = {}  # by number of examples

    def init(self, run_seed: Tensor) -> InnerState:
        """Start a training for each seed, int64 (B,), and take the first gradient."""
        run_seed = run_seed.to(self.device, non_blocking=True)
        params = initial_parameters(self.model, run_seed, self.dtype)
        runs, zeros = len(run_seed), tuple(torch.zeros_like(p) for p in params)
        state = InnerState(
            run_seed=run_seed,
            step=torch.zeros_like(run_seed),
            params=params,
            firsts=zeros,
            seconds=tuple(
                torch.zeros_like(p) if rule.family == "adam" else p.new_zeros(runs, 0)
                for rule, p in zip(self.rules, params, strict=True)
                if rule.family != "sgd"
            ),
            first_mass=params[0].new_zeros(runs, self.layout.num_layers),
            second_mass=params[0].new_zeros(runs),
            grads=(),
            loss=params[0].new_zeros(runs),
            buffers=initial_buffers(self.model, run_seed, self.dtype),
        )
        indices = self._indices(state, 0, 1)[0]
        if self._compiler is not None and not self._block:
            self._warm_up(state, indices)
        return self._gradient(state, indices)

    def _warm_up(self, state: InnerState, indices: Tensor) -> None:
        """Choose the block and compile for it.

        Now, since threads may be about to step several loops at once.
        """
        self._block = runs = len(state.step)
        if self.device.type == "cpu":
            need = self._working_set(take_rows(state, torch.tensor([0])), indices[:1])
            divisors = [size for size in range(1, runs + 1) if runs % size == 0]
            self._block = min(divisors, key=lambda size: abs(math.log(size * need / BLOCK)))
        rows = torch.arange(self._block, device=self.device)
        copy, indices = take_rows((state, indices), rows)
        ones, factor = torch.ones_like(copy.first_mass), torch.ones_like(copy.second_mass)
        self._step(
            self._gradient(copy, indices), Hyperparams(ones, ones, ones, ones), factor, indices
        )

    def _working_set(self, state: InnerState, indices: Tensor) -> int:
        """Bytes that a step of these runs goes through.

        State, gradients, and what backward keeps from forward.
        """
        kept: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            _, grads = self._loss_and_grads(
                state.params, state.buffers, self.data.gradient, indices
            )
        return sum(kept.values()) + sum(x.nbytes for x in leaves_of((state, grads)))

    def advance(
        self,
        state: InnerState,
        hyper: Hyperparams,
        factor: Tensor,
        limit: NDArray[np.int64] | None = None,
    ) -> tuple[InnerState, Tensor]:
        """Make K inner steps under one set of hyperparameters.

        Args:
            state: not to be used afterwards.
            hyper: (B, L) each; its lr is multiplied by the factor of the step.
            factor: (K, B) base schedule of each step.
            limit: (B,) how many of the K steps each run takes, None for all.

        Returns:
            The state, and losses (K, B) of the minibatches drawn after each step, NaN for steps not
            taken.
        """
        runs, hyper = len(state.step), Hyperparams(*(h.contiguous() for h in hyper))
        indices = self._indices(state, 1, len(factor))
        limit = np.full(runs, len(factor)) if limit is None else limit
        blocks, losses = [], []
        for rows in self._blocks(
            runs
        ):  # each to the end: its numbers stay in the processor's cache meanwhile
            block, loss = self._advance(
                slice_rows(state, rows),
                slice_rows(hyper, rows),
                factor[:, rows],
                indices[:, rows],
                limit[rows],
            )
            blocks.append(block)
            losses.append(loss)
        return _joined(state, blocks), torch.cat(losses, dim=1)

    def _advance(
        self,
        state: InnerState,
        hyper: Hyperparams,
        factor: Tensor,
        indices: Tensor,
        limit: NDArray[np.int64],
    ) -> tuple[InnerState, Tensor]:
        """`advance` of a block of runs on minibatches `indices` (K, B, b)."""
        if self._graph is None:
            return self._steps(state, hyper, factor, indices, limit)
        if (limit >= len(factor)).all():
            return state, self._graph(state, hyper, factor, indices)
        now, losses = self._steps(state, hyper, factor, indices, limit)
        return _in_place(state, now), losses  # where the graph will look for it

    def _steps(
        self,
        state: InnerState,
        hyper: Hyperparams,
        factor: Tensor,
        indices: Tensor,
        limit: NDArray[np.int64],
    ) -> tuple[InnerState, Tensor]:
        """`_advance`, step by step."""
        losses = state.loss.new_full(factor.shape, torch.nan)
        for k in range(min(len(factor), limit.max())):
            if (limit > k).all():
                state = self._step(state, hyper, factor[k], indices[k])
                losses[k] = state.loss
                continue
            idle = torch.from_numpy(np.flatnonzero(limit <= k)).to(self.device, non_blocking=True)
            kept = take_rows(state, idle)
            state = put_rows(self._step(state, hyper, factor[k], indices[k]), idle, kept)
            losses[k] = state.loss.index_fill(0, idle, torch.nan)
        return state, losses

    def _all_steps_(
        self, state: InnerState, hyper: Hyperparams, factor: Tensor, indices: Tensor
    ) -> Tensor:
        """`_steps` of runs that take every one: all of the state goes on in place.

        The losses (K, B).
        """
        now, losses = self._steps(
            state, hyper, factor, indices, np.full(len(state.step), len(factor))
        )
        _in_place(state, now)
        return losses

    def stats(self, state: InnerState, hyper: Hyperparams) -> LayerStats:
        """Per-layer statistics of the pending gradient, (B, L) each."""
        moments = (state.firsts, state.seconds, state.first_mass, state.second_mass)
        stats: LayerStats = self._measure(
            state.params, state.grads, *moments, hyper.momentum.contiguous()
        )
        return stats

    @torch.no_grad()
    def evaluate(self, state: InnerState, split: str) -> Tensor:
        """Mean loss of each run on a split, one of SPLITS, in evaluation mode: (B,)."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        examples: Split = getattr(self.data, split)
        total = len(examples.inputs)
        count = -(-total // self.task.chunk)
        pieces = [
            Split(*parts)
            for parts in zip(*(part.tensor_split(count) for part in examples), strict=True)
        ]
        weights, blocks = (state.params, state.buffers), self._blocks(len(state.step))
        losses = [
            torch.cat(
                [
                    self._evaluation(len(piece.inputs))(*slice_rows(weights, rows), piece)
                    for rows in blocks
                ]
            )
            for piece in pieces
        ]
        if len(pieces) == 1:
            return losses[0]
        shares = [len(piece.inputs) / total for piece in pieces]
        return torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum(
            0
        )

    def _blocks(self, runs: int) -> list[slice]:
        """What is computed one after another.

        Blocks of the compiled size, or everything at once.
        """
        compiled = self._compiler is not None and not self._compiler.failed
        size = self._block if compiled and self._block and runs % self._block == 0 else runs
        return [slice(start, start + size) for start in range(0, runs, size)]

    def _fixed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self._compiler is None else self._compiler.fixed(function)

    def _evaluation(self, examples: int) -> Callable[..., Tensor]:
        """`_plain_evaluation` for a number of examples."""
        if examples not in self._evaluations:
            self._evaluations[examples] = self._fixed(self._plain_evaluation)
        return self._evaluations[examples]

    def _plain_evaluation(
        self, params: tuple[Tensor, ...], buffers: tuple[Tensor, ...], piece: Split
    ) -> Tensor:
        runs = len(params[0])
        each = (part.expand(runs, *part.shape) for part in piece)
        return self._losses(params, buffers, *each, training=False)

    def _losses(
        self,
        params: tuple[Tensor, ...],
        buffers: tuple[Tensor, ...],
        inputs: Tensor,
        targets: Tensor,
        *,
        training: bool,
    ) -> Tensor:
        """Mean loss of each run (B,); in training mode the buffers are updated in place."""
        if self.model.training != training:
            self.model.train(training)
        values = dict(zip(self.names, (*params, *buffers), strict=True))
        values |= {alias: values[name] for alias, name in self._aliases.items()}
        outputs = stacked_forward(self.model, values, inputs)
        each = self.task.loss(outputs.flatten(0, 1), targets.flatten(0, 1))
        if each.ndim == 0 or len(each) % (targets.shape[0] * targets.shape[1]):
            raise ValueError(
                f"the loss of task {self.task.name!r} must keep one value for each example; got "
                "shape "
                f"{tuple(each.shape)} for {targets.shape[0] * targets.shape[1]} examples: give it "
                "reduction='none'"
            )
        return each.view(len(inputs), -1).mean(1)

    def _indices(self, state: InnerState, first: int, count: int) -> Tensor:
        """Minibatches state.step + first, ..., count of them: (count, B, b)."""
        steps = state.step + torch.arange(first, first + count, device=self.device).unsqueeze(1)
        seeds = state.run_seed.expand_as(steps)
        return minibatch(seeds, steps, self.task.batch_size, len(self.data.gradient.inputs))

    def _gradient(self, state: InnerState, indices: Tensor) -> InnerState:
        """Gradient of the mean loss over the minibatch `indices` (B, b).

        Rows do not touch each other.
        """
        loss, grads = self._loss_and_grads(state.params, state.buffers, self.data.gradient, indices)
        return state._replace(grads=grads, loss=loss)

    def _step(
        self, state: InnerState, hyper: Hyperparams, factor: Tensor, indices: Tensor
    ) -> InnerState:
        """Apply the pending gradient with lr * factor, factor (B,), and take that of the minibatch `indices` (B, b)."""
        noise = (
            self._draw_noise(state.grads, hyper.noise, state.run_seed, state.step)
            if self._noise
            else ()
        )
        step, first_mass, second_mass, loss, grads = self._step_(
            state, hyper, factor, noise, self.data.gradient, indices
        )
        return state._replace(
            step=step, first_mass=first_mass, second_mass=second_mass, loss=loss, grads=grads
        )

    def _plain_step_(
        self,
        state: InnerState,
        hyper: Hyperparams,
        factor: Tensor,
        noise: tuple[Tensor, ...],
        examples: Split,
        indices: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Masses after an update, loss and gradients at the new weights.

        One function, so one pass where they meet.
        """
        masses = self._update_(state, hyper, factor, noise)
        return *masses, *self._loss_and_grads(state.params, state.buffers, examples, indices)

    def _loss_and_grads(
        self,
        params: tuple[Tensor, ...],
        buffers: tuple[Tensor, ...],
        examples: Split,
        indices: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        inputs, targets = (part[indices] for part in examples)
        leaves = tuple(p.detach().requires_grad_() for p in params)
        with torch.enable_grad():
            loss = self._losses(leaves, buffers, inputs, targets, training=True)
            grads = torch.autograd.grad(loss.sum(), leaves, materialize_grads=True)
        return loss.detach(), tuple(
            grad.contiguous() for grad in grads
        )  # one layout, compiled or not

    def _plain_measure(
        self,
        params: tuple[Tensor, ...],
        grads: tuple[Tensor, ...],
        firsts: tuple[Tensor, ...],
        seconds: tuple[Tensor, ...],
        first_mass: Tensor,
        second_mass: Tensor,
        momentum: Tensor,
    ) -> LayerStats:
        layers = self.layout.layer_of
        masses, momenta = (
            torch.stack([x[:, layer] for layer in layers], dim=1) for x in (first_mass, momentum)
        )
        scale = MomentScale(masses, second_mass.unsqueeze(1).expand_as(masses))
        return measure(
            self.rules, self.layout, params, grads, firsts, self._present(seconds), scale, momenta
        )

    def _present(self, seconds: tuple[Tensor, ...]) -> list[Tensor | None]:
        """Second moments, None where the rule has none."""
        if not seconds:
            return [None] * len(self.rules)
        return [
            s if rule.family == "adam" else None
            for rule, s in zip(self.rules, seconds, strict=True)
        ]

    def _plain_noise(
        self, grads: tuple[Tensor, ...], level: Tensor, run_seed: Tensor, step: Tensor
    ) -> tuple[Tensor, ...]:
        """What to add to each gradient."""
        layers = self.layout.layer_of
        return tuple(
            gradient_noise(grad, level[:, layer], run_seed, step, start)
            for grad, layer, start in zip(grads, layers, self._starts, strict=True)
        )

    def _update_(
        self, state: InnerState, hyper: Hyperparams, factor: Tensor, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        lr = hyper.lr * factor.unsqueeze(1)
        scales = [
            MomentScale(state.first_mass[:, layer], state.second_mass).advanced(
                self.rule, hyper.momentum[:, layer]
            )
            for layer in range(self.layout.num_layers)
        ]
        seconds = self._present(state.seconds)
        for i, layer in enumerate(self.layout.layer_of):
            step_(
                self.rules[i],
                state.params[i],
                state.grads[i],
                state.firsts[i],
                seconds[i],
                scales[layer],
                lr=lr[:, layer],
                momentum=hyper.momentum[:, layer],
                weight_decay=hyper.weight_decay[:, layer] if self._weight_decay else None,
                noise=noise[i] if noise else None,
            )
        return (
            state.step + 1,
            torch.stack([scale.mass for scale in scales], dim=1),
            scales[0].second,
        )


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of parameters and buffers that a model holds more than once -> the first one."""
    every = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    first: dict[int, str] = {}
    return {
        name: known
        for name, tensor in every
        if (known := first.setdefault(id(tensor), name)) != name
    }


def _in_place(state: InnerState, now: InnerState) -> InnerState:
    """The state `now` in the memory of `state`."""
    for old, new in zip(leaves_of(state), leaves_of(now), strict=True):
        if new is not old:
            old.copy_(new)
    return state


def _joined(state: InnerState, blocks: Sequence[InnerState]) -> InnerState:
    """The state whose runs went on block by block; what is updated in place is in place already."""
    if len(blocks) == 1:
        return blocks[0]
    return state._replace(
        step=torch.cat([block.step for block in blocks]),
        first_mass=torch.cat([block.first_mass for block in blocks]),
        second_mass=torch.cat([block.second_mass for block in blocks]),
        grads=tuple(
            torch.cat(parts) for parts in zip(*(block.grads for block in blocks), strict=True)
        ),
        loss=torch.cat([block.loss for block in blocks]),
    )
