"""Logs of figures while something runs: always a JSON-lines file, and wandb where it is wanted.

Only this file imports wandb.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lr_gym.files import write_atomically
from lr_gym.optional import require

__all__ = ["PROGRESS", "WANDB_MODES", "Tracker", "log_run", "read_progress"]

PROGRESS = "progress.jsonl"
WANDB_MODES = ("auto", "online", "offline", "disabled")


class Tracker:
    """Logs rows of figures to `progress.jsonl` and, unless disabled, to wandb.

    wandb never asks a question and never stops a run. The mode "auto" is online where the user is
    logged in, and offline elsewhere. If wandb cannot start, this is reported once, and the run goes
    on without it.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        wandb: str = "auto",
        tensorboard: bool = False,
        name: str,
        resume_step: int | None = None,
    ) -> None:
        """Open the log.

        Args:
            folder: an existing folder; `progress.jsonl` and `wandb/` go into it.
            config: plain values that describe the run.
            wandb: one of WANDB_MODES.
            tensorboard: whether the curves are also written to `tensorboard/`.
            name: name of the wandb run.
            resume_step: continue the log after this step and drop what came later; None starts a
                new log.

        Raises:
            ValueError: if `wandb` is not one of WANDB_MODES.
            ImportError: if `tensorboard` is asked for and is not installed.
        """
        if wandb not in WANDB_MODES:
            raise ValueError(f"wandb must be one of {', '.join(WANDB_MODES)}; got {wandb!r}")
        path = folder / PROGRESS
        kept: list[dict[str, Any]] = []
        if resume_step is not None:
            kept = [row for row in read_progress(path) if row["step"] <= resume_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._start = time.monotonic()
        self._board = _start_tensorboard(folder, resume_step) if tensorboard else None
        self._run: Any = None
        if wandb != "disabled":
            self._run = _start_wandb(folder, config, wandb, name)

    def log(self, row: dict[str, Any], step: int) -> None:
        """Write one row of figures; rows are ordered by `step`."""
        stamped = {"step": step, "seconds": round(time.monotonic() - self._start, 3), **row}
        self._file.write(json.dumps(stamped) + "\n")
        self._file.flush()
        if self._run is not None:
            self._run.log(row, step=step)
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def save_file(self, path: Path, kind: str) -> None:
        """Keep a file as an artifact of the wandb run; `kind` is the artifact's type."""
        if self._run is not None:
            self._run.log_artifact(str(path), type=kind)

    def save_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Show a table with the wandb run."""
        if self._run is not None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log({name: table})

    def save_pictures(self, paths: Sequence[Path]) -> None:
        """Show pictures and films (.png, .gif) with the wandb run."""
        if self._run is not None:
            import wandb

            kinds = {".png": wandb.Image, ".gif": lambda path: wandb.Video(path, format="gif")}
            self._run.log({path.stem: kinds[path.suffix](str(path)) for path in paths})

    def close(self) -> None:
        """Finish the log."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish()


def read_progress(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log; a last line that a kill has cut short is dropped."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def log_run(
    folder: Path,
    config: dict[str, Any],
    rows: Iterable[tuple[int, dict[str, float]]],
    summary: dict[str, Any],
    *,
    wandb: str,
    name: str,
    group: str,
) -> None:
    """Log one finished training to wandb as a run of its own.

    Args:
        folder: folder in which `wandb/` is made.
        config: plain values that describe the run.
        rows: (step, figures), ordered by step.
        summary: final figures.
        wandb: one of WANDB_MODES.
        name: name of the run.
        group: group under which wandb shows the run.
    """
    if wandb == "disabled":
        return
    run = _start_wandb(folder, config, wandb, name, group)
    if run is None:
        return
    for step, row in rows:
        run.log(row, step=step)
    run.summary.update(summary)
    run.finish()


def _start_wandb(
    folder: Path, config: dict[str, Any], mode: str, name: str, group: str | None = None
) -> Any:
    """A wandb run, None where wandb cannot start."""
    # weave takes our package `agents` for another one and advertises itself
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")  # seconds that an unreachable server can cost
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    try:
        require("wandb", "wandb")
        import wandb
    except ImportError as error:
        print(f"wandb could not start and is left out: {error}")
        return None
    try:
        return wandb.init(
            project="lr_gym",
            name=name,
            group=group,
            dir=folder,
            config=config,
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(console="off", silent=True, quiet=True),
        )
    except (wandb.Error, OSError) as error:
        print(f"wandb could not start and is left out: {error}")
        return None


def _start_tensorboard(folder: Path, resume_step: int | None) -> Any:
    """A TensorBoard writer that drops what an earlier run wrote after the step to resume from."""
    require("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    purge = None if resume_step is None else resume_step + 1
    return SummaryWriter(str(folder / "tensorboard"), purge_step=purge)


def _logged_in() -> bool:
    """Whether wandb has an API key in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
