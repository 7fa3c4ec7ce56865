"""ObservedRanges: what a policy saw while it learned. Saved with the policy.

The guard of the deployed one compares with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["ObservedRanges"]

_PREFIX = "seen."


class ObservedRanges(NamedTuple):
    """Ranges over all decisions, layers and trainings, each a row of lows and a row of highs.

    Float32.

    Attributes:
        features: (2, F) of the observation.
        offsets: (2, A) that the controls reached.
        lr: (2,) of the initial learning rate.
    """

    features: Tensor
    offsets: Tensor
    lr: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By the names under which they are saved."""
        return {_PREFIX + name: tensor for name, tensor in self._asdict().items()}

    @classmethod
    def taken_from(cls, tensors: dict[str, Tensor]) -> Self | None:
        """Remove from `tensors` what `ObservedRanges.tensors` put there.

        None where a policy holds no ranges.

        Raises:
            KeyError: where only a part is there.
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
