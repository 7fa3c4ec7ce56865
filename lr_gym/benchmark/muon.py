"""The baseline Muon: torch's Muon on hidden matrices and convolutions, AdamW on the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lr_gym.benchmark.recipes import TrainingLength
from lr_gym.layers import muon_matrices

__all__ = ["make_muon"]


class CombinedOptimizer(Optimizer):
    """Several optimizers that are used as one.

    Their parameter groups stand in one list, so that schedulers and `zero_grad` reach all of them.
    """

    def __init__(self, *parts: Optimizer) -> None:
        """Combine optimizers of different parameters."""
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        # the base class copies the groups; a scheduler has to write into those that the parts read
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step each part."""
        for part in self.parts:
            part.step()


class FlattenedMuon(Optimizer):
    """Torch's Muon, which takes matrices only, on parameters of two or more dimensions.

    Each parameter is seen as a matrix (first dimension, all others) that shares its memory.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float) -> None:
        """Use the decay and the size of updates that Liu et al. (2025) advise."""
        self._flat = [nn.Parameter(param.detach().view(len(param), -1)) for param in params]
        self._muon = torch.optim.Muon(
            self._flat, lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step with the gradients and the learning rate as they are now."""
        (group,) = self.param_groups
        for param, flat in zip(group["params"], self._flat, strict=True):
            flat.grad = None if param.grad is None else param.grad.reshape(flat.shape)
        self._muon.param_groups[0]["lr"] = group["lr"]
        self._muon.step()  # type: ignore[no-untyped-call]


def make_muon(model: nn.Module, lr: float, length: TrainingLength) -> Optimizer:
    """Make Muon for `muon_matrices`, the same ones as under a policy, and AdamW for the rest.

    Muon's updates have the size of AdamW's, so that one learning rate serves both (Liu et al.
    2025).
    """
    matrices = muon_matrices(model)
    hidden = [p for p in model.parameters() if p in matrices]
    rest = torch.optim.AdamW([p for p in model.parameters() if p not in matrices], lr)
    return CombinedOptimizer(FlattenedMuon(hidden, lr), rest) if hidden else rest
