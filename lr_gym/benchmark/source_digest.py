"""Digests of the source code that a module of lr_gym depends on, read from its imports.

Nobody has to keep a list of files: the digest of a module covers its own file and the files of all
modules of lr_gym that it imports, directly or not, anywhere in their text.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import lr_gym

__all__ = ["modules_behind", "source_digest"]

_ROOT = Path(lr_gym.__file__).parent.parent
_PACKAGE = "lr_gym."


def _file_of(module: str) -> Path | None:
    """The source file of a module of lr_gym, None if there is no such module."""
    if not module.startswith(_PACKAGE):
        return None
    path = _ROOT.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@functools.cache
def _imports(module: str) -> frozenset[str]:
    """Modules of lr_gym that a module imports anywhere in its text."""
    file = _file_of(module)
    if file is None:
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # `from package import name` may name a module or something inside the package
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {member for member in members if _file_of(member) is not None}
            names |= modules if modules == members else {node.module, *modules}
    return frozenset(name for name in names if _file_of(name) is not None)


def modules_behind(modules: Iterable[str]) -> set[str]:
    """The given modules and all modules of lr_gym that they import, directly or not."""
    found: set[str] = set()
    pending = {module for module in modules if _file_of(module) is not None}
    while pending:
        module = pending.pop()
        found.add(module)
        pending |= _imports(module) - found
    return found


@functools.cache
def source_digest(modules: frozenset[str]) -> str:
    """SHA-256 of the source files of modules and of all that they import from lr_gym.

    Modules outside lr_gym are passed over.
    """
    digest = hashlib.sha256()
    for module in sorted(modules_behind(modules)):
        file = _file_of(module)
        assert file is not None
        digest.update(module.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
