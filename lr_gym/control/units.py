"""Units of the learning rates of layers, from those of their tensors (`BaseRule.unit`).

Environment and deployed optimizer take the units from this function, and policies see learning
rates divided by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lr_gym.layers import Layout

__all__ = ["layer_units"]


def layer_units(
    layout: Layout, granularity: str, units: Sequence[float], sizes: Sequence[int]
) -> list[float]:
    """Return the unit of the learning rate of each layer.

    A layer has the unit of its tensor with the most elements, the first of them where several have
    equally many. With granularity="global", where one learning rate serves the whole model, the
    unit is the geometric mean over all tensors, weighted by their elements.

    Args:
        layout: the layer of each of n tensors.
        granularity: "per_layer" or "global".
        units: (n) the unit of each tensor.
        sizes: (n) the number of elements of each tensor that are trained.

    >>> from lr_gym.layers import Layout
    >>> layout = Layout(("0", "1"), (0, 0, 1), (8, 2, 4))
    >>> layer_units(layout, "per_layer", [0.5, 1.0, 2.0], layout.sizes)
    [0.5, 2.0]
    """
    if granularity == "global":
        logs = sum(size * math.log(unit) for size, unit in zip(sizes, units, strict=True))
        return [math.exp(logs / max(1, sum(sizes)))]
    largest = [-1] * layout.num_layers
    found = [1.0] * layout.num_layers
    for layer, size, unit in zip(layout.layer_of, sizes, units, strict=True):
        if size > largest[layer]:
            largest[layer] = size
            found[layer] = unit
    return found
