"""A cache on disk: data are prepared once on a machine, and kept as files with a checksum.

The folder is LR_GYM_CACHE, else lr_gym in XDG_CACHE_HOME or ~/.cache. A file is written under
another name and then renamed, so it is there whole or not at all. A lock lets one process prepare
while others wait. A file that was truncated or altered is noticed and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from lr_gym.files import write_atomically
from lr_gym.optional import require
from lr_gym.tasks.task import SPLITS, Data, Split

if TYPE_CHECKING:
    import rich.progress

__all__ = ["cache_folder", "cached", "cached_data", "progress"]


def cache_folder() -> Path:
    """The folder in which prepared data are kept."""
    if folder := os.environ.get("LR_GYM_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lr_gym"


def progress() -> rich.progress.Progress:
    """A progress bar on the standard error stream, which disappears when it is done."""
    console = require("rich.console", "tasks").Console(stderr=True)
    bar: rich.progress.Progress = require("rich.progress", "tasks").Progress(
        console=console, transient=True
    )
    return bar


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None if there is no file, or a damaged one."""
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        if header["__metadata__"]["sha256"] == _digest(tensors):
            return tensors
    except (safetensors.SafetensorError, ValueError, KeyError):  # truncated, or not ours
        pass
    warnings.warn(f"{path} is damaged: preparing it again", stacklevel=4)
    return None


def cached(name: str, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a cache file, which is built on first use.

    Args:
        name: name of the file, without suffix. It holds the version of whatever the contents depend
            on, since an existing file is never renewed.
        build: makes the tensors, on the CPU.
    """
    path = cache_folder() / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if (tensors := _read(path)) is not None:
        return tensors
    with require("filelock", "tasks").FileLock(path.with_suffix(".lock")):
        # Another process may have been faster.
        if path.exists() and (tensors := _read(path)) is not None:
            return tensors
        with progress() as bar:
            bar.add_task(f"preparing {name}", total=None)
            tensors = {key: value.contiguous() for key, value in build().items()}
        write_atomically(path, save(tensors, metadata={"sha256": _digest(tensors)}))
    return tensors


def cached_data(name: str, build: Callable[[], Data]) -> Data:
    """`cached` for the splits of a task."""

    def tensors() -> dict[str, Tensor]:
        return {
            f"{name}.{part}": value
            for name, split in build().splits().items()
            for part, value in split._asdict().items()
        }

    stored = cached(name, tensors)
    splits = [split for split in SPLITS if f"{split}.inputs" in stored]
    return Data(
        **{name: Split(stored[f"{name}.inputs"], stored[f"{name}.targets"]) for name in splits}
    )
