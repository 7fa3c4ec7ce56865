"""Minibatches of many runs: indices of examples that all runs share, or examples of their own."""

from __future__ import annotations

from torch import Tensor

from lr_gym.tasks.task import Split

__all__ = ["Batches", "batch_at", "batches_of", "one_step"]

# Indices of the gradient split, int64, or the examples of streams. The minibatches of K steps are
# (K, B, b, ...), those of one step (B, b, ...).
Batches = Tensor | Split


def batch_at(batches: Batches, k: int) -> Batches:
    """The minibatches of the k-th step."""
    return Split(*(part[k] for part in batches)) if isinstance(batches, Split) else batches[k]


def batches_of(batches: Batches, rows: slice) -> Batches:
    """The minibatches of K steps, of some runs."""
    if isinstance(batches, Split):
        return Split(*(part[:, rows] for part in batches))
    return batches[:, rows]


def one_step(batch: Batches) -> Batches:
    """The minibatches of one step as those of K = 1 steps."""
    if isinstance(batch, Split):
        return Split(*(part.unsqueeze(0) for part in batch))
    return batch.unsqueeze(0)
