"""Gradient Agreement: a wrapper that scales each tensor's gradient by how well it agrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_gym.optim.base import check_choice, dense_grads, eager, evaluate
from lr_gym.optim.contrib.adaptive_optimizer import keep_saved_types, ranks_of_step
from lr_gym.optim.contrib.agreement_scores import SCORES, agreement_scores, snr_memory
from lr_gym.optim.distributed import local
from lr_gym.optim.first_step import only_initialises
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

    The wrapper owns nothing: `param_groups`, `state` and `defaults` are the base's, so
    learning-rate schedulers, zero_grad and checkpoints work on either. The averages of "snr" are
    in the base's state, under keys that begin with "agreement_". What only the base has, such as
    `observe`, `eval` and `train` of a PolicyOptimizer, is reached through the wrapper.

    FSDP2 may shard the parameters: one small collective call a step makes scores of whole tensors.

    `p.grad` is scaled in place and stays scaled after the step, as torch's clip_grad_norm_ leaves
    it: call zero_grad before the next backward, as training loops do. With `restore_grad=True` the
    base sees a scaled copy, and `p.grad` is the original again after the step; that takes the
    memory of one more gradient and more time.

    Args:
        base_optimizer: any optimizer whose step needs no closure.
        score: one of "std", "std_over_rms" and "snr".
        beta: decay of the averages of "snr"; the other scores do not use it.
        restore_grad: scale a copy instead of `p.grad` itself.
        process_group: the ranks that train this model together, see `PolicyOptimizer`.
    """

    base_optimizer: Optimizer
    score: str
    beta: float
    restore_grad: bool
    process_group: Any

    def __init__(
        self,
        base_optimizer: Optimizer,
        score: str = "std",
        beta: float = 0.9,
        *,
        restore_grad: bool = False,
        process_group: Any = None,
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
        options["process_group"] = process_group
        self.__setstate__({"base_optimizer": base_optimizer, **options})

    def __getattr__(self, name: str) -> Any:
        """What only the base has; private names are never looked up there."""
        if name.startswith("_") or "base_optimizer" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base_optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        names = ("base_optimizer", "score", "beta", "restore_grad", "process_group")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._scores: list[Tensor] = []
        self._checked = False  # whether the parameters on all ranks were compared
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
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's own list."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """Give the base another list, as Lightning's BaseFinetuning does."""
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        """Give the base another state."""
        self.base_optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's defaults."""
        return self.base_optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        """Give the base other defaults."""
        self.base_optimizer.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the group to the base optimizer."""
        self.base_optimizer.add_param_group(param_group)

    @eager  # a compiled function would not write the averages back
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Scale, then let the base step; the closure is called once, before both."""
        loss = evaluate(closure)
        params, grads = dense_grads(self._params())
        ranks = ranks_of_step(self._params(), self.process_group, first=not self._checked)
        self._checked = True
        if only_initialises(self.param_groups, self.state, ranks):
            self.base_optimizer.step()
            if self.score == "snr":
                for param, grad in zip(params, grads, strict=True):
                    self.state[param].update(snr_memory(grad))
            return loss
        memories = [self.state.get(param, {}) for param in params]
        self._scores, fresh = agreement_scores(self.score, grads, memories, self.beta, ranks)
        try:
            for param, grad, score in zip(params, grads, self._scores, strict=True):
                if self.restore_grad:
                    scaled = self._buffer(param, grad)
                    torch.mul(local(grad), score, out=local(scaled))
                    param.grad = scaled
                else:
                    local(grad).mul_(score)
            self.base_optimizer.step()
        finally:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
        # After the base's step, because many optimizers make their state where there is none.
        for param, memory in zip(params, fresh, strict=True):
            if memory:
                self.state[param].update(memory)
        return loss

    def _buffer(self, param: Tensor, grad: Tensor) -> Tensor:
        buffer = self._buffers.get(param)
        kinds = [(x.shape, x.dtype, x.device) for x in (buffer, grad) if x is not None]
        if buffer is None or kinds[0] != kinds[1]:
            buffer = self._buffers[param] = torch.empty_like(grad)
        return buffer

    def metrics(self) -> dict[str, float]:
        """Mean and extreme scores of the last step's tensors, lr, and the metrics of the base."""
        own = getattr(self.base_optimizer, "metrics", None)
        metrics: dict[str, float] = {} if own is None else own()
        metrics = {"lr": float(self.param_groups[0]["lr"]), **metrics}
        if self._scores:
            scores = [float(score) for score in self._scores]
            metrics |= {
                "agreement/mean": sum(scores) / len(scores),
                "agreement/min": min(scores),
                "agreement/max": max(scores),
            }
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The base's state; the base itself can load it."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load into the base; from a state of the bare base, the scores start afresh."""
        loaded: dict[str, Any] = {}  # what is loaded after all hooks that the user has registered
        hook = self.base_optimizer.register_load_state_dict_pre_hook(
            lambda _, given: loaded.update(given)
        )
        try:
            self.base_optimizer.load_state_dict(state_dict)
        finally:
            hook.remove()
        keep_saved_types(self.state, self._params(), loaded, only="agreement_")

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]
