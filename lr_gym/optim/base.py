"""What the optimizers share: checks of arguments and gradients, whole checkpoints, logging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lr_gym.layers import layout_of_named, layout_of_tensors
from lr_gym.types import check_number

__all__ = [
    "AdaptiveOptimizer",
    "check_choice",
    "dense_grads",
    "evaluate",
    "groups_with_grads",
    "layers_of",
    "log_metrics",
    "state_tensors",
    "wide_norm",
]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError that lists the valid values unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """Call the closure, if there is one, with gradients enabled and return what it returns."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def dense_grads(params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient and at least one element, and their gradients.

    Raises:
        RuntimeError: a gradient is sparse or complex.
    """
    active = []
    grads = []
    for param in params:
        grad = param.grad
        if grad is None or param.numel() == 0:
            continue
        if grad.layout != torch.strided:
            raise RuntimeError(
                f"sparse gradient of a parameter of shape {tuple(param.shape)}: use a dense one, "
                "for example torch.nn.Embedding(sparse=False), or torch.optim.SparseAdam for that "
                "parameter"
            )
        if grad.is_complex():
            raise RuntimeError(
                f"complex gradient of a parameter of shape {tuple(param.shape)}: optimize "
                "torch.view_as_real(parameter) instead"
            )
        active.append(param)
        grads.append(grad)
    return active, grads


def groups_with_grads(
    groups: Sequence[dict[str, Any]],
) -> list[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
    """Each group that has gradients, with its parameters and the directions to descend along.

    A direction is the gradient, or its negative in a group that maximizes.
    """
    work = []
    for group in groups:
        params, grads = dense_grads(group["params"])
        if params:
            directions = list(torch._foreach_neg(grads)) if group["maximize"] else grads
            work.append((group, params, directions))
    return work


def state_tensors(
    state: Mapping[Tensor, dict[str, Any]], params: Sequence[Tensor], key: str
) -> list[Tensor]:
    """A tensor of each parameter's state, made as zeros where it is missing."""
    for param in params:
        if key not in state[param]:
            state[param][key] = torch.zeros_like(param)
    return [state[param][key] for param in params]


def wide_norm(x: Tensor) -> Tensor:
    """Euclidean norm in at least float32."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))
    return norm


def layers_of(groups: Sequence[dict[str, Any]]) -> dict[Tensor, int]:
    """The layer of each parameter.

    Parameters of one module are one layer if all parameters have names; otherwise the shapes tell.
    """
    params = [param for group in groups for param in group["params"]]
    names = [name for group in groups for name in group.get("param_names", ())]
    named = len(names) == len(params)
    layout = (
        layout_of_named(zip(names, params, strict=True)) if named else layout_of_tensors(params)
    )
    return dict(zip(params, layout.layer_of, strict=True))


class AdaptiveOptimizer(Optimizer):
    """An optimizer whose state outside `state[p]` survives state_dict, deepcopy and pickle.

    Subclasses list in `_carried` the attributes that copies and pickles must hold, and return from
    `extra_state` what a checkpoint needs beside `state` and `param_groups`. Tools that keep only
    these two entries of a state_dict (torch's distributed checkpoints) lose the extra one; the
    optimizer then continues with a fresh one.
    """

    _carried: ClassVar[tuple[str, ...]] = ()

    def metrics(self) -> dict[str, float]:
        """Numbers that the last step used, ready for a plot; reading them waits for the device."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """More state than `state` and `param_groups`: tensors, numbers, strings, dicts of them."""
        return {}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore what `extra_state` returned; missing entries keep their present value."""

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, with one more entry, "extra"."""
        return {**super().state_dict(), "extra": self.extra_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch.optim, but missing entries and options take their defaults.

        State tensors keep the dtype that they were saved with.
        """
        super().load_state_dict(state_dict)
        # torch casts state tensors to the dtype of their parameter, which would round the float32
        # statistics of a bfloat16 parameter: put the saved ones back.
        params = (p for group in self.param_groups for p in group["params"])
        indices = (i for group in state_dict["param_groups"] for i in group["params"])
        for index, param in zip(indices, params, strict=True):
            for key, saved in state_dict["state"].get(index, {}).items():
                if isinstance(saved, Tensor) and saved.dtype != self.state[param][key].dtype:
                    self.state[param][key] = saved.to(param.device, copy=True)
        self.load_extra_state(state_dict.get("extra", {}))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._carried}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)


class HasMetrics(Protocol):
    """An optimizer that reports numbers, as every optimizer of this package does."""

    def metrics(self) -> dict[str, float]:
        """Names and values of the numbers."""
        ...

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """As in torch.optim.Optimizer."""
        ...


def log_metrics(
    optimizer: HasMetrics, log: Callable[[dict[str, float], int], Any], every: int = 1
) -> RemovableHandle:
    """Call `log(optimizer.metrics(), step)` after every `every`-th step.

    `wandb.log` fits as it is. For TensorBoard pass
    `lambda metrics, step: [writer.add_scalar(k, v, step) for k, v in metrics.items()]`.

    Args:
        optimizer: an optimizer of this package.
        log: takes the metrics and the number of steps made since this call.
        every: number of steps from one call of `log` to the next.

    Returns:
        A handle whose `remove()` ends the logging.
    """
    check_number("every", every, 1)
    steps = 0

    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        nonlocal steps
        steps += 1
        if steps % every == 0:
            log(optimizer.metrics(), steps)

    return optimizer.register_step_post_hook(hook)
