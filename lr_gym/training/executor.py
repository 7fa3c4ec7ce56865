"""How B inner trainings are executed: blocks of runs, ragged ends, compiling, CUDA graphs.

What a step computes is written in `inner_loop.py`. State goes in and comes out; its large tensors
are updated in place, so an old state must not be used again.

An executor that compiles does so for the number of runs of its first `init`. This takes a minute
the first time, and seconds once torch's cache on disk knows the task. Other numbers of runs are
computed eagerly, with equal results up to rounding. On a CPU the runs are compiled in blocks, which
train one after another. On a CUDA device an `advance` in which every run takes every step becomes
one CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.tasks.stream import DataStream, StreamPosition, advanced
from lr_gym.tasks.task import Data, Split, Task, check_source, examples_of_split
from lr_gym.training.batches import Batches, Draw, batch_at, batches_of, compiled_draw, one_step
from lr_gym.training.compiled import CompiledFunction, Compiler
from lr_gym.training.cuda_graph import CudaGraphCapture, CudaGraphFunction, copy_into
from lr_gym.training.evaluation import Evaluator
from lr_gym.training.inner_loop import InnerLoop, InnerState, StepResult
from lr_gym.tree import leaves_of, put_rows, slice_rows, take_rows, with_leaves
from lr_gym.types import Hyperparams, LayerStats, check_device

__all__ = ["Executor"]

# Bytes that a step of one block should go through. This is of the order of a core's cache, so that
# a block's numbers stay there from one step to the next.
BLOCK = 4_000_000


class Executor:
    """Runs B trainings of one task with one base optimizer.

    Attributes:
        task: what is trained.
        device: where everything lives.
        dtype: dtype of all numbers that are not integers.
        stream: the task's stream of data, on the device; None where the data are fixed.
        loop: the mathematics of the trainings.
        model: the task's architecture, see `InnerLoop`.
        names: names of parameters and buffers, see `InnerLoop`.
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
            dtype: dtype of all numbers that are not integers, torch.float32 or torch.float64.
                Narrower ones are too coarse for bias corrections and log losses.
            compile: whether steps, statistics and evaluations are compiled, as the module's
                docstring says.

        Raises:
            ValueError: for an argument that is not valid, or a task that cannot be trained.
        """
        self.device = check_device(device)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64; got {dtype}")
        self.dtype = dtype
        source = check_source(task.name, task.data()).to(self.device, dtype)
        self.stream = source if isinstance(source, DataStream) else None
        self._data = source if isinstance(source, Data) else None
        self.loop = InnerLoop(task, base=base, granularity=granularity, weight_decay=weight_decay)
        self.task = task
        self.model = self.loop.model
        self.names = self.loop.names
        self.layout = self.loop.layout
        self.rule = self.loop.rule
        self.rules = self.loop.rules
        self._noise = noise
        self._block = 0  # runs in a compiled block; the first `init` chooses their number
        self._compiler = Compiler() if compile else None
        # Noise and step are compiled apart, because inductor cannot schedule both as one.
        self._draw_noise = self._compiled(self.loop.draw_noise)
        self._inner_step = self._compiled(self.loop.inner_step)
        self._stats = self._compiled(self.loop.stats)
        self._evaluator = Evaluator(self.loop, self._compiled)
        self._compiled_draw: Draw | None = None
        if self.stream is not None and compile and self.device.type == "cpu":
            self._compiled_draw = compiled_draw(self.stream, task.batch_size)
        self._graph: CudaGraphFunction | None = None
        if compile and self.device.type == "cuda":
            capture = CudaGraphCapture(self.device)
            self._graph = CudaGraphFunction(self._advance_block, capture)

    @property
    def data(self) -> Data:
        """The task's splits, on the device; a ValueError for a stream, which has none."""
        if self._data is None:
            raise ValueError(f"task {self.task.name!r} is a stream of data: it has no splits")
        return self._data

    def init(self, run_seed: Tensor) -> InnerState:
        """Start a training for each seed, int64 (B,), and take the first gradient."""
        run_seed = run_seed.to(self.device, non_blocking=True)
        state = self.loop.initial_state(run_seed, self.dtype)
        if self.stream is not None:
            state = state._replace(stream=self.stream.start(run_seed, self.dtype))
        batches, stream = self._minibatches(state, 0, 1)
        state = state._replace(stream=())  # see `advance`
        batch = batch_at(batches, 0)
        if self._compiler is not None and not self._block:
            self._block = len(run_seed)
            if self.device.type == "cpu":  # a GPU computes all runs together
                one_run, one_batch = take_rows((state, batch), torch.tensor([0]))
                size = _working_set(self.loop, one_run, *self._examples(one_batch))
                self._block = _block_size(len(run_seed), size)
            self._warm_up(state, batch)
        return self._first_gradient(state, batch)._replace(stream=stream)

    def advance(
        self,
        state: InnerState,
        hyper: Hyperparams,
        factor: Tensor,
        limit: NDArray[np.int64] | None = None,
    ) -> tuple[InnerState, Tensor]:
        """Make K inner steps under one set of hyperparameters.

        Args:
            state: the trainings; this object must not be used afterwards.
            hyper: (B, L) each; its lr is multiplied by the factor of the step.
            factor: (K, B) base schedule of each step.
            limit: (B,) how many of the K steps each run takes; None for all.

        Returns:
            The state, and losses (K, B) of the minibatches drawn after each step, NaN for steps not
            taken.
        """
        runs = len(state.step)
        steps = len(factor)
        # A compiled function takes one layout of each input; a broadcast view would be another.
        hyper = Hyperparams(*(h.contiguous() for h in hyper))
        limit = np.full(runs, steps) if limit is None else limit
        batches, stream = self._minibatches(state, 1, steps, limit)
        # The position of a stream is no part of a step. It is new memory after every call, for
        # which a CUDA graph would be captured anew.
        trained = state._replace(stream=())
        blocks: list[InnerState] = []
        losses: list[Tensor] = []
        # Every block makes all its steps before the next one starts: its numbers stay in the
        # processor's cache meanwhile.
        for rows in self._blocks(runs):
            block = slice_rows(trained, rows)
            given = slice_rows(hyper, rows), factor[:, rows], batches_of(batches, rows)
            if self._graph is not None and (limit[rows] >= steps).all():
                after, loss = self._graph(block, *given)
            else:
                after, loss = self._advance_block(block, *given, limit[rows])
                if self._graph is not None:  # it will look for the state in the same memory
                    after = copy_into(block, after)
            blocks.append(after)
            losses.append(loss)
        joined = _joined(trained, blocks)._replace(stream=stream)
        return joined, torch.cat(losses, dim=1)

    def stats(self, state: InnerState, hyper: Hyperparams) -> LayerStats:
        """Statistics of the pending gradient, (B, L) each."""
        state = state._replace(stream=())
        stats: LayerStats = self._stats(state, hyper.momentum.contiguous())
        return stats

    @torch.no_grad()
    def evaluate(self, state: InnerState, split: str, weights: Tensor | None = None) -> Tensor:
        """Mean loss of each run on a split, in evaluation mode.

        Args:
            state: the trainings.
            split: one of SPLITS.
            weights: (B, n) weight of each example for each run, which add up to 1; None weighs all
                alike.

        Returns:
            (B,) losses.

        Raises:
            ValueError: for an unknown split, or one that the task has not.
        """
        examples = examples_of_split(self.task.name, self.data, split)
        blocks = self._blocks(len(state.step))
        return self._evaluator.losses((state.params, state.buffers), examples, blocks, weights)

    def _advance_block(
        self,
        state: InnerState,
        hyper: Hyperparams,
        factor: Tensor,
        batches: Batches,
        limit: NDArray[np.int64] | None = None,
    ) -> tuple[InnerState, Tensor]:
        """`advance` for runs that are computed together, on minibatches (K, B, b, ...)."""
        steps = len(factor)
        limit = np.full(len(state.step), steps) if limit is None else limit
        losses = state.loss.new_full(factor.shape, torch.nan)
        for k in range(min(steps, limit.max())):
            ended = np.flatnonzero(limit <= k)
            if len(ended):
                # Runs that have taken all their steps are computed along with the others and then
                # put back: without them the shapes would be others, for which nothing is compiled.
                idle = torch.from_numpy(ended).to(self.device, non_blocking=True)
                kept = take_rows(state, idle)
            noise = ()
            if self._noise:
                noise = self._draw_noise(state.grads, hyper.noise, state.run_seed, state.step)
            examples, indices = self._examples(batch_at(batches, k))
            result: StepResult = self._inner_step(state, hyper, factor[k], noise, examples, indices)
            state = state._replace(**result._asdict())
            losses[k] = state.loss
            if len(ended):
                state = put_rows(state, idle, kept)
                losses[k].index_fill_(0, idle, torch.nan)
        return state, losses

    def _minibatches(
        self, state: InnerState, first: int, count: int, limit: NDArray[np.int64] | None = None
    ) -> tuple[Batches, StreamPosition | tuple[()]]:
        """`count` minibatches of each run, from number `state.step + first` on.

        Returns:
            Indices (K, B, b), or the examples of a stream; and the position of the stream after the
            first `limit` (B,) of them, by default after all.
        """
        if self.stream is None:
            return self.loop.minibatches(state, first, count, len(self.data.gradient.inputs)), ()
        assert isinstance(state.stream, StreamPosition)
        ahead = torch.arange(first, first + count, device=self.device)
        steps = state.step + ahead.unsqueeze(1)
        if self._compiled_draw is not None and first:  # `init` draws one minibatch only
            batch, moments = self._compiled_draw(state.run_seed, state.stream, steps)
        else:
            batch, moments = self.stream.draw(
                state.run_seed, state.stream, steps, self.task.batch_size
            )
        made = torch.from_numpy(np.full(len(state.step), count) if limit is None else limit)
        made = made.to(self.device, non_blocking=True)
        position = advanced(state.stream, batch, moments, made)
        return Split(batch.inputs, batch.targets), position

    def _examples(self, batch: Batches) -> tuple[Split, Tensor | None]:
        """The last two arguments of `InnerLoop.gradient` for one minibatch of each run."""
        return (batch, None) if isinstance(batch, Split) else (self.data.gradient, batch)

    def _first_gradient(self, state: InnerState, batch: Batches) -> InnerState:
        """The state with the gradient of a minibatch (B, b, ...) pending."""
        loss, grads = self.loop.gradient(state.params, state.buffers, *self._examples(batch))
        return state._replace(loss=loss, grads=grads)

    def _warm_up(self, state: InnerState, batch: Batches) -> None:
        """Compile for the chosen block by making a step on a copy.

        This is done now and not in the first `advance`, because threads may be about to step
        several executors at once, and compiling happens one at a time.
        """
        rows = torch.arange(self._block, device=self.device)
        copy, batch = take_rows((state, batch), rows)
        ones = torch.ones_like(copy.first_mass)
        factor = torch.ones_like(copy.second_mass)
        self._advance_block(
            self._first_gradient(copy, batch),
            Hyperparams(ones, ones, ones, ones),
            factor.unsqueeze(0),
            one_step(batch),
        )

    def _blocks(self, runs: int) -> list[slice]:
        """The runs that are computed together: blocks of the compiled size, or all runs at once."""
        compiled = self._compiler is not None and not self._compiler.failed
        size = self._block if compiled and self._block and runs % self._block == 0 else runs
        return [slice(start, start + size) for start in range(0, runs, size)]

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which will be compiled at its first call if this executor compiles."""
        return function if self._compiler is None else CompiledFunction(self._compiler, function)


def _working_set(
    loop: InnerLoop, state: InnerState, examples: Split, indices: Tensor | None
) -> int:
    """Bytes that a step of these runs goes through: state, gradients and kept activations."""
    kept: dict[int, int] = {}  # address of a storage that backward needs -> its bytes

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        _, grads = loop.gradient(state.params, state.buffers, examples, indices)
    return sum(kept.values()) + sum(x.nbytes for x in leaves_of((state, grads)))


def _block_size(runs: int, size: int) -> int:
    """How many runs are computed together, when a step of one run goes through `size` bytes.

    It is what comes nearest to BLOCK bytes among the divisors of `runs`, since blocks must have one
    shape to be compiled once.
    """
    divisors = [count for count in range(1, runs + 1) if runs % count == 0]
    return min(divisors, key=lambda count: abs(math.log(count * size / BLOCK)))


def _joined(state: InnerState, blocks: Sequence[InnerState]) -> InnerState:
    """The state of all runs after its blocks have advanced.

    Parameters, moments and buffers of a block are views of the state's, updated in place; only what
    a step returns anew is put together.
    """
    if len(blocks) == 1:
        return blocks[0]
    anew = [StepResult(*(getattr(block, name) for name in StepResult._fields)) for block in blocks]
    columns = zip(*map(leaves_of, anew), strict=True)
    joined = with_leaves(anew[0], [torch.cat(column) for column in columns])
    return state._replace(**joined._asdict())
