"""The table of base optimizers."""

from __future__ import annotations

from lr_gym.updates.adam import Adam
from lr_gym.updates.muon import Muon
from lr_gym.updates.rule import BaseRule
from lr_gym.updates.sgd import SGD

__all__ = ["RULES", "base_rule"]

RULES: dict[str, BaseRule] = {
    "sgd": SGD(),
    "adam": Adam(),
    "adamw": Adam(decoupled=True),
    "muon": Muon(),
}


def base_rule(base: str) -> BaseRule:
    """Look up a rule of RULES.

    Raises:
        ValueError: for an unknown name; the message lists the valid ones.
    """
    if base not in RULES:
        raise ValueError(f"base must be one of {', '.join(RULES)}; got {base!r}")
    return RULES[base]
