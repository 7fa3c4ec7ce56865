"""Rows: what the host knows of each row of a vector environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_gym.control.finish import Endings
from lr_gym.rng import run_seeds

__all__ = ["Rows"]


@dataclasses.dataclass
class Rows:
    """B rows, each of which plays one episode after the other.

    Attributes:
        row_seed: (B,) seed that the episodes of a row are drawn from.
        episode: (B,) number of the row's present episode, from 0; -1 before its first one.
        step: (B,) inner steps made in that episode.
        done: (B,) whether the episode is over and the row waits for a reset.
        decided: (B,) inner steps after which the end of that episode was decided, -1 before.
        length: (B,) inner steps for which its learning rate then falls.
        given_lr: (B, L) initial learning rates that the user gave, NaN where runs draw their own.
    """

    row_seed: NDArray[np.int64]
    episode: NDArray[np.int64]
    step: NDArray[np.int64]
    done: NDArray[np.bool_]
    decided: NDArray[np.int64]
    length: NDArray[np.int64]
    given_lr: NDArray[np.float64]

    @classmethod
    def of(cls, count: int, layers: int) -> Rows:
        """Make B rows of L layers that are not seeded yet."""
        zeros = np.zeros(count, dtype=np.int64)
        return cls(
            row_seed=zeros,
            episode=zeros.copy(),
            step=zeros.copy(),
            done=np.zeros(count, dtype=bool),
            decided=np.full(count, -1),
            length=zeros.copy(),
            given_lr=np.full((count, layers), np.nan),
        )

    def seed(self, seed: int | Sequence[int], mask: NDArray[np.bool_]) -> None:
        """Give new seeds to the rows of a mask (B,); the next episode that they begin is number 0.

        Args:
            seed: s for seeds s, s + 1, ...; or one seed per row.
            mask: (B,) the rows.

        Raises:
            ValueError: where the number of seeds is not that of the rows.
        """
        rows = len(self.row_seed)
        if isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + row for row in range(rows)]
        else:
            seeds = [int(each) for each in seed]
        if len(seeds) != rows:
            raise ValueError(f"seed must be an int or one per run ({rows}); got {len(seeds)}")
        self.row_seed = np.where(mask, np.array(seeds, dtype=np.int64), self.row_seed)
        self.episode[mask] = -1

    def begin(self, rows: NDArray[np.intp]) -> tuple[Tensor, NDArray[np.float64] | None]:
        """Begin the next episode of some rows.

        Args:
            rows: (n,) indices of the rows.

        Returns:
            The seed of each training (n,), and its initial learning rates (n, L) or None.
        """
        self.episode[rows] += 1
        self.step[rows] = 0
        self.done[rows] = False
        self.decided[rows] = -1
        self.length[rows] = 0
        row_seed = torch.from_numpy(self.row_seed[rows])
        seeds = run_seeds(row_seed, torch.from_numpy(self.episode[rows]))
        lr = self.given_lr[rows]
        return seeds, None if np.isnan(lr).any() else lr

    @property
    def endings(self) -> Endings:
        """What is decided about the ends of the episodes."""
        return Endings(self.decided, self.length)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every field by name, for checkpoints."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
