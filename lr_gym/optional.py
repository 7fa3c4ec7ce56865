"""Optional packages: imported where they are used, and named with their extra where they are missing."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from types import ModuleType

__all__ = ["require", "version_of"]


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: name of the module.
        extra: the extra of lr-gym that installs it.

    Raises:
        ImportError: where the package is missing, saying what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'{module} is missing: pip install "lr-gym[{extra}]"') from error


def version_of(package: str, extra: str) -> str:
    """Installed version of an optional package.

    Args:
        package: its name on the package index.
        extra: the extra of lr-gym that installs it.

    Raises:
        ImportError: where the package is missing, saying what to install.
    """
    require(package.replace("-", "_"), extra)
    return version(package)
