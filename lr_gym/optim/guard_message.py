"""The text that tells a user why the guard of a policy acts, what it does, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lr_gym.control.features import FEATURES
from lr_gym.policies.ranges import ObservedRanges

__all__ = ["guard_message"]

NAMED_LAYERS = 3  # more layers than these are only counted


def guard_message(
    ranges: ObservedRanges,
    features: Sequence[str],
    layers: Sequence[str],
    low_trust: Tensor,
    observation: Tensor,
    distance: Tensor,
) -> str:
    """The text, with the worst number of all layers as its example. All tensors are on the host.

    Args:
        ranges: what the policy has learned from.
        features: F names.
        layers: L names.
        low_trust: (L,) bool, the layers that the guard acts on.
        observation: (L, F).
        distance: (L, F) how far the observation is outside the ranges.
    """
    low = low_trust.tolist()
    names = [name for name, is_low in zip(layers, low, strict=True) if is_low]
    listed = ", ".join(names[:NAMED_LAYERS]) + (", ..." if len(names) > NAMED_LAYERS else "")
    worst = int((distance * low_trust.unsqueeze(1)).argmax())
    layer, feature = divmod(worst, len(features))
    example = _comparison(
        features[feature],
        layers[layer],
        float(observation[layer, feature]),
        *ranges.features[:, feature].tolist(),
    )
    return (
        f"the policy has learned from nothing like this training: {example}. So your own lr is "
        f"used instead of the policy's, at once or little by little, in {len(names)} of "
        f"{len(layers)} layers ({listed}). If the policy does not know that lr either, their "
        "rates stay where they are or move to the nearest rate that it knows. Choose lr as you "
        "would for the base optimizer alone, or train a policy on tasks like yours. "
        "optimizer.metrics() shows the trust in each layer, from 0 (your lr) to 1 (the policy's)."
    )


def _comparison(feature: str, layer: str, value: float, low: float, high: float) -> str:
    """What is observed and the range that the policy knows, in the user's units if any."""
    row = FEATURES[feature]
    if row.quantity is None:
        return (
            f"{feature} of {layer} ({row.about}) is {value:.2f}, "
            f"and the policy knows {low:.2f} to {high:.2f}"
        )
    name, to_number = row.quantity
    here, least, most = (f"{max(0.0, to_number(x)):.3g}" for x in (value, low, high))
    return f"{name.format(layer=layer)}: {here}, and the policy knows {least} to {most}"
