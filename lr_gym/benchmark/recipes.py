"""Recipe: how an optimizer is made and used in the benchmark's training loop.

Each function that makes an optimizer is a `functools.partial` of a function of this folder. So a
fingerprint can read from it which classes and options an optimizer consists of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from lr_gym.benchmark.held_out import HeldOutUse
from lr_gym.optional import require

__all__ = [
    "ADAM_RANGE",
    "EXTRA",
    "SGD_RANGE",
    "Recipe",
    "TrainingLength",
    "group_rates",
    "packaged",
    "packaged_around",
    "plain",
    "schedule_free",
    "step_with_closure",
    "step_without_loss",
    "wrapped",
]

EXTRA = "benchmark"  # the extra of lr-gym that installs the optional optimizers

# Learning rates that tuning may try. Adam's range has to suit a fine-tuned encoder as well as the
# noisy quadratic.
ADAM_RANGE = (3e-5, 0.3)
SGD_RANGE = (1e-3, 10.0)


class TrainingLength(NamedTuple):
    """How long a training is.

    Attributes:
        steps: inner steps of the training.
        steps_per_epoch: inner steps in which as many examples are seen as the gradient split has;
            None on a stream, whose examples do not come again.
        endless: whether nobody could know in advance how long the training is, as on a stream.
            Schedules that cannot do without an end are nevertheless told it, policies are not.
    """

    steps: int
    steps_per_epoch: float | None
    endless: bool = False


def step_without_loss(optimizer: Any, loss: Tensor) -> None:
    """Step an optimizer that does not look at the loss."""
    optimizer.step()


def step_with_closure(optimizer: Any, loss: Tensor) -> None:
    """Step an optimizer that takes the loss from a closure, here the loss that is known already."""
    optimizer.step(closure=lambda: loss)


def group_rates(optimizer: Any) -> dict[str, float]:
    """The learning rate of the first parameter group, which is that of all.

    `d` is the scale that Prodigy and D-Adaptation find by themselves.
    """
    group = optimizer.param_groups[0]
    return {"all": float(group["lr"]) * float(group.get("d", 1.0))}


def never_guarded(optimizer: Any) -> bool:
    """False: only policies have a guard."""
    return False


class Recipe(NamedTuple):
    """How an optimizer is made, scheduled, tuned and used in the training loop.

    Attributes:
        about: one line for the report.
        make: makes the optimizer from (model, learning rate, TrainingLength).
        schedule: name of a row of `schedulers.SCHEDULERS`.
        lr: fixed learning rate; None means that the learning rate is tuned.
        space: (low, high) range of the learning rates that tuning may try, log-uniform.
        package: optional module that the optimizer needs, None where it needs none.
        averages: whether the model is evaluated at other weights than it is trained at. The
            optimizer then has the methods `eval()` and `train()`.
        step: makes an update from (optimizer, loss of the minibatch).
        rates: reads the effective learning rate of each layer, or of all, from the optimizer.
        guarded: tells whether the optimizer's guard has acted.
        held_out: what the contestant does with the held-out loss.
    """

    about: str
    make: functools.partial[Optimizer]
    schedule: str = "constant"
    lr: float | None = None
    space: tuple[float, float] = ADAM_RANGE
    package: str | None = None
    averages: bool = False
    step: Callable[[Any, Tensor], None] = step_without_loss
    rates: Callable[[Any], dict[str, float]] = group_rates
    guarded: Callable[[Any], bool] = never_guarded
    held_out: HeldOutUse = HeldOutUse()


def plain(
    optimizer: Callable[..., Optimizer],
    model: nn.Module,
    lr: float,
    length: TrainingLength,
    **options: Any,
) -> Optimizer:
    """Make an optimizer that takes parameters and a learning rate."""
    return optimizer(model.parameters(), lr, **options)


def wrapped(
    outer: Callable[[Optimizer], Optimizer],
    inner: Callable[..., Optimizer],
    model: nn.Module,
    lr: float,
    length: TrainingLength,
) -> Optimizer:
    """Make an optimizer around another one that takes parameters and a learning rate."""
    return outer(inner(model.parameters(), lr))


def packaged_around(
    package: str,
    name: str,
    inner: Callable[..., Optimizer],
    model: nn.Module,
    lr: float,
    length: TrainingLength,
) -> Optimizer:
    """Make an optimizer of an optional package around one that takes parameters and a rate.

    Raises:
        ImportError: if the package is missing; the message says what to install.
    """
    outer: Callable[[Optimizer], Optimizer] = getattr(require(package, EXTRA), name)
    return outer(inner(model.parameters(), lr))


def packaged(
    package: str,
    name: str,
    model: nn.Module,
    lr: float,
    length: TrainingLength,
    **options: Any,
) -> Optimizer:
    """Make an optimizer of an optional package, which is imported only now.

    Raises:
        ImportError: if the package is missing; the message says what to install.
    """
    optimizer: Callable[..., Optimizer] = getattr(require(package, EXTRA), name)
    return optimizer(model.parameters(), lr, **options)


def schedule_free(model: nn.Module, lr: float, length: TrainingLength) -> Optimizer:
    """Make AdamW without a schedule (Defazio et al. 2024), warmed up over 5 % of the training."""
    warmup_steps = length.steps // 20
    return packaged(
        "schedulefree", "AdamWScheduleFree", model, lr, length, warmup_steps=warmup_steps
    )
