"""Wrong targets in the gradient split, as labels given by hand have them."""

from __future__ import annotations

import torch
from torch import Tensor

from lr_gym.rng import Stream, integers, random_bits
from lr_gym.tasks.task import Data, Split

__all__ = ["with_wrong_targets"]

# Steps of Stream.HELD_OUT_TASK, one for each purpose; 0 is in use in random_held_out.py.
ORDER = 1
CLASSES = 2


def with_wrong_targets(data: Data, share: float, classes: int | None, seed: int) -> Data:
    """Data with wrong targets in the gradient split; the other splits stay as they are.

    Args:
        data: splits with targets (n, ...).
        share: share of the gradient split whose targets are wrong, in [0, 1].
        classes: number of classes, of which a wrong one is any other with equal chance. None for
            targets that are not classes: a wrong one is then that of another wrong example.
        seed: decides which examples are wrong, and how.
    """
    inputs, targets = data.gradient
    return data._replace(gradient=Split(inputs, _with_wrong(targets, share, classes, seed)))


def _with_wrong(targets: Tensor, share: float, classes: int | None, seed: int) -> Tensor:
    """Targets (n, ...), of which round(share * n) are wrong."""
    key = torch.tensor(seed)
    count = round(share * len(targets))
    order = torch.argsort(random_bits(key, Stream.HELD_OUT_TASK, ORDER, len(targets)))
    chosen = order[:count]
    wrong = targets.clone()
    if classes is None:
        wrong[chosen] = targets[chosen].roll(1, dims=0)  # in random order, so it is a random one
    else:
        further = 1 + integers(key, Stream.HELD_OUT_TASK, CLASSES, count, classes - 1)
        wrong[chosen] = (targets[chosen] + further) % classes
    return wrong
