"""Runs of EnhancedSGD for its tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lr_gym.optim import EnhancedSGD

ALL_OFF: dict[str, Any] = {
    "q_learning": False,
    "entropy_adjustment": False,
    "gradient_buffer_size": 0,
    "lookahead_k": 0,
    "gradient_clipping": False,
    "loss_correction_factor": 1.0,
}

LOSSES = [1.0 + 0.01 * (-1) ** i for i in range(20)] + [5.0] + [1.0] * 20


def losses_of(
    optimizer: EnhancedSGD, params: list[Tensor], losses: list[float], start: int = 0
) -> None:
    """Steps on the gradients of `descend`, each with the loss of a closure.

    Gradient 25 is an outlier.
    """
    for step, loss in enumerate(losses, start):
        for p in params:
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            p.grad = (p.detach() - 1 + 0.1 * noise) * (20 if step == 25 else 1)
        optimizer.step(closure=lambda loss=loss: torch.tensor(loss), current_epoch=step // 5)  # type: ignore[misc]
