"""What a base optimizer is: a rule that updates one stacked parameter tensor.

Environment and deployed optimizer run these same lines. The optimizer calls torch's fused kernels
instead where those compute the same (`optim/base_step.py`).

A tensor has shape (B, *shape). Hyperparameters have shape (B,), one number per run, and belong to
the layer of the tensor. Moments and parameters are updated in place. Every rule is written as

    param -= lr * factor * direction

where `factor` (B,) and `lr` (B,) are multiplied first, so that what differs between runs costs a
single pass over the tensor. The rules are in `sgd.py`, `adam.py` and `muon.py`.

The unit of the learning rate of a tensor is the rate at which its update is as large, as an
operator, as that of a square matrix of BASE_WIDTH at rate 1. How large a matrix is as an operator
says its RMS-to-RMS norm, the spectral norm times sqrt(fan_in / fan_out); if updates keep that norm,
one rate serves all widths (Yang, Simon & Bernstein 2023, "A spectral condition for feature
learning", arXiv 2310.17813). Ours: no update is rescaled, so that the optimizers stay those that
users know; the unit is what a policy measures rates in.

A moment is a weighted sum of gradients. Its mass is the sum of those weights, which `factor`
divides by. With mass_t = beta1 mass_{t-1} + (1 - beta1), Adam's bias correction is exact for a
beta1 that changes during the training; for a constant beta1 it is the usual 1 - beta1^t.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

__all__ = ["BASE_WIDTH", "BaseRule", "MomentMasses", "stretch"]

BASE_WIDTH = 64  # a matrix of this width and height has the unit 1 under every rule


@dataclasses.dataclass(frozen=True)
class MomentMasses:
    """How much weight the moments have given to gradients so far, one number per run.

    Attributes:
        first: (B,) sum of the weights in the first moment or momentum buffer.
        second: (B,) sum of the weights in the second moment, 1 - beta2^t.
    """

    first: Tensor
    second: Tensor


def stretch(per_run: Tensor, like: Tensor) -> Tensor:
    """View numbers (B,) so that they broadcast over the elements of a tensor (B, *shape)."""
    return per_run.view(per_run.shape + (1,) * (like.ndim - per_run.ndim))


@dataclasses.dataclass(frozen=True)
class BaseRule(abc.ABC):
    """A base optimizer and its constants.

    Attributes:
        family: "sgd", "adam" or "muon". Rules of one family keep the same moments.
        decoupled: whether weight decay shrinks the weights (AdamW, Muon) or joins the gradient.
        momentum: SGD's mu or Adam's beta1, used where no policy sets it.
        beta2: decay rate of Adam's second moment.
        eps: Adam's epsilon.
    """

    family: ClassVar[str]

    decoupled: bool = False
    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def for_tensor(self, hidden: bool, blocks: int = 1) -> BaseRule:
        """The rule of one tensor.

        Args:
            hidden: whether it is a hidden matrix (`layers.hidden_matrices`).
            blocks: how many maps its rows hold (`layers.row_blocks`).
        """
        return self

    def unit(self, shape: Sequence[int], *, embedding: bool = False) -> float:
        """The unit of the learning rate of one tensor; 1 where a rule knows nothing better.

        Args:
            shape: shape of the tensor; the first dimension is that of the outputs.
            embedding: whether the tensor is a table that is only looked up.
        """
        return 1.0

    @abc.abstractmethod
    def next_masses(self, masses: MomentMasses, momentum: Tensor) -> MomentMasses:
        """The masses after one more gradient has joined the moments; momentum (B,)."""

    @abc.abstractmethod
    def advance_moments_(
        self, grad: Tensor, first: Tensor, second: Tensor | None, momentum: Tensor
    ) -> None:
        """Let a gradient join the moments, in place.

        Args:
            grad: (B, *shape) gradient.
            first: (B, *shape) momentum buffer or first moment.
            second: (B, *shape) second moment; None for all rules but Adam.
            momentum: (B,) mu or beta1.
        """

    @abc.abstractmethod
    def next_moments(
        self, grad: Tensor, first: Tensor, second: Tensor | None, momentum: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `advance_moments_` would make of the moments, and change nothing.

        The numbers are the same; copying the moments and advancing the copies would take more
        passes over memory.
        """

    @abc.abstractmethod
    def direction(self, first: Tensor, second: Tensor | None, masses: MomentMasses) -> Tensor:
        """Direction (B, *shape) of the update, before `factor`.

        SGD returns the momentum buffer itself, so the caller must not write to the result.

        Args:
            first: (B, *shape) momentum buffer or first moment, the gradient included.
            second: (B, *shape) second moment, the gradient included; None for all rules but Adam.
            masses: masses of these moments.
        """

    @abc.abstractmethod
    def factor(self, masses: MomentMasses) -> Tensor:
        """Factor (B,) of the direction; the update at lr 1 is their product."""

    def step_(
        self,
        param: Tensor,
        grad: Tensor,
        first: Tensor,
        second: Tensor | None,
        masses: MomentMasses,
        *,
        lr: Tensor,
        momentum: Tensor,
        weight_decay: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> None:
        """Make one step on one tensor, in place.

        Args:
            param: (B, *shape) parameters.
            grad: (B, *shape) gradient; it is not written to.
            first: (B, *shape) momentum buffer or first moment.
            second: (B, *shape) second moment; None for all rules but Adam.
            masses: masses that already count this gradient (`next_masses`).
            lr: (B,) learning rate.
            momentum: (B,) mu or beta1.
            weight_decay: (B,) coefficient of weight decay; None for none.
            noise: (B, *shape) noise to add to the gradient; None for none.
        """
        if noise is not None:
            grad = grad + noise
        if weight_decay is not None:
            if self.decoupled:
                param.mul_(stretch(1.0 - lr * weight_decay, param))
            else:
                grad = grad.addcmul(param, stretch(weight_decay, param).to(grad.dtype))
        self.advance_moments_(grad, first, second, momentum)
        direction = self.direction(first, second, masses)
        param.sub_(direction * stretch(lr * self.factor(masses), param))
