"""Presets and config files: YAML mappings of argument names to values.

A preset file has a mapping for each preset, as rl-baselines3-zoo has one for each environment.
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
    """Read a YAML file that holds a mapping.

    Raises:
        ValueError: The file cannot be read or holds no mapping; the message names it.
    """
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


def apply(settings: T, values: Mapping[str, Any], source: str) -> T:
    """Copy settings, with some values replaced.

    Args:
        settings: A dataclass instance.
        values: New values by field name. A mapping replaces values of a nested dataclass.
        source: Where the values come from, for error messages.

    Raises:
        ValueError: A name is no field; the message names it, the source and the valid names.
    """
    names = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ValueError(
                f"unknown setting {name!r} in {source}; choose from {', '.join(names)}"
            )
        old = getattr(settings, name)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{name} in {source} must hold a mapping of its settings; got {value!r}"
                )
            changes[name] = apply(old, value, f"{source}, {name}")
        elif isinstance(value, list):
            changes[name] = tuple(value)
        elif isinstance(old, float):
            changes[name] = _number(value, name, source)
        else:
            changes[name] = value
    return dataclasses.replace(settings, **changes)  # type: ignore[type-var]


def _number(value: Any, name: str, source: str) -> Any:
    """A number from a YAML file, or None. YAML reads 1e-3, which has no dot, as a word."""
    if value is None or isinstance(value, (int, float)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} in {source} must be a number; got {value!r}") from error
