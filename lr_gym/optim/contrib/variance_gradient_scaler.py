"""VGS, the variance gradient scaler: shrink all gradients while they vary much for their size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.base import dense_grads, eager
from lr_gym.optim.contrib.adaptive_optimizer import ranks_of_step
from lr_gym.optim.contrib.pooling import any_sharded, pooled
from lr_gym.optim.distributed import local
from lr_gym.types import check_number

__all__ = ["VarianceGradientScaler", "normalized_variance"]


def normalized_variance(grad: Tensor, eps: float) -> Tensor:
    """Var[g] / (E[|g|]^2 + eps) over the elements of one gradient, in at least float32."""
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    return wide.var(correction=0) / (wide.abs().mean().square() + eps)


def _normalized_variances(grads: Sequence[Tensor], eps: float, ranks: Any) -> Tensor:
    """`normalized_variance` (n,) of n gradients of which some are sharded.

    n var = sum g^2 - (sum g)^2 / n cancels where the mean dominates, hence float64.
    """
    rows = []
    for grad in grads:
        wide = local(grad).to(torch.float64)
        rows.append(torch.stack([wide.sum(), wide.square().sum(), wide.abs().sum()]))
    table = pooled(torch.stack([row.to(rows[0].device) for row in rows]), grads, ranks)  # (n, 3)
    count = torch.tensor([grad.numel() for grad in grads]).to(table)
    mean, square, size = (table / count.unsqueeze(1)).unbind(1)
    return (square - mean.square()).clamp_min(0.0) / (size.square() + eps)


class VarianceGradientScaler:
    """Multiply every gradient by one factor max(1 / (1 + alpha * v), min_factor), in place.

    v is made in three steps: the normalised variance of each tensor, a
    quantile of these over the tensors, and a bias-corrected average of that over time. Tensors of
    a single element have no variance and are left out, as are gradients that are not finite. v
    does not depend on the scale of the gradients; for normally distributed elements it is pi / 2,
    so alpha 0.2 gives a factor of about 0.76.

        scaler = VarianceGradientScaler(model.parameters())
        loss.backward()
        scaler.step()  # after GradScaler.unscale_, where one is used
        optimizer.step()

    FSDP2 may shard the parameters: one small collective call a step measures whole tensors.

    Args:
        params: the tensors whose gradients are scaled.
        alpha: strength; 0 leaves the gradients alone.
        beta: decay of the running average of v.
        warmup_steps: number of first calls that measure without scaling.
        quantile: which quantile over the tensors stands for the model.
        eps: keeps v finite for a zero gradient; small, because any larger value sets a scale.
        min_factor: floor of the factor.
        process_group: the ranks that train this model together, see `PolicyOptimizer`.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        alpha: float = 0.2,
        *,
        beta: float = 0.99,
        warmup_steps: int = 100,
        quantile: float = 0.9,
        eps: float = 1e-30,
        min_factor: float = 1e-4,
        process_group: Any = None,
    ) -> None:
        self.params = list(params)
        if not self.params or not all(isinstance(p, Tensor) for p in self.params):
            raise ValueError(
                "params must be a non-empty list of tensors, for example model.parameters()"
            )
        check_number("alpha", alpha)
        check_number("beta", beta, 0.0, 1.0, below=True)
        check_number("warmup_steps", warmup_steps)
        check_number("quantile", quantile, 0.0, 1.0)
        check_number("eps", eps)
        check_number("min_factor", min_factor, 0.0, 1.0)
        self.alpha = alpha
        self.beta = beta
        self.warmup_steps = warmup_steps
        self.quantile = quantile
        self.eps = eps
        self.min_factor = min_factor
        self.process_group = process_group
        self.steps = 0
        self.average = torch.zeros(())  # running sum of weighted v
        self.mass = torch.zeros(())  # sum of the weights in it
        self._factor = torch.ones(())
        self._checked = False  # whether the parameters on all ranks were compared

    @eager  # a compiled function would not write the averages back
    @torch.no_grad()
    def step(self) -> Tensor:
        """Measure and scale the gradients; returns the factor, a tensor without dimensions."""
        _, grads = dense_grads(self.params)
        ranks = ranks_of_step(self.params, self.process_group, first=not self._checked)
        self._checked = True
        self._move(self.params[0].device)
        self.steps += 1
        measured = [grad for grad in grads if grad.numel() > 1]
        if any_sharded(measured, ranks):
            self._join_average(_normalized_variances(measured, self.eps, ranks).to(self.average))
        elif measured:
            variances = [normalized_variance(local(grad), self.eps) for grad in measured]
            self._join_average(torch.stack([v.to(self.average) for v in variances]))
        if self.steps <= self.warmup_steps:
            self._factor = torch.ones_like(self._factor)
            return self._factor
        mean = torch.where(self.mass > 0, self.average / self.mass, 0.0)
        self._factor = (1 / (1 + self.alpha * mean)).clamp_min(self.min_factor)
        for grad in grads:
            local(grad).mul_(self._factor.to(grad.device))
        return self._factor

    def _move(self, device: torch.device) -> None:
        """Follow parameters that were moved to another device after this scaler was made."""
        if self.average.device != device:
            self.average = self.average.to(device, non_blocking=True)
            self.mass = self.mass.to(device, non_blocking=True)
            self._factor = self._factor.to(device, non_blocking=True)

    def _join_average(self, variances: Tensor) -> None:
        """Let the quantile of the tensors' variances (T,) join the average, if any is finite."""
        finite = torch.where(variances.isfinite(), variances, torch.nan)
        v = finite.nanquantile(self.quantile)
        weight = torch.where(v.isfinite(), 1 - self.beta, 0.0)
        self.average.lerp_(v.nan_to_num(), weight)
        self.mass.lerp_(torch.ones_like(self.mass), weight)

    def metrics(self) -> dict[str, float]:
        """Factor of the last step and the average of v; reading them waits for the device."""
        mass = float(self.mass)
        return {
            "vgs/scaling_factor": float(self._factor),
            "vgs/normalized_variance": float(self.average) / mass if mass > 0 else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """Counters and averages; the options are the constructor's."""
        return {"steps": self.steps, "average": self.average, "mass": self.mass}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.steps = int(state_dict["steps"])
        self.average = state_dict["average"].to(self.average, copy=True)
        self.mass = state_dict["mass"].to(self.mass, copy=True)
