"""Gradient Agreement.

A wrapper that scales each tensor's gradient by how well its elements agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_gym.optim.base import check_choice, dense_grads, evaluate, in_blocks, wide_norm
from lr_gym.types import check_number

__all__ = ["SCORES", "GradientAgreementOptimizer"]

SCORES = ("std", "std_over_rms", "snr")


def population_std(grad: Tensor) -> Tensor:
    """Standard deviation over all elements in at least float32, wrong by at most a rounding error of the mean.

    Accelerators have a fused kernel. On a CPU each block that fits the cache is centred on its own mean m_k, and
    n var = sum_k |g_k - m_k|^2 + n_k (m_k - m)^2 (Chan, Golub & LeVeque 1979), which reads memory once. E[g^2] - E[g]^2
    would cancel where the mean dominates.
    """
    dtype = torch.promote_types(grad.dtype, torch.float32)
    if grad.device.type != "cpu":
        return grad.to(dtype).std(correction=0)
    means, squares, counts = [], [], []
    for (piece,) in in_blocks(grad):
        wide = piece.to(dtype).reshape(-1)
        mean = wide.mean()
        wide = wide - mean
        squares.append(torch.dot(wide, wide))
        means.append(mean)
        counts.append(piece.numel())
    if len(counts) == 1:
        return (squares[0] / counts[0]).sqrt()
    shares = torch.tensor(counts, dtype=dtype) / grad.numel()
    column = torch.stack(means)
    between = (column - (shares * column).sum()).square()
    return (torch.stack(squares).sum() / grad.numel() + (shares * between).sum()).sqrt()


def snr_(grad: Tensor, state: dict[str, Any], beta: float) -> Tensor:
    """Temporal signal-to-noise ratio |m|^2 / v in [0, 1], where m and v are equally weighted averages.

    m averages the gradient, v its squared norm; both have the same weights, so Jensen's inequality bounds the
    ratio. It is 1 while all gradients are equal and about (1 - beta) / (1 + beta) where they are independent.
    """
    if not state:
        state.update(step=0, mean=torch.zeros_like(grad), power=torch.zeros_like(wide_norm(grad)))
    state["step"] += 1
    mean, power = state["mean"], state["power"]
    mean.lerp_(grad, 1 - beta)
    power.lerp_(wide_norm(grad).square(), 1 - beta)
    ratio = wide_norm(mean).square() / (power * (1 - beta ** state["step"]))
    return torch.where(power == 0, 1.0, ratio)


class GradientAgreementOptimizer(Optimizer):
    """Multiply each tensor's gradient by its agreement score s, then let the base optimizer step.

    | score            | s                                      | depends on the gradient's scale |
    | ---------------- | -------------------------------------- | ------------------------------- |
    | `"std"`          | 1 / (1 + std(g)), as in the source     | yes                             |
    | `"std_over_rms"` | 1 / (1 + std(g) / rms(g)), in [1/2, 1] | no                              |
    | `"snr"`          | |m|^2 / v over time, in [0, 1]         | no                              |

    std is the population one over the elements of the tensor. The wrapper owns no parameter groups:
    `param_groups`, `state` and `defaults` are the base's, so learning-rate schedulers and zero_grad
    work on either. Adam divides by the gradient's own scale and hence undoes any score that does
    not change over time.

    `p.grad` is scaled in place and stays scaled after the step, as torch's clip_grad_norm_ leaves
    it: call zero_grad before the next backward, as training loops do. With `restore_grad=True` the
    base sees a scaled copy, and `p.grad` is the original again after the step; that takes the
    memory of one more gradient and more time.

    Args:
        base_optimizer: any optimizer whose step needs no closure.
        score: one of `SCORES`.
        beta: decay of the averages of `"snr"`, which the other scores do not have.
        restore_grad: scale a copy instead of `p.grad` itself.
    """

    base_optimizer: Optimizer
    score: str
    beta: float
    restore_grad: bool
    _memory: dict[Tensor, dict[str, Any]]

    def __init__(
        self,
        base_optimizer: Optimizer,
        score: str = "std",
        beta: float = 0.9,
        *,
        restore_grad: bool = False,
    ) -> None:
        if isinstance(base_optimizer, torch.optim.LBFGS):
            raise TypeError(
                "LBFGS evaluates the closure several times a step: wrap a first-order optimizer "
                "instead"
            )
        if not isinstance(base_optimizer, Optimizer):
            raise TypeError(
                "base_optimizer must be a torch.optim.Optimizer, got "
                f"{type(base_optimizer).__name__}"
            )
        check_choice("score", score, SCORES)
        check_number("beta", beta, 0.0, 1.0, below=True)
        # Optimizer.__init__ would make parameter groups of its own; __setstate__ only sets up
        # hooks.
        options = {"score": score, "beta": beta, "restore_grad": restore_grad}
        self.__setstate__({"base_optimizer": base_optimizer, **options, "_memory": {}})

    def __getstate__(self) -> dict[str, Any]:
        names = ("base_optimizer", "score", "beta", "restore_grad", "_memory")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._scores: list[Tensor] = []
        self._buffers: dict[
            Tensor, Tensor
        ] = {}  # kept, because fresh memory costs more than the arithmetic
        super().__setstate__(state)
        base = self.base_optimizer
        self._optimizer_state_dict_pre_hooks = base._optimizer_state_dict_pre_hooks
        self._optimizer_state_dict_post_hooks = base._optimizer_state_dict_post_hooks
        self._optimizer_load_state_dict_pre_hooks = base._optimizer_load_state_dict_pre_hooks
        self._optimizer_load_state_dict_post_hooks = base._optimizer_load_state_dict_post_hooks

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's own list."""
        return self.base_optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state."""
        return self.base_optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimizer's defaults."""
        return self.base_optimizer.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the group to the base optimizer."""
        self.base_optimizer.add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Scale, then let the base step; the closure is evaluated once, before."""
        loss = evaluate(closure)
        params, grads = dense_grads([p for group in self.param_groups for p in group["params"]])
        self._scores = []
        try:
            for param, grad in zip(params, grads, strict=True):
                score = self._score(param, grad)
                self._scores.append(score)
                if self.restore_grad:
                    param.grad = torch.mul(grad, score, out=self._buffer(param, grad))
                else:
                    grad.mul_(score)
            self.base_optimizer.step()
        finally:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
        return loss

    def _buffer(self, param: Tensor, grad: Tensor) -> Tensor:
        buffer = self._buffers.get(param)
        if buffer is None or buffer.shape != grad.shape or buffer.dtype != grad.dtype:
            buffer = self._buffers[param] = torch.empty_like(grad)
        return buffer

    def _score(self, param: Tensor, grad: Tensor) -> Tensor:
        if self.score == "snr":
            return snr_(grad, self._memory.setdefault(param, {}), self.beta)
        std = population_std(grad)
        if self.score == "std_over_rms":
            rms = wide_norm(grad) / math.sqrt(grad.numel())
            std = torch.where(rms == 0, 0.0, std / rms)
        return 1 / (1 + std)

    def metrics(self) -> dict[str, float]:
        """Mean and extreme scores over the tensors of the last step, and the lr of the first group."""
        metrics = {"lr": float(self.param_groups[0]["lr"])}
        if self._scores:
            scores = [float(score) for score in self._scores]
            metrics |= {
                "agreement/mean": sum(scores) / len(scores),
                "agreement/min": min(scores),
                "agreement/max": max(scores),
            }
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The base's, with one more entry, "agreement"; the base optimizer itself can load it."""
        params = [p for group in self.param_groups for p in group["params"]]
        memory = {i: self._memory[p] for i, p in enumerate(params) if p in self._memory}
        return {**self.base_optimizer.state_dict(), "agreement": memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the base.

        From a state_dict of the bare base optimizer the scores start afresh.
        """
        self.base_optimizer.load_state_dict(
            {k: v for k, v in state_dict.items() if k != "agreement"}
        )
        params = [p for group in self.param_groups for p in group["params"]]
        self._memory = {
            params[i]: {
                k: v.to(params[i].device, copy=True) if isinstance(v, Tensor) else v
                for k, v in m.items()
            }
            for i, m in state_dict.get("agreement", {}).items()
        }
