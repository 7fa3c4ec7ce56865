"""What a PolicyOptimizer is made with, checked."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from torch import Tensor

from lr_gym.control.action import FINISH
from lr_gym.control.controller import Controller
from lr_gym.control.patience import PatienceRule
from lr_gym.optim.base import check_lr
from lr_gym.policies.policy import Policy, load_policy
from lr_gym.policies.ranges import is_range
from lr_gym.policies.tensor_file import digest
from lr_gym.types import check_count
from lr_gym.updates.rule import BaseRule
from lr_gym.updates.rules import base_rule

__all__ = ["Settings", "defaults_of", "find_policy"]

# Passes over the examples above which Muon needs more weight decay: where nothing is new any
# more, its weights grow (docs/log.md, "passes over the data").
MANY_PASSES = 200


@dataclasses.dataclass(frozen=True)
class Settings:
    """What stays fixed while a PolicyOptimizer exists.

    Attributes:
        policy: the policy, on the device where it was loaded.
        rule: rule of the base optimizer.
        total_steps: optimizer steps of the training, None where unknown.
        steps_per_epoch: optimizer steps in which every example is seen once, None where unknown.
        seed: seed of the gradient noise.
        fused: whether torch's fused kernels update what they can; None decides by the device.
        sample: elements by which large tensors are measured; None measures every element.
        process_group: ranks that decide together, see `distributed.ranks_of`.
        guard: whether a policy that knows what it has learned from is guarded.
        finish: what ends the training by its held-out loss, None where nothing does.
    """

    policy: Policy
    rule: BaseRule
    total_steps: int | None
    steps_per_epoch: float | None
    seed: int
    fused: bool | None
    sample: int | None
    process_group: Any = None
    guard: bool = True
    finish: PatienceRule | None = None

    def __post_init__(self) -> None:
        """Check every field that a user gives."""
        if self.total_steps is not None:
            check_count("total_steps", self.total_steps)
        epoch = self.steps_per_epoch
        if epoch is not None and not 0.0 < epoch < math.inf:
            raise ValueError(f"steps_per_epoch must be finite and above 0; got {epoch!r}")
        if self.sample is not None:
            check_count("sample", self.sample)
        if self.finish is not None and not isinstance(self.finish, PatienceRule):
            raise TypeError(
                f"finish must be a PatienceRule or None; got {self.finish!r}: write "
                "finish=PatienceRule(patience=4)"
            )
        spec = self.policy.spec
        # torch has kernels of Adam only, and they know no noise and one momentum for all tensors
        kernels = self.rule.family != "sgd" and {*spec.controls} <= {"lr", FINISH}
        if self.fused and not kernels:
            raise ValueError(
                "fused=True takes base='adam', 'adamw' or 'muon' and a policy that controls lr "
                f"only; got a rule of family {self.rule.family!r} and controls={spec.controls}: "
                "leave fused out"
            )
        if not kernels:
            object.__setattr__(self, "fused", False)

    @property
    def policy_id(self) -> str:
        """Short name of what the policy does, its guard apart, which a state_dict remembers."""
        # a user's own policy may have no tensors
        tensors: dict[str, Tensor] = getattr(self.policy, "tensors", dict)()
        acting = {name: value for name, value in tensors.items() if not is_range(name)}
        return digest(self.policy.spec.to_json(), acting)[:16]

    @property
    def may_finish(self) -> bool:
        """Whether a rule or the policy can end the training."""
        return self.finish is not None or self.policy.spec.finishes

    @property
    def watches_held_out(self) -> bool:
        """Whether the policy or a rule looks at held-out losses."""
        return self.may_finish or self.policy.spec.watches_held_out

    def controller(self) -> Controller:
        """The controller of this training."""
        return Controller(self.policy.spec, self.total_steps, self.policy.interval)


def find_policy(policy: str | os.PathLike[str] | Policy) -> Policy:
    """A policy, loaded if it is not one yet.

    Raises:
        TypeError: for something that is no policy and names none.
        PolicyFileError: where the policy cannot be read.
    """
    if isinstance(policy, (str, os.PathLike)):
        return load_policy(policy)
    if not hasattr(policy, "spec"):
        raise TypeError(
            f"policy must be a file, 'builtin:NAME' or a policy; got {policy!r}: pass a rate as "
            "lr=..."
        )
    return policy


def defaults_of(
    base: str,
    total_steps: int | None,
    steps_per_epoch: float | None,
    *,
    lr: float | Tensor,
    weight_decay: float | None,
    betas: tuple[float, float] | None,
    eps: float | None,
) -> dict[str, Any]:
    """Options of a parameter group; None is filled in from the base optimizer.

    Raises:
        TypeError: for an lr that is no number.
        ValueError: for a value out of range, naming it.
    """
    rule = base_rule(base)
    if weight_decay is None:
        weight_decay = _default_decay(base, total_steps, steps_per_epoch)
    betas = (rule.momentum, rule.beta2) if betas is None else betas
    eps = rule.eps if eps is None else eps
    check_lr(lr)
    for name, value in (("weight_decay", weight_decay), ("eps", eps)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0; got {value!r}")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1); got {betas!r}")
    return {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}


def _default_decay(base: str, total_steps: int | None, steps_per_epoch: float | None) -> float:
    """Torch's weight decay, and more where Muon passes over its examples very often."""
    passes = 0.0
    if total_steps is not None and steps_per_epoch is not None:
        passes = total_steps / steps_per_epoch
    if base == "muon" and passes > MANY_PASSES:
        return 0.1
    return 0.01 if base_rule(base).decoupled else 0.0
