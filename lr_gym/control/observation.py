"""From what is known at a decision to the numbers that a policy sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.control.feature import Observed, loss_known, monitor_known
from lr_gym.control.features import FEATURES

__all__ = ["observe"]


def observe(features: Sequence[str], observed: Observed) -> Tensor:
    """The observation of every layer; features of what is not known are 0.

    Args:
        features: F names of FEATURES.
        observed: everything they may look at.

    Returns:
        (B, L, F) float32, finite and within [-1, 1].
    """
    shape = observed.hyper.lr.shape
    context = observed.context
    known = {
        "loss": loss_known(observed),
        "monitor": monitor_known(observed),
        "gap": monitor_known(observed) * loss_known(observed),
        "progress": context.progress_known,
        "epoch": context.passes_known,
        # the passes of the whole training follow from its length
        "passes": context.passes_known * context.progress_known,
    }
    shown = {need: value.unsqueeze(1) > 0 for need, value in known.items()}
    columns = []
    for name in features:
        feature = FEATURES[name]
        value = feature.compute(observed)
        if feature.needs is not None:
            value = torch.where(shown[feature.needs], value, 0.0)
        columns.append(value.expand(shape))
    return torch.nan_to_num(torch.stack(columns, dim=-1).float(), nan=0.0).clamp(-1.0, 1.0)
