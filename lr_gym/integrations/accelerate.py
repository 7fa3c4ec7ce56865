"""Accelerate: `accelerator.prepare` wraps the optimizer and hides its own methods.

Accelerate passes `step`, `zero_grad`, `eval` and `train` on. For the others, ask for the
PolicyOptimizer inside: `policy_optimizer(optimizer).observe(loss)`.
"""

from __future__ import annotations

from typing import Any

from lr_gym.optim import PolicyOptimizer

__all__ = ["policy_optimizer"]

# Attributes in which wrappers keep the optimizer that they wrap.
INNER = ("optimizer", "base_optimizer")


def policy_optimizer(optimizer: Any) -> PolicyOptimizer:
    """Find the PolicyOptimizer inside the wrappers of Accelerate and others.

    Args:
        optimizer: A PolicyOptimizer, or a wrapper around one.

    Raises:
        TypeError: There is no PolicyOptimizer inside.
    """
    inner = optimizer
    while True:
        wrapped = [getattr(inner, name) for name in INNER if hasattr(inner, name)]
        if not wrapped:
            break
        inner = wrapped[0]
    if not isinstance(inner, PolicyOptimizer):
        raise TypeError(
            f"there is no PolicyOptimizer inside {type(optimizer).__name__}, but "
            f"{type(inner).__name__}: make the training's optimizer a PolicyOptimizer"
        )
    return inner
