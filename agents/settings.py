"""Presets and config files: YAML mappings of argument names to values, laid under the command line.

A preset file has a mapping per preset, as rl-baselines3-zoo has one per environment. The order is:
defaults of the arguments, the agent's preset, the config file, the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

__all__ = ["apply", "presets", "read_yaml"]

T = TypeVar("T")
FOLDER = Path(__file__).parent / "presets"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; a ValueError names the file and what is wrong."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file that can be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} must hold a mapping of argument names to values; got {values!r:.80}"
        )
    return values


def presets(agent: str) -> dict[str, dict[str, Any]]:
    """The presets of an agent by name."""
    return read_yaml(FOLDER / f"{agent}.yml")


def _number(value: Any, old: Any, name: str, source: str) -> Any:
    """A value where a number stood before: YAML takes 1e-3, which has no dot, for a word."""
    if not isinstance(old, float) or isinstance(value, (int, float)) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} in {source} must be a number; got {value!r}") from error


def apply(defaults: T, values: Mapping[str, Any], source: str) -> T:
    """Defaults (a dataclass instance) with values laid over them.

    Nested mappings reach into nested dataclasses.

    Raises:
        ValueError: for a name that is no field, naming it, the source and the valid names.
    """
    names = [field.name for field in dataclasses.fields(defaults)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ValueError(
                f"unknown setting {name!r} in {source}; choose from {', '.join(names)}"
            )
        old = getattr(defaults, name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(old):
            changes[name] = apply(old, value, f"{source}, {name}")
        else:
            changes[name] = (
                tuple(value) if isinstance(value, list) else _number(value, old, name, source)
            )
    return dataclasses.replace(defaults, **changes)  # type: ignore[type-var]
