"""Who is compared: baselines, deployed policies, and the rows that they take in an evaluation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lr_gym.benchmark.optimizers import OPTIMIZERS, check_available
from lr_gym.benchmark.policy_recipe import POLICY_LR, policy_recipe
from lr_gym.benchmark.recipes import Recipe

__all__ = ["Baseline", "Contestant", "DeployedPolicy", "Entrant", "entrants", "recipe_of"]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """An optimizer of the table OPTIMIZERS.

    Attributes:
        optimizer: name of its row.
    """

    optimizer: str

    def __str__(self) -> str:
        return self.optimizer


@dataclasses.dataclass(frozen=True)
class DeployedPolicy:
    """A saved policy that sets the learning rates of a PolicyOptimizer.

    Attributes:
        path: a policy file, an output folder of train_agent.py, or builtin:NAME.
    """

    path: str

    def __str__(self) -> str:
        return self.path


Contestant = Baseline | DeployedPolicy


def recipe_of(contestant: Contestant) -> Recipe:
    """How a contestant trains.

    Raises:
        ValueError: if the optimizer is unknown, or if the policy cannot be read.
    """
    if isinstance(contestant, DeployedPolicy):
        return policy_recipe(contestant.path)
    if contestant.optimizer not in OPTIMIZERS:
        raise ValueError(
            f"unknown optimizer {contestant.optimizer!r}; choose from {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[contestant.optimizer]


class Entrant(NamedTuple):
    """A row of an evaluation: a contestant at a fixed or at a tuned learning rate.

    Attributes:
        name: name in tables and plots, unique in an evaluation.
        about: one line for the report.
        contestant: who trains.
        lr: fixed learning rate; None means that the learning rate is tuned on each task.
        space: (low, high) range of the learning rates that tuning may try.
    """

    name: str
    about: str
    contestant: Contestant
    lr: float | None
    space: tuple[float, float]

    @property
    def policy(self) -> str | None:
        """Path of the policy, None for a baseline."""
        return self.contestant.path if isinstance(self.contestant, DeployedPolicy) else None

    @property
    def kind(self) -> str:
        """Either "policy" or "baseline"."""
        return "baseline" if self.policy is None else "policy"


def entrants(
    optimizers: Sequence[str], policies: Sequence[str | os.PathLike[str]]
) -> list[Entrant]:
    """The rows of an evaluation: policies, then baselines.

    Each policy has two rows, one without tuning and one with a tuned initial learning rate.

    Args:
        optimizers: names of rows of OPTIMIZERS.
        policies: policy files, output folders of train_agent.py, or builtin:NAME.

    Raises:
        ValueError: if a name is unknown or repeated, if a policy cannot be read, or if nothing is
            named.
        ImportError: if an optimizer needs a package that is missing; the message names it.
    """
    paths = [os.fspath(policy) for policy in policies]
    if not optimizers and not paths:
        raise ValueError("nothing to compare: name at least one of --optimizers or --policy")
    _check_distinct(optimizers)
    _check_distinct(paths)
    baselines = [_baseline_row(name) for name in optimizers]
    check_available(optimizers)
    rows = []
    for path, short_name in zip(paths, _short_names(paths), strict=True):
        rows += _policy_rows(path, f"policy {short_name}")
    return rows + baselines


def _check_distinct(names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(map(repr, repeated))} is asked for twice")


def _short_names(paths: Sequence[str]) -> list[str]:
    """Last part of each path without its ending, or the whole path where two would be the same."""
    short = [Path(p.removeprefix("builtin:")).name.removesuffix(".safetensors") or p for p in paths]
    return [
        name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)
    ]


def _policy_rows(path: str, name: str) -> list[Entrant]:
    contestant = DeployedPolicy(path)
    space = recipe_of(contestant).space
    fixed = f"{path}, initial lr {POLICY_LR:g}, no tuning"
    tuned = f"{path}, initial lr tuned"
    return [
        Entrant(name, fixed, contestant, POLICY_LR, space),
        Entrant(f"{name} (tuned lr)", tuned, contestant, None, space),
    ]


def _baseline_row(name: str) -> Entrant:
    contestant = Baseline(name)
    recipe = recipe_of(contestant)
    return Entrant(name, recipe.about, contestant, recipe.lr, recipe.space)
