"""Evaluator: losses of B trainings on the examples of a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.tasks.task import Split
from lr_gym.training.inner_loop import InnerLoop
from lr_gym.tree import slice_rows

__all__ = ["Evaluator"]

Network = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # parameters and buffers, (B, *shape) each


class Evaluator:
    """Losses in evaluation mode, in chunks that fit memory and in blocks of runs."""

    def __init__(
        self, loop: InnerLoop, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Compile nothing yet.

        Args:
            loop: the steps of the task's trainings.
            compiled: makes a function one that is compiled at its first call, if wanted.
        """
        self._loop = loop
        self._compiled = compiled
        # number of examples, and whether they are weighted -> function
        self._functions: dict[tuple[int, bool], Callable[..., Tensor]] = {}

    def losses(
        self,
        network: Network,
        examples: Split,
        blocks: Sequence[slice],
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean loss (B,) of each run.

        Args:
            network: parameters and buffers of the runs.
            examples: the split (n, ...).
            blocks: the runs that are computed together.
            weights: (B, n) weight of each example for each run, which add up to 1; None weighs all
                alike.
        """
        total = len(examples.inputs)
        # A large split is evaluated in chunks of about equal size, so that activations fit memory.
        count = -(-total // self._loop.task.chunk)
        chunks = [
            Split(*parts)
            for parts in zip(*(part.tensor_split(count) for part in examples), strict=True)
        ]
        if weights is not None:
            parts = zip(chunks, weights.tensor_split(count, dim=1), strict=True)
            return torch.stack([self._chunk(network, *part, blocks) for part in parts]).sum(0)
        losses = [self._chunk(network, chunk, None, blocks) for chunk in chunks]
        if len(losses) == 1:
            return losses[0]
        shares = (len(chunk.inputs) / total for chunk in chunks)
        return torch.stack([loss * share for loss, share in zip(losses, shares, strict=True)]).sum(
            0
        )

    def _chunk(
        self, network: Network, chunk: Split, weights: Tensor | None, blocks: Sequence[slice]
    ) -> Tensor:
        """Mean, or weighted sum (B,), of the losses on a chunk."""
        key = len(chunk.inputs), weights is not None
        if key not in self._functions:
            self._functions[key] = self._compiled(self._mean if weights is None else self._weighted)
        function = self._functions[key]
        own = () if weights is None else (weights.contiguous(),)
        return torch.cat(
            [function(*slice_rows(network, rows), chunk, *slice_rows(own, rows)) for rows in blocks]
        )

    def _mean(
        self, params: tuple[Tensor, ...], buffers: tuple[Tensor, ...], examples: Split
    ) -> Tensor:
        """Mean loss (B,) of each run on the same examples (n, ...)."""
        runs = len(params[0])
        inputs, targets = (part.expand(runs, *part.shape) for part in examples)
        return self._loop.losses(params, buffers, inputs, targets, training=False)

    def _weighted(
        self,
        params: tuple[Tensor, ...],
        buffers: tuple[Tensor, ...],
        examples: Split,
        weights: Tensor,
    ) -> Tensor:
        """Sum (B,) of the losses of the same examples, weighted by each run's weights (B, n)."""
        runs = len(params[0])
        inputs, targets = (part.expand(runs, *part.shape) for part in examples)
        each = self._loop.losses_of_each(params, buffers, inputs, targets, training=False)
        return (each.view(*weights.shape, -1).mean(2) * weights).sum(1)
