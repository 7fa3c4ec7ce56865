"""The weights at which an optimizer wants its model evaluated, and the way back to training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BATCH_NORM_BATCHES", "averaged_weights"]

# Averaged weights need running statistics of their own. Schedule-free's authors advise to collect
# them over 50 minibatches.
BATCH_NORM_BATCHES = 50


@contextlib.contextmanager
def averaged_weights(model: nn.Module, optimizer: Any, batches: Iterable[Tensor]) -> Iterator[None]:
    """Show a model at the averaged weights of its optimizer, and restore it afterwards.

    Weights and buffers are restored from copies, because the optimizer's own way back rounds:
    schedule-free interpolates.

    Args:
        model: model in training mode.
        optimizer: its optimizer, which has `eval()` and `train()` (see `Recipe.averages`).
        batches: inputs from which a model with batch norm takes its running statistics.
    """
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    optimizer.eval()
    try:
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            with torch.no_grad():
                for batch in batches:
                    model(batch)
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
