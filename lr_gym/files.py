"""Files that are written whole or not at all, even if the process is killed meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["remove_unfinished", "write_atomically"]

_SUFFIX = ".unfinished"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill at any moment leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renaming is atomic within one file system, hence the temporary file beside the final one.
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX, delete=False
    ) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # a temporary file can be read by its owner alone
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def remove_unfinished(folder: Path) -> None:
    """Delete temporary files that killed writers have left in a folder.

    Only the one process that writes into the folder may call this.
    """
    for file in folder.glob(f".*{_SUFFIX}"):
        file.unlink(missing_ok=True)
