"""A training's output folder.

Who owns it, what was asked for, and checkpoints that survive a kill.
"""

from __future__ import annotations

import fcntl
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lr_gym.files import remove_unfinished, write_atomically

__all__ = ["RunFolder", "RunFolderError"]

CHECKPOINT = "checkpoint.pt"
ARGS = "args.json"


class RunFolderError(ValueError):
    """The folder holds another run, is in use, or does not fit what is to be resumed."""


class RunFolder:
    """Locks an output folder for this process and keeps its arguments and checkpoint."""

    def __init__(
        self,
        path: Path,
        args: dict[str, Any],
        *,
        resume: bool,
        may_change: tuple[str, ...] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Claim the folder.

        Args:
            path: made where it does not exist.
            args: plain values that define the run.
            resume: continue the run that is in the folder; without it the folder must hold none.
            may_change: arguments that may differ from those of the run to resume.
            defaults: of arguments that a run of an older version does not know.

        Raises:
            RunFolderError: naming the folder and what to do.
        """
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        try:
            self._claim(json.loads(json.dumps(args)), resume, may_change, defaults or {})
        except BaseException:
            self._lock.close()
            raise

    def _claim(
        self,
        args: dict[str, Any],
        resume: bool,
        may_change: tuple[str, ...],
        defaults: Mapping[str, Any],
    ) -> None:
        path = self.path
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderError(
                f"{path} is in use by another process; choose another --output-dir"
            ) from error
        remove_unfinished(path)
        others = [entry.name for entry in path.iterdir() if entry.name != ".lock"]
        if not resume and others:
            raise RunFolderError(
                f"{path} is not empty: choose another --output-dir, or continue its run with "
                "--resume"
            )
        if resume and ARGS not in others:
            raise RunFolderError(f"{path} holds no run to resume; start one without --resume")
        if resume:
            old = {**defaults, **json.loads((path / ARGS).read_text())}
            for key, value in args.items():
                if key not in may_change and old.get(key) != value:
                    raise RunFolderError(
                        f"{path} was started with {key}={old.get(key)!r}, not {value!r}: resume "
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

        Nothing is unpickled but tensors.
        """
        file = self.path / CHECKPOINT
        if not file.exists():
            return None
        state: dict[str, Any] = torch.load(file, weights_only=True)
        return state

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()
