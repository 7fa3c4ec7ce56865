"""Trained controllers that ship with the package: `builtin:NAME` where a file of one is asked for.

Docs/policies.md.
"""

from pathlib import Path

__all__ = ["BUILTIN", "GARO", "POLICY_FILE", "builtin_file", "builtin_names"]

BUILTIN = "builtin:"
GARO = "garo"  # weights of GARO's cell, for GlobalAdaptiveSGD; all others are policies
POLICY_FILE = "policy.safetensors"  # in a training's output folder
_FOLDER = Path(__file__).parent


def builtin_names() -> list[str]:
    """Of all of them, in order."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def builtin_file(name: str) -> Path:
    """The file of `builtin:<name>`, which need not exist."""
    return _FOLDER / f"{name}.safetensors"
