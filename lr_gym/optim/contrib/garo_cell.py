"""GARO's recurrent cell as pure functions: from gradient statistics to lr, momentum, weight decay.

    lr           = softplus(W_lr h + b_lr)
    momentum     = tanh(W_mom h + b_mom)
    weight decay = softplus(W_wd h + b_wd)
    h' = GRU(features(statistics), h),    h_0 = 0

The heads read h *before* the statistics of the same step enter it, so the first step is known: with
the initial biases it is SGD at lr 0.01. The heads are those of GARO, the Global Adaptive Recurrent
Optimizer that the user described; the features are ours, because its inputs must not depend on the
scale of the loss. The GRU is that of Cho et al. 2014 with torch's order of gates.

Everything broadcasts over leading dimensions and is differentiable. In shapes, the dots are (),
(B,) or (P, B). A population trains P cells at once: its weights are (P, ...) and its state is
(P, B, L, ...). `stack` the members along a new first dimension to make one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lr_gym.optim.contrib.garo_weights import GaroWeights
from lr_gym.types import Hyperparams

__all__ = [
    "GaroState",
    "GradientStatistics",
    "garo_features",
    "garo_step",
    "initial_state",
    "statistics_of_sums",
]

MEAN_DECAY = 0.9
TINY = 1e-30  # keeps the logarithm of a vanishing rms finite


class GradientStatistics(NamedTuple):
    """What the cell is told about each layer; fewer than `lr_gym.types.LayerStats`.

    Attributes:
        param_rms: (..., L) rms of the parameters.
        grad_rms: (..., L) rms of the pending gradient.
        cosine: (..., L) cosine between the pending gradient and the momentum buffer; 0 where
            either vanishes.
    """

    param_rms: Tensor
    grad_rms: Tensor
    cosine: Tensor


class GaroState(NamedTuple):
    """What the cell remembers of each layer.

    Attributes:
        hidden: (..., L, H).
        first_log_rms: (..., L) log rms of the first gradient.
        mean_log_rms: (..., L) running average of the log rms.
        steps: (..., L) gradients seen, as float.
    """

    hidden: Tensor
    first_log_rms: Tensor
    mean_log_rms: Tensor
    steps: Tensor


def initial_state(
    shape: tuple[int, ...], hidden_size: int, device: torch.device | None = None
) -> GaroState:
    """State before the first step; `shape` is (..., L)."""
    zeros = torch.zeros(shape, device=device)
    hidden = torch.zeros((*shape, hidden_size), device=device)
    return GaroState(hidden, zeros, zeros.clone(), zeros.clone())


def statistics_of_sums(
    param: Tensor, grad: Tensor, buffer: Tensor, dot: Tensor, count: Tensor
) -> GradientStatistics:
    """Statistics from sums over the elements of each layer.

    Args:
        param: (..., L) sum of squares of the parameters.
        grad: (..., L) sum of squares of the pending gradient.
        buffer: (..., L) sum of squares of the momentum buffer.
        dot: (..., L) sum of products of gradient and buffer.
        count: (..., L) or (L,) number of elements. A layer without elements has statistics NaN.
    """
    length = (grad * buffer).sqrt()
    cosine = torch.where(length > 0, dot / length, 0.0).clamp(-1.0, 1.0)
    return GradientStatistics(
        param_rms=(param / count).sqrt(),
        grad_rms=(grad / count).sqrt(),
        cosine=torch.where(count > 0, cosine, torch.nan),
    )


def garo_features(statistics: GradientStatistics, state: GaroState) -> tuple[Tensor, GaroState]:
    """Scale-free inputs (..., L, F) in [-1, 1], and the state with its averages updated.

    gradient_change     log ratio of the gradient's rms to its running geometric mean
    gradient_decay      log ratio of the gradient's rms to its first value
    gradient_to_weight  log ratio of the gradient's rms to the parameters' rms
    age                 log(1 + t) / 10
    """
    log_rms = statistics.grad_rms.clamp_min(TINY).log()
    begun = state.steps > 0
    first = torch.where(begun, state.first_log_rms, log_rms)
    mean = torch.where(begun, state.mean_log_rms, log_rms)
    features = torch.stack(
        [
            torch.tanh(log_rms - mean),
            torch.tanh((log_rms - first) / 4),
            statistics.cosine,
            torch.tanh((log_rms - statistics.param_rms.clamp_min(TINY).log()) / 4),
            torch.tanh(torch.log1p(state.steps) / 10),
        ],
        dim=-1,
    )
    mean = torch.lerp(log_rms, mean, MEAN_DECAY)
    return features, state._replace(first_log_rms=first, mean_log_rms=mean, steps=state.steps + 1)


def garo_step(
    weights: GaroWeights, state: GaroState, statistics: GradientStatistics
) -> tuple[Hyperparams, GaroState]:
    """One decision: hyperparameters (..., L) from the present state, then the next state.

    A layer whose statistics are not finite keeps its state, so that one bad gradient is forgotten.

    Args:
        weights: weights of one cell, or (P, ...) of a population.
        state: (..., L), with P first for a population.
        statistics: (..., L) of the pending gradient.
    """
    valid = (
        statistics.grad_rms.isfinite()
        & statistics.param_rms.isfinite()
        & statistics.cosine.isfinite()
    )
    finite = GradientStatistics(*(torch.where(valid, x, 0.0) for x in statistics))
    features, after = garo_features(finite, state)
    after = after._replace(hidden=_gru(weights, features, state.hidden))
    kept = [torch.where(valid, new, old) for new, old in zip(after[1:], state[1:], strict=True)]
    hidden = torch.where(valid.unsqueeze(-1), after.hidden, state.hidden)
    return _heads(weights, state.hidden), GaroState(hidden, *kept)


def _heads(weights: GaroWeights, hidden: Tensor) -> Hyperparams:
    lr, momentum, decay = _linear(hidden, weights.head, weights.head_bias).unbind(-1)
    return Hyperparams(
        lr=functional.softplus(lr),
        momentum=torch.tanh(momentum),
        noise=torch.zeros_like(lr),
        weight_decay=functional.softplus(decay),
    )


def _gru(weights: GaroWeights, x: Tensor, hidden: Tensor) -> Tensor:
    from_x = _linear(x, weights.input, weights.input_bias)
    from_h = _linear(hidden, weights.recurrent, weights.recurrent_bias)
    reset_x, update_x, new_x = from_x.chunk(3, -1)
    reset_h, update_h, new_h = from_h.chunk(3, -1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return torch.lerp(new, hidden, update)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., L, I) -> (..., L, O), with weights (O, I), or (P, O, I) where x is (P, ..., L, I)."""
    # A population's weights have P in front; all dimensions of x between P and L broadcast.
    middle = (1,) * (x.ndim - weight.ndim)
    weight = weight.view(weight.shape[:-2] + middle + weight.shape[-2:])
    bias = bias.view(bias.shape[:-1] + middle + (1,) + bias.shape[-1:])
    return x @ weight.mT + bias
