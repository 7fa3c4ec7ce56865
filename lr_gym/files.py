"""Writing files so that a kill at any moment leaves the old file or the new one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["remove_unfinished", "write_atomically"]

_SUFFIX = ".unfinished"


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX, delete=False
    ) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def remove_unfinished(folder: Path) -> None:
    """Delete what writers that were killed have left in a folder; only its owner may call this."""
    for file in folder.glob(f".*{_SUFFIX}"):
        file.unlink(missing_ok=True)
