"""The base optimizers, as functions of one stacked parameter tensor.

SGD with momentum, Adam, AdamW and Muon.

Environment and deployed optimizer run these same lines, the latter but where torch's fused kernels
do the same (`optim/base_step.py`). A tensor has shape (B, *shape); hyperparameters have shape (B,),
one per run, and are those of the tensor's layer. Moments and parameters are updated in place.

Every rule is written as `param -= lr * scale * direction`, which leaves a single pass for what
differs between runs. With mass_t = beta1 mass_{t-1} + (1 - beta1) in Adam, the bias correction is
exact for a beta1 that changes:

    SGD    direction = buf,                    buf = mu buf + g,                  scale = 1
    Adam   direction = m / (sqrt(v) + eps c),  m = beta1 m + (1 - beta1) g,       scale = c / mass
                                               v = beta2 v + (1 - beta2) g^2,     c = sqrt(1 - beta2^t)

which is Adam (Kingma & Ba 2015, section 2) with both corrections folded into scale and eps. AdamW
decays the weights first (Loshchilov & Hutter 2019); SGD and Adam add weight_decay * param to the
gradient, as torch.optim does.

Muon (Jordan 2024) is AdamW but for hidden matrices (`layers.hidden_matrices`), whose first moment m
= U S V' moves them with all singular values near 1, and as far as AdamW would (Liu et al. 2025), so
that one learning rate serves both:

    Muon   direction = 0.2 sqrt(max(rows, columns)) U V',     m as Adam's,        scale = 1

Without Nesterov's step ahead, and with Adam's beta1: docs/log.md.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from lr_gym.rng import Stream, normal

__all__ = [
    "MUON_RMS",
    "RULES",
    "BaseRule",
    "MomentScale",
    "advance_moments_",
    "advanced_moments",
    "base_rule",
    "direction",
    "gradient_noise",
    "orthogonal",
    "rms",
    "step_",
    "stretch",
]


@dataclasses.dataclass(frozen=True)
class BaseRule:
    """A base optimizer and its constants.

    Attributes:
        family: "sgd", "adam" or "muon": what decides which moments exist.
        decoupled: whether weight decay acts on the weights (AdamW, Muon) or on the gradient.
        momentum: mu or beta1 where no policy sets it.
        beta2: decay of Adam's second moment.
        eps: Adam's epsilon.
    """

    family: str
    decoupled: bool = False
    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def of(self, hidden: bool) -> BaseRule:
        """The rule of one tensor, a hidden matrix or another: Muon leaves the others to AdamW."""
        return (
            dataclasses.replace(self, family="adam")
            if self.family == "muon" and not hidden
            else self
        )


RULES = {
    "sgd": BaseRule("sgd"),
    "adam": BaseRule("adam"),
    "adamw": BaseRule("adam", decoupled=True),
    "muon": BaseRule("muon", decoupled=True),
}
MUON_RMS = 0.2  # of an update of Muon's at lr 1, about that of AdamW's, for a matrix of full rank
NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan's quintic: singular values come near 1, not to it, in few steps
NEWTON_SCHULZ_STEPS = 5
GRAM = 4  # sides of a matrix, one over the other, from which its products are iterated


def base_rule(base: str) -> BaseRule:
    """Look up a rule of RULES; a ValueError lists the valid names."""
    if base not in RULES:
        raise ValueError(f"base must be one of {', '.join(RULES)}; got {base!r}")
    return RULES[base]


@dataclasses.dataclass(frozen=True)
class MomentScale:
    """What turns raw moments into an unbiased update, one number per run.

    Attributes:
        mass: (B,) sum of the weights that the first moment has given to gradients so far.
        second: (B,) the same of the second moment, 1 - beta2^t.
    """

    mass: Tensor
    second: Tensor

    def advanced(self, rule: BaseRule, momentum: Tensor) -> MomentScale:
        """The masses after one more gradient."""
        if rule.family == "sgd":
            return MomentScale(self.mass * momentum + 1.0, self.second)
        return MomentScale(
            torch.lerp(self.mass, torch.ones_like(self.mass), 1.0 - momentum),
            torch.lerp(self.second, torch.ones_like(self.second), 1.0 - rule.beta2),
        )

    def factor(self, rule: BaseRule) -> Tensor:
        """The factor of `direction`, so that the update at lr 1 is their product."""
        return (
            self.second.sqrt() / self.mass if rule.family == "adam" else torch.ones_like(self.mass)
        )


def stretch(per_run: Tensor, like: Tensor) -> Tensor:
    """View (B,) so that it broadcasts over the elements of a (B, *shape) tensor."""
    return per_run.view(per_run.shape + (1,) * (like.ndim - per_run.ndim))


def rms(x: Tensor) -> Tensor:
    """Root mean square over all but the first dimension: (B,); 0 for a tensor without elements."""
    if x.ndim == 1:
        return x.abs()
    count = max(1, x[0].numel())
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)))
    return norm * (1.0 / math.sqrt(count))


def advance_moments_(
    rule: BaseRule, grad: Tensor, first: Tensor, second: Tensor | None, momentum: Tensor
) -> None:
    """Let `grad` join the moments, in place."""
    if rule.family == "sgd":
        first.mul_(stretch(momentum, first)).add_(grad)
        return
    first.lerp_(grad, stretch(1.0 - momentum, first).to(first.dtype))
    if rule.family == "muon":
        return
    assert second is not None
    second.mul_(rule.beta2).addcmul_(grad, grad, value=1.0 - rule.beta2)


def advanced_moments(
    rule: BaseRule, grad: Tensor, first: Tensor, second: Tensor | None, momentum: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The moments after `advance_moments_`, leaving those given as they are.

    The same numbers in fewer passes.
    """
    if rule.family == "sgd":
        return (first * stretch(momentum, first)).add_(grad), None
    ahead = torch.lerp(first, grad, stretch(1.0 - momentum, first).to(first.dtype))
    if rule.family == "muon":
        return ahead, None
    assert second is not None
    return ahead, (second * rule.beta2).addcmul_(grad, grad, value=1.0 - rule.beta2)


