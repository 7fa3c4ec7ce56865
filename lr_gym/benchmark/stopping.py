"""The rows of OPTIMIZERS that decide by the held-out loss, and the constants that they share.

`experiments/held_out_rules.py` tunes PLATEAU, STOP_PATIENCE and RULE. All patiences are counted in
measurements of the held-out loss, of which there are `held_out.MOMENTS` in a whole training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from lr_gym.benchmark.held_out import HeldOutUse
from lr_gym.benchmark.muon import make_muon
from lr_gym.benchmark.recipes import Recipe, plain
from lr_gym.benchmark.watching import with_plateaus, with_rule
from lr_gym.control.patience import PatienceRule

__all__ = [
    "BEST",
    "PLATEAU",
    "RULE",
    "STOP_PATIENCE",
    "Plateau",
    "best_and_stop",
    "plateau_recipe",
    "rule_recipe",
    "rule_recipes",
]


class Plateau(NamedTuple):
    """How a learning rate falls where the held-out loss stands still.

    Attributes:
        factor: factor on the learning rate at a plateau.
        patience: held-out losses without an improvement that are tolerated before the rate falls.
    """

    factor: float
    patience: int


PLATEAU = Plateau(factor=0.5, patience=2)
STOP_PATIENCE = 20  # held-out losses without a new lowest one, after which a training stops
RULE = PatienceRule(patience=4, min_improvement=0.0)

BEST = HeldOutUse(best=True)
ADAMW = (plain, torch.optim.AdamW)
# row -> (row whose calibrated rate it has, name for readers, what makes the optimizer)
RULE_ROWS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "adamw-patience": ("adamw-wsd", "AdamW", ADAMW),
    "muon-patience": ("muon-wsd", "Muon", (make_muon,)),
}


def best_and_stop(patience: int = STOP_PATIENCE) -> HeldOutUse:
    """Judge the weights of the lowest held-out loss, and stop where no lower one comes."""
    return HeldOutUse(best=True, patience=patience)


def plateau_recipe(plateau: Plateau = PLATEAU, stop_patience: int = STOP_PATIENCE) -> Recipe:
    """AdamW whose rate falls on plateaus of the held-out loss, with checkpoints and early stopping.

    Args:
        plateau: when and how far the rate falls.
        stop_patience: the training ends after so many held-out losses without a new lowest one.
    """
    make = partial(with_plateaus, *ADAMW, factor=plateau.factor, patience=plateau.patience)
    use = best_and_stop(stop_patience)._replace(tell=True)
    return Recipe(
        "AdamW, lowered on plateaus of the held-out loss; best weights, stops early",
        make,
        held_out=use,
    )


def rule_recipe(name: str, make: tuple[Any, ...], lr: float, rule: PatienceRule = RULE) -> Recipe:
    """An optimizer under WSD, until a rule says that the training ends.

    Args:
        name: what the optimizer is called.
        make: the function that makes it, and its first arguments.
        lr: the rate.
        rule: decides when the training ends.
    """
    about = f"{name}, WSD, lr {lr:g}; ends when the held-out loss stops falling; best weights"
    return Recipe(
        about,
        partial(with_rule, *make, rule=rule),
        lr=lr,
        held_out=HeldOutUse(best=True, tell=True),
    )


def rule_recipes(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Recipe]:
    """The rows of RULE_ROWS whose optimizer has a calibrated rate.

    Args:
        entries: what `calibrated.read_calibrated` returns.
    """
    return {
        row: rule_recipe(name, make, float(entries[calibrated]["lr"]))
        for row, (calibrated, name, make) in RULE_ROWS.items()
        if calibrated in entries
    }
