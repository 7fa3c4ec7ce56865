"""What the optimizers share.

Checked arguments and gradients, state that travels whole, metrics to log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    "in_blocks",
    "layers_of",
    "log_metrics",
    "use_foreach",
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
    """Parameters that have a gradient and at least one element, and these gradients.

    Raises:
        RuntimeError: a gradient is sparse or complex.
    """
    active, grads = [], []
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
    """Each group that has gradients, their parameters and the directions to descend along, negated for maximize."""
    work = []
    for group in groups:
        params, grads = dense_grads(group["params"])
        if params:
            work.append(
                (group, params, list(torch._foreach_neg(grads)) if group["maximize"] else grads)
            )
    return work


def wide_norm(x: Tensor) -> Tensor:
    """Euclidean norm in at least float32."""
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))
    return norm


def use_foreach(setting: bool | None, params: Sequence[Tensor]) -> bool:
    """Whether to run one kernel over many tensors.

    By default where all are on an accelerator, as torch does.

    On a CPU the plain loop is as fast and needs temporaries of one tensor only.
    """
    return all(p.device.type != "cpu" for p in params) if setting is None else setting


def in_blocks(*tensors: Tensor, size: int = 2**17) -> Iterable[tuple[Tensor, ...]]:
    """Cut tensors of one shape into flat pieces that fit a CPU's cache.

    Several operations then read memory once.

    Views, so in-place operations reach the tensors. On an accelerator, or where one is not
    contiguous, the only piece is the tensors as they are.
    """
    if all(t.device.type == "cpu" and t.is_contiguous() for t in tensors):
        return zip(*(torch.split(t.view(-1), size) for t in tensors), strict=True)
    return [tensors]


def layers_of(groups: Sequence[dict[str, Any]]) -> dict[Tensor, int]:
    """Layer of each parameter.

    That of its module where all names are known, else found by shape.
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

    Subclasses name the attributes that belong to the object in `_carried`, and put what a
    checkpoint needs beside `state` and `param_groups` into `extra_state`. Tools that keep only
    these two entries of a state_dict (torch's distributed checkpoints) lose the extra one, and the
    optimizer then goes on from a fresh one.
    """

    _carried: ClassVar[tuple[str, ...]] = ()

    def metrics(self) -> dict[str, float]:
        """What the last step used, ready for a plot; reading it waits for the device."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """State beyond `state` and `param_groups`.

        Tensors, numbers, strings and nested dicts of them.
        """
        return {}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Restore what `extra_state` returned.

        Entries missing from an older one keep their present value.
        """

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim, with one more entry, "extra"."""
        return {**super().state_dict(), "extra": self.extra_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch.optim.

        Entries and options missing from an older checkpoint are filled with the defaults.

        A state tensor keeps its saved dtype (torch would cast float32 statistics of a bfloat16
        parameter down).
        """
        super().load_state_dict(state_dict)
        order = (p for group in self.param_groups for p in group["params"])
        indices = (i for group in state_dict["param_groups"] for i in group["params"])
        for index, param in zip(indices, order, strict=True):
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
    """An optimizer that reports numbers: every one of this package."""

    def metrics(self) -> dict[str, float]:
        """Names and values."""
        ...

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        """As torch.optim.Optimizer."""
        ...


def log_metrics(
    optimizer: HasMetrics, log: Callable[[dict[str, float], int], Any], every: int = 1
) -> RemovableHandle:
    """Call `log(optimizer.metrics(), step)` after every `every`-th step; `wandb.log` fits as it is.

    For TensorBoard: `lambda metrics, step: [writer.add_scalar(k, v, step) for k, v in
    metrics.items()]`.

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
