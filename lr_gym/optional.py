"""Optional packages: a missing one is reported together with the extra that installs it."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import version
from types import ModuleType

__all__ = ["check_installed", "require", "version_of"]


def _missing(module: str, extra: str) -> ImportError:
    return ImportError(f'{module} is missing: pip install "lr-gym[{extra}]"', name=module)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: The name of the module.
        extra: The extra of lr-gym that installs it.

    Raises:
        ImportError: The package, or another that it needs, is missing. The message says what to
            install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(error.name or module, extra) from error


def check_installed(extra: str, *modules: str) -> None:
    """Check that optional packages are there, without importing them.

    A package of ours that cannot do without an extra calls this in its `__init__`.

    Args:
        extra: The extra of lr-gym that installs the packages.
        *modules: The names of their modules, without dots.

    Raises:
        ImportError: One of the packages is missing. The message says what to install.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, extra)


def version_of(package: str, extra: str) -> str:
    """Return the installed version of an optional package.

    Args:
        package: The name of the package on the package index.
        extra: The extra of lr-gym that installs it.

    Raises:
        ImportError: The package is missing. The message says what to install.
    """
    require(package.replace("-", "_"), extra)
    return version(package)
