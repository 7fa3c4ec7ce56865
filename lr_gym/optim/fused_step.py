"""One step of PolicyOptimizer's base optimizer by torch's fused kernels for Adam.

They equal `base_step.py` to rounding and take a fraction of its time. A kernel call takes many
tensors but one learning rate and one beta1, so only policies that set nothing but the learning
rate can use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from lr_gym.optim.distributed import local
from lr_gym.optim.moments import masses_to_steps_, moments
from lr_gym.optim.slots import Slot

__all__ = ["KERNELS", "fused_update"]

# Devices whose fused kernels are used without being asked for.
KERNELS = ("cpu", "cuda")

State = dict[str, Any]


class _KernelCall(NamedTuple):
    """Arguments of one kernel call: tensors of one group, type and learning rate."""

    group: dict[str, Any]
    lr: float | Tensor
    params: list[Tensor]
    grads: list[Tensor]
    firsts: list[Tensor]
    seconds: list[Tensor]
    steps: list[Tensor]


def fused_update(
    state: Mapping[Tensor, State],
    slots: Sequence[Slot],
    rates: Mapping[int, Tensor],
    *,
    decoupled: bool,
    anywhere: bool,
) -> list[Slot]:
    """Make one step on the parameters that torch's fused kernels can take.

    Args:
        state: the optimizer's state.
        slots: parameters that have gradients.
        rates: (L,) effective learning rates for each `id(group)`.
        decoupled: whether weight decay is AdamW's.
        anywhere: use kernels on every device, not only on those of KERNELS.

    Returns:
        The parameters that are left for `plain_update`.
    """
    columns = {group: _host_or_unbound(rate) for group, rate in rates.items()}
    calls: dict[tuple[Any, ...], _KernelCall] = {}
    left: list[Slot] = []
    for slot in slots:
        own = state[slot.param]
        tensors = _kernel_tensors(own, slot, anywhere)
        if tensors is None:
            left.append(slot)
            continue
        if "first_mass" in own or "step" not in own:
            masses_to_steps_(own, slot)
        lr = columns[id(slot.group)][slot.layer]
        # On the host, layers with equal rates share a call. A rate on a device cannot be compared
        # without waiting for it, so there each layer has a call of its own.
        key = (lr if isinstance(lr, float) else slot.layer, id(slot.group), slot.param.dtype)
        if key not in calls:
            calls[key] = _KernelCall(slot.group, lr, [], [], [], [], [])
        _, _, params, grads, firsts, seconds, steps = calls[key]
        params.append(tensors[0])
        grads.append(tensors[1])
        firsts.append(tensors[2])
        seconds.append(tensors[3])
        steps.append(own["step"])
    _run(calls.values(), decoupled)
    return left


def _run(calls: Iterable[_KernelCall], decoupled: bool) -> None:
    if steps := [step for call in calls for step in call.steps]:
        torch._foreach_add_(steps, 1)  # the kernels expect steps that already count this one
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    for call in calls:
        kernel(
            call.params,
            call.grads,
            call.firsts,
            call.seconds,
            [],
            call.steps,
            lr=call.lr,
            beta1=call.group["betas"][0],
            beta2=call.group["betas"][1],
            weight_decay=call.group["weight_decay"],
            eps=call.group["eps"],
            amsgrad=False,
            maximize=call.group["maximize"],
        )


def _host_or_unbound(rates: Tensor) -> Sequence[float | Tensor]:
    """Each of the rates (L,): a number where reading it costs nothing, else a tensor.

    CUDA's kernels read the rate as float32.
    """
    if rates.device.type == "cpu":
        numbers: list[float] = rates.tolist()
        return numbers
    return (rates.float() if rates.is_cuda else rates).unbind()


def _kernel_tensors(
    own: State, slot: Slot, anywhere: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Parameter, gradient and moments on this rank, None where the kernels cannot take them.

    The parameter has a gradient; its moments are made. Written out, because this runs for every
    tensor at every step.
    """
    param = slot.param
    grad = param.grad
    if slot.rule.family != "adam" or not (anywhere or param.device.type in KERNELS):
        return None
    if "exp_avg" not in own:
        moments({param: own}, slot)
    assert grad is not None
    if grad.is_sparse:
        return None
    first: Tensor = own["exp_avg"]
    second: Tensor = own["exp_avg_sq"]
    if type(param) is not Parameter:  # perhaps a DTensor
        param, grad, first, second = map(local, (param, grad, first, second))
    if not (grad.dtype == first.dtype == second.dtype == param.dtype):
        return None
    # On non-contiguous tensors the CPU kernels give wrong results without an error.
    fits = (
        param.is_contiguous()
        and grad.is_contiguous()
        and first.is_contiguous()
        and second.is_contiguous()
    )
    return (param, grad, first, second) if fits else None
