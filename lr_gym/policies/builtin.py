"""Trained controllers that ship with the package, for `builtin:NAME` in place of a file.

docs/policies.md says for whom each of them is.
"""

from pathlib import Path

__all__ = ["BUILTIN", "GARO", "POLICY_FILE", "builtin_file", "builtin_names"]

BUILTIN = "builtin:"
GARO = "garo"  # weights of GARO's cell, for GlobalAdaptiveSGD; the others are policies
POLICY_FILE = "policy.safetensors"  # name of the policy file in the output folder of a training
_FOLDER = Path(__file__).parent


def builtin_names() -> list[str]:
    """Names of everything that ships, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def builtin_file(name: str) -> Path:
    """The file of `builtin:<name>`; it exists for the names of `builtin_names` only."""
    return _FOLDER / f"{name}.safetensors"
