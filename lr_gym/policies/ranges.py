"""ObservedRanges: the ranges of everything that a policy observed and did while it learned.

They are saved with the policy. The guard of a deployed policy compares with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["ObservedRanges", "is_range"]

_PREFIX = "ranges."


def is_range(name: str) -> bool:
    """Whether a tensor of a policy file belongs to ObservedRanges."""
    return name.startswith(_PREFIX)


class ObservedRanges(NamedTuple):
    """Lows (row 0) and highs (row 1) over all decisions, layers and trainings, float32.

    Attributes:
        features: (2, F) range of each feature of the observation.
        offsets: (2, A) range of the offset of each control.
        lr: (2,) range of the initial learning rate of a layer over its unit.
    """

    features: Tensor
    offsets: Tensor
    lr: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Every field by the name under which it is saved."""
        return {_PREFIX + name: tensor for name, tensor in self._asdict().items()}

    @classmethod
    def taken_from(cls, tensors: dict[str, Tensor]) -> Self | None:
        """Remove from `tensors` what the method `tensors` put there, and return it.

        Args:
            tensors: all tensors of a policy file; changed in place.

        Returns:
            The ranges, or None where the file holds none.

        Raises:
            KeyError: where only a part of them is there.
        """
        if not any(name.startswith(_PREFIX) for name in tensors):
            return None
        return cls(*(tensors.pop(_PREFIX + name) for name in cls._fields))

    def check(self, features: int, controls: int) -> None:
        """Raise a ValueError unless these are finite ranges of so many features and controls."""
        shapes: Mapping[str, tuple[int, ...]] = {
            "features": (2, features),
            "offsets": (2, controls),
            "lr": (2,),
        }
        for name, tensor in self._asdict().items():
            if tensor.shape != shapes[name] or tensor.dtype != torch.float32:
                raise ValueError(
                    f"{_PREFIX}{name} is {tensor.dtype} {tuple(tensor.shape)}, expected "
                    f"{shapes[name]}"
                )
            if not bool(torch.isfinite(tensor).all()) or bool((tensor[0] > tensor[1]).any()):
                raise ValueError(
                    f"{_PREFIX}{name} must hold finite numbers, the lows no higher than the highs"
                )
        if not float(self.lr[0]) > 0.0:
            raise ValueError(f"{_PREFIX}lr must be positive; got {self.lr.tolist()}")
