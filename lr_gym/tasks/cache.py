"""Data are prepared once: a checksummed file per data set in the cache folder.

The folder is LR_GYM_CACHE, else lr_gym in XDG_CACHE_HOME or ~/.cache. A file appears by renaming,
whole or not at all; a lock lets one process prepare while others wait; a file that was truncated or
altered is found and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import filelock
import rich.console
import rich.progress
import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from lr_gym.files import write_atomically
from lr_gym.rng import Stream, random_bits
from lr_gym.tasks.task import SPLITS, Data, Split

__all__ = [
    "cache_folder",
    "cached",
    "cached_data",
    "first_examples",
    "permutation",
    "progress",
    "split_examples",
]


def cache_folder() -> Path:
    """Where prepared data are kept."""
    if folder := os.environ.get("LR_GYM_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lr_gym"


def progress() -> rich.progress.Progress:
    """A progress bar on the standard error stream, gone when done."""
    return rich.progress.Progress(console=rich.console.Console(stderr=True), transient=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, None where there is none or it is damaged."""
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
    """Tensors of the cache file `name`, built on first use.

    Args:
        name: of the file, without suffix; says the version of whatever the contents depend on.
        build: makes contiguous tensors on the CPU.
    """
    path = cache_folder() / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if (tensors := _read(path)) is not None:
        return tensors
    with filelock.FileLock(path.with_suffix(".lock")):
        if (
            tensors := _read(path) if path.exists() else None
        ) is not None:  # another process was faster
            return tensors
        with progress() as bar:
            bar.add_task(f"preparing {name}", total=None)
            tensors = {key: value.contiguous() for key, value in build().items()}
        write_atomically(path, save(tensors, metadata={"sha256": _digest(tensors)}))
    return tensors


def cached_data(name: str, build: Callable[[], Data]) -> Data:
    """`cached` for four splits of inputs and targets."""

    def tensors() -> dict[str, Tensor]:
        pairs = zip(SPLITS, build(), strict=True)
        return {
            f"{split}.{part}": value
            for split, both in pairs
            for part, value in both._asdict().items()
        }

    stored = cached(name, tensors)
    return Data(*(Split(stored[f"{split}.inputs"], stored[f"{split}.targets"]) for split in SPLITS))


def split_examples(inputs: Tensor, targets: Tensor, sizes: tuple[int, ...], seed: int = 0) -> Data:
    """Shuffle examples by a fixed seed and cut them into gradient, reward, selection and test split.

    Args:
        inputs: (n, ...).
        targets: (n, ...).
        sizes: of the four splits; their sum is at most n.
        seed: of the permutation, the same on every machine.
    """
    order = torch.split(permutation(len(inputs), seed)[: sum(sizes)], list(sizes))
    return Data(*(Split(inputs[part], targets[part]) for part in order))


def first_examples(data: Data, sizes: tuple[int, ...]) -> Data:
    """The same with fewer examples, so many of each split."""
    return Data(
        *(Split(*(part[:size] for part in split)) for split, size in zip(data, sizes, strict=True))
    )


def permutation(count: int, seed: int) -> Tensor:
    """A permutation of range(count), the same on every machine."""
    return torch.argsort(random_bits(torch.tensor(seed), Stream.TASK, 2, count))
