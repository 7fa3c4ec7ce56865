"""The output folder of a run: its owner, its arguments, and checkpoints that survive a kill."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import torch

from lr_gym.files import remove_unfinished, write_atomically

__all__ = ["RunFolder", "RunFolderError", "stored_args"]

CHECKPOINT = "checkpoint.pt"
ARGS = "args.json"
LOCK = ".lock"


class RunFolderError(ValueError):
    """The folder holds another run, is in use, or was started with other arguments."""


class RunFolder:
    """Locks an output folder for this process, and keeps its arguments and its checkpoint.

    Attributes:
        path: The folder.
    """

    def __init__(
        self, path: Path, args: dict[str, Any], *, resume: bool, may_change: tuple[str, ...] = ()
    ) -> None:
        """Claim the folder.

        Args:
            path: The folder; it is made where it does not exist.
            args: Plain values that define the run.
            resume: Continue the run that is in the folder; without it, the folder must be empty.
            may_change: Arguments that may differ from those of the run that is resumed.

        Raises:
            RunFolderError: The folder cannot be claimed; the message names it and what to do.
        """
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(path / LOCK, timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise RunFolderError(
                f"{path} is in use by another process; choose another --output-dir"
            ) from error
        try:
            self._claim(json.loads(json.dumps(args)), resume, may_change)
        except BaseException:
            self._lock.release()
            raise

    def _claim(self, args: dict[str, Any], resume: bool, may_change: tuple[str, ...]) -> None:
        """Check what is in the folder, which is locked, and write the arguments."""
        path = self.path
        remove_unfinished(path)
        others = [entry.name for entry in path.iterdir() if entry.name != LOCK]
        if not resume and others:
            raise RunFolderError(
                f"{path} is not empty: choose another --output-dir, or continue its run with "
                "--resume"
            )
        if resume and ARGS not in others:
            raise RunFolderError(f"{path} holds no run to resume; start one without --resume")
        if resume:
            old = flattened(json.loads((path / ARGS).read_text()))
            for name, value in flattened(args).items():
                if name not in may_change and old.get(name) != value:
                    raise RunFolderError(
                        f"{path} was started with {name}={old.get(name)!r}, not {value!r}: resume "
                        "with the same arguments"
                    )
        write_atomically(path / ARGS, json.dumps(args, indent=2).encode())

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically; `state` holds tensors and plain values only."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.path / CHECKPOINT, buffer.getvalue())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, or None where none was written yet.

        Only tensors and plain values are read; no other pickled object is.
        """
        file = self.path / CHECKPOINT
        if not file.exists():
            return None
        state: dict[str, Any] = torch.load(file, weights_only=True)
        return state

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()


def stored_args(path: Path) -> dict[str, Any]:
    """The arguments of the run in a folder, or nothing where the folder holds no run.

    Raises:
        RunFolderError: The file of the arguments cannot be read; the message names it.
    """
    file = path / ARGS
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{file} does not hold the arguments of a run ({error}): start one in a new folder"
        ) from error


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted names, so that an error can name the field."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
