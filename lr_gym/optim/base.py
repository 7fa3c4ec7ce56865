"""What the optimizers share: checks of arguments and gradients, layers, logging."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.utils.hooks import RemovableHandle

from lr_gym.layers import layout_of_named, layout_of_tensors
from lr_gym.optim.distributed import local
from lr_gym.types import check_number

__all__ = [
    "COMPLEX_ADVICE",
    "Work",
    "check_choice",
    "check_lr",
    "dense_grads",
    "eager",
    "evaluate",
    "groups_with_grads",
    "layers_of",
    "log_metrics",
    "state_tensors",
    "wide_norm",
]

Function = TypeVar("Function", bound=Callable[..., Any])

COMPLEX_ADVICE = (
    "give the module a real parameter with a last dimension of 2, and let its forward use "
    "torch.view_as_complex(parameter)"
)


def check_lr(lr: Any) -> None:
    """Check a learning rate as torch's optimizers do; a tensor of one element is one too.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, infinite or NaN, or a tensor of several elements.
    """
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(
                f"lr must be a number or a tensor of one element; got shape {tuple(lr.shape)}"
            )
        lr = lr.item()
    if not isinstance(lr, Real):
        raise TypeError(f"lr must be a number; got {lr!r} of type {type(lr).__name__}")
    if not 0.0 <= float(lr) < math.inf:
        raise ValueError(f"lr must be finite and at least 0; got {lr!r}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError that lists the valid values unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def eager(function: Function) -> Function:
    """Run a function as it stands where a compiled function calls it.

    torch.compile would not write back what a step changes in Python attributes. Elsewhere the
    function is called directly, since torch's way to do this costs several microseconds a call.
    """
    disabled = _disable_dynamo(function)

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return disabled(*args, **options)
        return function(*args, **options)

    return cast(Function, run)


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
                f"complex gradient of a parameter of shape {tuple(param.shape)}: {COMPLEX_ADVICE}"
            )
        active.append(param)
        grads.append(grad)
    return active, grads


class Work(NamedTuple):
    """A group that has gradients, and what a step needs of its n parameters that have one.

    Attributes:
        group: the group with its options.
        params: the parameters.
        data: their values on this rank, which are written to.
        grads: the directions to descend along, on this rank: gradients, or their negatives in a
            group that maximizes.
    """

    group: dict[str, Any]
    params: list[Tensor]
    data: list[Tensor]
    grads: list[Tensor]


def groups_with_grads(groups: Sequence[dict[str, Any]]) -> list[Work]:
    """Each group that has gradients, with what a step needs."""
    work = []
    for group in groups:
        params, grads = dense_grads(group["params"])
        if params:
            grads = [local(grad) for grad in grads]
            directions = list(torch._foreach_neg(grads)) if group["maximize"] else grads
            work.append(Work(group, params, [local(param) for param in params], directions))
    return work


def state_tensors(
    state: Mapping[Tensor, dict[str, Any]],
    params: Sequence[Tensor],
    key: str,
    *,
    wide: bool = False,
) -> list[Tensor]:
    """A tensor of each parameter's state on this rank, made as zeros where it is missing.

    Args:
        state: the optimizer's state.
        params: the parameters; where one is sharded, so is the tensor.
        key: key of the tensor in a parameter's state.
        wide: make the zeros in at least float32.
    """
    for param in params:
        if key not in state[param]:
            dtype = torch.promote_types(param.dtype, torch.float32) if wide else param.dtype
            state[param][key] = torch.zeros_like(param, dtype=dtype)
    return [local(state[param][key]) for param in params]


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
