"""Losses, one value for each example, and metrics, one value for a split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "accuracy",
    "bernoulli_kl",
    "cross_entropy",
    "f1",
    "next_symbol",
    "outputs_are_losses",
    "precision",
    "recall",
    "squared_error",
    "squared_gap",
]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (n, classes) against classes (n,): (n,), in nats."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def next_symbol(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (n, T, symbols) against symbols (n, T): (n,), nats a symbol."""
    logits = outputs.flatten(0, 1)
    losses = nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
    return losses.view_as(targets).mean(1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each example, both (n, d): (n,)."""
    return (outputs - targets).square().mean(-1)


def squared_gap(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance of student and teacher, outputs (n, o, 2): (n,), optimum 0."""
    return 0.5 * (outputs[..., 0] - outputs[..., 1]).square().sum(-1)


def bernoulli_kl(outputs: Tensor, targets: Tensor) -> Tensor:
    """KL divergence from the teacher's Bernoulli distribution to the student's, in nats.

    It is the cross-entropy against the teacher's probabilities, minus their entropy; its optimum is
    0.

    Args:
        outputs: (n, 1, 2) logits of student and teacher.
        targets: ignored.

    Returns:
        (n,).
    """
    student, teacher = outputs[..., 0], outputs[..., 1]
    log = nn.functional.logsigmoid
    yes = torch.sigmoid(teacher) * (log(teacher) - log(student))
    no = torch.sigmoid(-teacher) * (log(-teacher) - log(-student))
    return (yes + no).sum(-1)


def outputs_are_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """The outputs (n,) as they are, for a model that computes its own losses."""
    return outputs


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of logits (..., classes) whose largest entry is the target class (...)."""
    return (outputs.argmax(-1) == targets).float().mean()


def _confusion(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of true positives, predicted positives and positives; class 1 is positive."""
    predicted = outputs.argmax(1) == 1
    positive = targets == 1
    return (predicted & positive).sum().float(), predicted.sum().float(), positive.sum().float()


def precision(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of the predicted positives that are positive; 0 if none is predicted."""
    true, predicted, _ = _confusion(outputs, targets)
    return true / predicted.clamp_min(1.0)


def recall(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of the positives that are predicted; 0 if there are none."""
    true, _, positive = _confusion(outputs, targets)
    return true / positive.clamp_min(1.0)


def f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Harmonic mean of precision and recall; 0 if both are 0."""
    true, predicted, positive = _confusion(outputs, targets)
    return 2.0 * true / (predicted + positive).clamp_min(1.0)
