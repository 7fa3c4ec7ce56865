"""Hypergradient descent: the learning rate follows the angle between gradient and last update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lr_gym.optim.base import evaluate

__all__ = ["HypergradientAdam"]


class HypergradientAdam(Optimizer):
    """Adam-HD with the multiplicative rule of Baydin et al. (ICLR 2018, section 3).

    Let u be the last Adam direction and g the gradient that followed it. Then
    lr <- lr (1 + hyper_lr cos(g, u)): where g still points along u, the step was too short. The
    cosine has no scale, so that hyper_lr need not fit the size of the gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        hyper_lr: float = 0.02,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Start at a learning rate.

        Args:
            params: parameters or parameter groups.
            lr: initial learning rate.
            hyper_lr: how fast the learning rate changes; 0 gives Adam.
            betas: decay rates of the first and the second moment.
            eps: number added to the root of the second moment.

        Raises:
            ValueError: if `lr`, `hyper_lr` or `eps` is below 0.
        """
        for name, value in (("lr", lr), ("hyper_lr", hyper_lr), ("eps", eps)):
            if not value >= 0.0:
                raise ValueError(f"{name} must be at least 0; got {value!r}")
        super().__init__(
            params, {"lr": lr, "hyper_lr": hyper_lr, "betas": betas, "eps": eps, "step": 0}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every group's learning rate, then its parameters; return the closure's loss."""
        loss = evaluate(closure)
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            group["step"] += 1
            group["lr"] *= 1.0 + group["hyper_lr"] * self._cosine(live)
            for p in live:
                p.sub_(self._direction(p, group), alpha=group["lr"])
        return loss

    def _cosine(self, params: list[Tensor]) -> float:
        """Cosine between all gradients and the last directions, 0 at the first step."""
        pairs = [
            (p.grad, self.state[p]["direction"]) for p in params if "direction" in self.state[p]
        ]
        if not pairs:
            return 0.0
        grad, direction = (
            torch.cat([t.flatten() for t in side]) for side in zip(*pairs, strict=True)
        )
        return float(grad.dot(direction) / (grad.norm() * direction.norm()).clamp_min(1e-30))

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's step at lr 1 (Kingma & Ba 2015, algorithm 1), kept for the next hypergradient."""
        state = self.state[p]
        beta1, beta2 = group["betas"]
        t = group["step"]
        grad = p.grad
        assert grad is not None
        for name in ("m", "v"):
            state.setdefault(name, torch.zeros_like(p))
        state["m"].lerp_(grad, 1.0 - beta1)
        state["v"].mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        scale = (state["v"] / (1.0 - beta2**t)).sqrt_().add_(group["eps"])
        direction: Tensor = (state["m"] / (1.0 - beta1**t)).div_(scale)
        state["direction"] = direction
        return direction