def orthogonal(matrices: Tensor) -> Tensor:
    """U V' of each matrix U S V', about.

    Singular values come within 0.7 to 1.2, those below 1e-3 of its norm lower.

    By Newton's and Schulz's iteration, as Jordan (2024) tuned it, in the precision of the tensor:
    torch.optim.Muon's is bfloat16. A tensor (B, rows, *columns) counts as B matrices. Where one
    side is GRAM times the other, as in convolutions, the iteration runs on the products of the
    smaller side: the same polynomial for a half to a third of the multiplications, and in float32
    the same matrix within 1e-3; not in half precision, whose rounding would show.
    """
    x = matrices.flatten(2)
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    full = torch.finfo(x.dtype).bits >= 32
    x = _by_products(x) if full and x.shape[2] >= GRAM * x.shape[1] else _by_matrices(x)
    return (x if wide else x.mT).reshape(matrices.shape)


def _by_matrices(x: Tensor) -> Tensor:
    """Newton's and Schulz's iteration on matrices (B, m, n)."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_products(x: Tensor) -> Tensor:
    """The same with P = aI + bG + cG^2 gathered, x' = ...PPx.

    G = xx' becomes PGP, which all commute.
    """
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.mT
    rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # P - aI
    gathered = rest + a * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        half = torch.baddbmm(gram, rest, gram, beta=a)
        gram = torch.baddbmm(half, half, rest, beta=a)
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        gathered = torch.baddbmm(gathered, rest, gathered, beta=a)
    return gathered @ x


def direction(rule: BaseRule, first: Tensor, second: Tensor | None, scale: MomentScale) -> Tensor:
    """Direction (B, *shape) of the update, which has yet to be multiplied by `scale.factor`.

    For SGD it is the momentum buffer itself: do not write to it.
    """
    if rule.family == "sgd":
        return first
    if rule.family == "muon":
        return orthogonal(first) * (MUON_RMS * math.sqrt(max(first.shape[1], first[0, 0].numel())))
    assert second is not None
    denominator = second.sqrt().add_(stretch(rule.eps * scale.second.sqrt(), second))
    return torch.div(first, denominator, out=denominator)


def gradient_noise(
    grad: Tensor, level: Tensor, run_seed: Tensor, step: Tensor | int, start: int
) -> Tensor:
    """Normal noise (B, *shape) of std level * rms(grad), both (B,).

    Rms over the elements of this tensor.

    Args:
        grad: (B, *shape) gradient.
        level: (B,) noise over gradient, rms.
        run_seed: int64 (B,).
        step: inner step, int or (B,).
        start: number of parameter elements before this tensor, so that no two elements share a
            number.
    """
    count = grad[0].numel()
    draw = normal(run_seed, Stream.NOISE, step, count, start=start, dtype=grad.dtype).view(
        grad.shape
    )
    return draw * stretch(level * rms(grad), grad).to(grad.dtype)


def step_(
    rule: BaseRule,
    param: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor | None,
    scale: MomentScale,
    *,
    lr: Tensor,
    momentum: Tensor,
    weight_decay: Tensor | None = None,
    noise: Tensor | None = None,
) -> None:
    """One step of the base optimizer on one tensor, in place.

    Args:
        rule: of this tensor, see `BaseRule.of`.
        param: (B, *shape) parameters.
        grad: (B, *shape) gradient; not written to.
        first: (B, *shape) momentum buffer or first moment.
        second: (B, *shape) second moment, None but for Adam.
        scale: masses that already count this gradient (`MomentScale.advanced`).
        lr: (B,) learning rate.
        momentum: (B,) mu or beta1.
        weight_decay: (B,), None for none.
        noise: (B, *shape) to add to the gradient, None for none.
    """
    if noise is not None:
        grad = grad + noise
    if weight_decay is not None:
        if rule.decoupled:
            param.mul_(stretch(1.0 - lr * weight_decay, param))
        else:
            grad = torch.addcmul(grad, param, stretch(weight_decay, param).to(grad.dtype))
    advance_moments_(rule, grad, first, second, momentum)
    way = direction(rule, first, second, scale)
    param.sub_(way * stretch(lr * scale.factor(rule), param))
