"""Which metric of a framework's evaluations is the held-out loss, for the callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lr_gym.optim import PolicyOptimizer
from lr_gym.optim.notices import Notices

__all__ = ["HeldOutMetric"]


class HeldOutMetric:
    """Tells a PolicyOptimizer one metric by its name, and warns once where it is missing."""

    def __init__(self, name: str) -> None:
        """Begin without a warning.

        Args:
            name: The framework's name of the held-out loss. Lower values are better.
        """
        self.name = name
        self._notices = Notices()

    def tell(self, optimizer: PolicyOptimizer, metrics: Mapping[str, Any]) -> None:
        """Tell the optimizer the held-out loss, if it is among the metrics of an evaluation."""
        if self.name in metrics:
            optimizer.observe_validation(metrics[self.name])

    def check(self, optimizer: PolicyOptimizer, found: Iterable[str]) -> None:
        """Warn where the optimizer looks at held-out losses and is told none.

        Args:
            optimizer: The optimizer that is told the losses.
            found: The names of all metrics of an evaluation.
        """
        names = sorted(found)
        if self.name in names or not optimizer.watches_held_out:
            return
        self._notices.once(
            "missing",
            f"the evaluation has no metric {self.name!r}, so that no held-out loss is told; it has "
            f"{', '.join(map(repr, names)) or 'none'}: give the name of the loss to "
            "PolicyCallback(held_out_metric=...)",
        )
