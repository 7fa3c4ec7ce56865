"""Gradient Agreement: a wrapper that scales each tensor's gradient by how well it agrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_gym.optim.base import check_choice, dense_grads, evaluate
from lr_gym.optim.contrib.agreement_scores import SCORES, agreement_score
from lr_gym.types import check_number

__all__ = ["GradientAgreementOptimizer"]


class GradientAgreementOptimizer(Optimizer):
    """Multiply each tensor's gradient by its agreement score s, then let the base optimizer step.

    | score            | s                                      | depends on the gradient's scale |
    | ---------------- | -------------------------------------- | ------------------------------- |
    | `"std"`          | 1 / (1 + std(g)), as in the source     | yes                             |
    | `"std_over_rms"` | 1 / (1 + std(g) / rms(g)), in [1/2, 1] | no                              |
    | `"snr"`          | |m|^2 / v over time, in [0, 1]         | no                              |

    std is the population standard deviation over the elements of the tensor. Adam divides by the
    gradient's own scale, so it undoes any score that does not change over time.

    The wrapper owns no parameter groups: `param_groups`, `state` and `defaults` are the base's, so
    learning-rate schedulers and zero_grad work on either.

    `p.grad` is scaled in place and stays scaled after the step, as torch's clip_grad_norm_ leaves
    it: call zero_grad before the next backward, as training loops do. With `restore_grad=True` the
    base sees a scaled copy, and `p.grad` is the original again after the step; that takes the
    memory of one more gradient and more time.

    Args:
        base_optimizer: any optimizer whose step needs no closure.
        score: one of "std", "std_over_rms" and "snr".
        beta: decay of the averages of "snr"; the other scores do not use it.
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
        # Kept from step to step, because fresh memory costs more than the arithmetic.
        self._buffers: dict[Tensor, Tensor] = {}
        super().__setstate__(state)
        # Hooks on checkpoints belong to the base, so that they fire once on either.
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
        """Scale, then let the base step; the closure is called once, before both."""
        loss = evaluate(closure)
        params, grads = dense_grads(self._params())
        self._scores = []
        try:
            for param, grad in zip(params, grads, strict=True):
                memory = self._memory.setdefault(param, {}) if self.score == "snr" else {}
                score = agreement_score(self.score, grad, memory, self.beta)
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

    def metrics(self) -> dict[str, float]:
        """Mean and extreme scores of the last step's tensors, and the lr of the first group."""
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
        """The base's state, with one more entry, "agreement"; the base itself can load it."""
        params = self._params()
        memory = {i: self._memory[p] for i, p in enumerate(params) if p in self._memory}
        return {**self.base_optimizer.state_dict(), "agreement": memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the base; from a state of the bare base, the scores start afresh."""
        base_state = {k: v for k, v in state_dict.items() if k != "agreement"}
        self.base_optimizer.load_state_dict(base_state)
        params = self._params()
        self._memory = {
            params[i]: _copied(memory, params[i].device)
            for i, memory in state_dict.get("agreement", {}).items()
        }

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


def _copied(memory: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, copy=True) if isinstance(value, Tensor) else value
        for name, value in memory.items()
    }
