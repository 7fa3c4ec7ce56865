"""How a saved policy trains in the benchmark: as a PolicyOptimizer with its default options."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lr_gym.benchmark.held_out import HeldOutUse
from lr_gym.benchmark.recipes import ADAM_RANGE, SGD_RANGE, Recipe, TrainingLength
from lr_gym.layers import muon_groups
from lr_gym.optim.policy_optimizer import PolicyOptimizer
from lr_gym.policies.policy import SavedPolicy, load_policy

__all__ = ["POLICY_LR", "policy_optimizer", "policy_recipe"]

# PolicyOptimizer's own default: the initial learning rate of a policy that nobody has tuned
POLICY_LR = 1e-3


def policy_optimizer(
    policy: SavedPolicy, model: nn.Module, lr: float, length: TrainingLength
) -> Optimizer:
    """Make the optimizer that deploys a policy.

    A policy that looks at no end of the training (`spec.endless`) is not told its length. No policy
    is told it on a stream: there, one that looks at the end does not see how far a training is, and
    its base schedule stays at the start.
    """
    steps = None if policy.spec.endless or length.endless else length.steps
    return PolicyOptimizer(
        muon_groups(model), policy, lr, steps, steps_per_epoch=length.steps_per_epoch
    )


def observe_and_step(optimizer: Any, loss: Tensor) -> None:
    """Show the loss to the policy, then step."""
    optimizer.observe(loss)
    optimizer.step()


def layer_rates(optimizer: Any) -> dict[str, float]:
    """Effective learning rate of each layer."""
    metrics: dict[str, float] = optimizer.metrics()
    return {
        name.removeprefix("lr/"): value for name, value in metrics.items() if name.startswith("lr/")
    }


def guard_acted(optimizer: Any) -> bool:
    """Whether the policy's guard has acted."""
    return bool(optimizer.guarded)


def policy_recipe(path: str) -> Recipe:
    """Read a policy and say how it trains.

    A policy that looks at the held-out loss is told it where the task has a monitor split, and its
    training ends when the policy says so.

    Args:
        path: a policy file, an output folder of train_agent.py, or builtin:NAME.

    Raises:
        PolicyFileError: if the policy cannot be read.
    """
    policy = load_policy(path)
    watches = policy.spec.watches_held_out
    return Recipe(
        about=path,
        make=functools.partial(policy_optimizer, policy),
        space=SGD_RANGE if policy.spec.base == "sgd" else ADAM_RANGE,
        averages=policy.spec.average is not None,
        step=observe_and_step,
        rates=layer_rates,
        guarded=guard_acted,
        held_out=HeldOutUse(best=watches, tell=watches, optional=True),
    )
