"""Moments of PolicyOptimizer's parameters in its state, and their masses.

A moment is a weighted sum of past gradients and its mass is the sum of the weights, which
corrects its bias (`lr_gym.updates.rule.MomentMasses`). Our own updates store the masses, because
a policy may change beta1 at any step. Torch's kernels store the number of steps t instead, and
their masses are 1 - beta^t. Each path reads what the other has stored, so a checkpoint of torch's
Adam can be loaded and `fused` can change between runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.distributed import local
from lr_gym.optim.slots import Slot
from lr_gym.updates.rule import MomentMasses

__all__ = ["MASSES", "drop_foreign", "masses", "masses_to_steps_", "moments"]

# Keys of a parameter's state: masses of its first and second moment, each of shape (1,).
MASSES = ("first_mass", "second_mass")

State = dict[str, Any]


def moments(state: Mapping[Tensor, State], slot: Slot) -> tuple[Tensor, Tensor | None]:
    """First and second moment of a parameter on this rank, zeros where it has none yet.

    They are stored only if the parameter has a gradient: a frozen parameter keeps an empty state,
    as in torch.
    """
    param = slot.param
    adam = slot.rule.family == "adam"
    own = state[param] if param.grad is not None else dict(state.get(param, {}))
    first = "exp_avg" if adam else "momentum_buffer"
    if own.get(first) is None:
        _migrate_moments(own, slot.rule.family)
    if own.get(first) is None:
        own[first] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if adam:
            own["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
    return local(own[first]), local(own["exp_avg_sq"]) if adam else None


def _migrate_moments(own: State, family: str) -> None:
    """Remove the moments of another rule from a parameter's state.

    One case keeps something: a tensor that AdamW updated before Muon keeps its first moment,
    because both define it alike.
    """
    kept = own.pop("exp_avg", None) if family == "muon" else None
    if kept is None:
        for key in ("step", *MASSES):
            own.pop(key, None)
    for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
        own.pop(key, None)
    if kept is not None:
        own["momentum_buffer"] = kept


def drop_foreign(own: State, family: str) -> None:
    """Drop a momentum buffer that was loaded from a checkpoint of another rule.

    SGD's buffer is a sum of gradients and Muon's is a mean, under the same key. The second mass
    tells which one it is: only SGD never counts squares.
    """
    mass = own.get("second_mass")
    if mass is not None and "momentum_buffer" in own and (float(mass) == 0.0) != (family == "sgd"):
        for key in ("momentum_buffer", *MASSES):
            own.pop(key)


def masses(state: Mapping[Tensor, State], slots: Sequence[Slot], like: Tensor) -> MomentMasses:
    """Masses (1, n) of the moments of n parameters, in the dtype and on the device of `like`."""
    states = [state.get(slot.param, {}) for slot in slots]
    if all(key in own for own in states for key in MASSES):  # the usual case, in one copy each
        return MomentMasses(
            *(torch.cat([own[key].to(like) for own in states]).unsqueeze(0) for key in MASSES)
        )
    zero = torch.zeros((), device=like.device)
    # In double precision, because 1 - beta2^t cancels in the first steps.
    steps = torch.stack([own.get("step", zero).to(zero) for own in states]).double()  # (n,)
    found = []
    for i, key in enumerate(MASSES):
        betas = [slot.group["betas"][i] for slot in slots]
        counted = {beta: (1.0 - beta**steps).to(like.dtype).unbind() for beta in set(betas)}
        values = [
            own[key].to(like).reshape(()) if key in own else counted[beta][j]
            for j, (own, beta) in enumerate(zip(states, betas, strict=True))
        ]
        found.append(torch.stack(values).unsqueeze(0))
    return MomentMasses(*found)


def masses_to_steps_(own: State, slot: Slot) -> None:
    """Replace a parameter's masses by the number of steps, which torch's kernels need."""
    if "first_mass" in own:  # both masses follow from the number of steps
        del own["first_mass"]
        own["step"] = _steps_of(own.pop("second_mass"), slot.group["betas"][1])
    elif "step" not in own:
        own["step"] = torch.zeros((), device=slot.data.device)


def _steps_of(second_mass: Tensor, beta2: float) -> Tensor:
    """Number of steps t, as torch counts it, from a mass (1,) that is 1 - beta2^t.

    It is exact until the mass rounds to 1. From then on t is too small, but the bias correction
    that it gives is 1 either way.
    """
    left = (1.0 - second_mass.double()).clamp_min(torch.finfo(torch.float32).eps / 2)
    steps = torch.round(torch.log(left) / math.log(beta2)) if beta2 > 0.0 else torch.ones_like(left)
    return steps.to(torch.float32).reshape(())
