"""One `.safetensors` file with tensors and JSON, checked when it is read.

Policies, Q-tables and recurrent weights are saved this way. Nothing in a file is ever unpickled or
evaluated. The JSON names the kind of content and the version of the schema. A SHA-256 over JSON and
tensors shows damage; it does not protect from forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lr_gym.files import write_atomically

__all__ = [
    "MAX_BYTES",
    "PolicyFileError",
    "check_finite",
    "digest",
    "read_tensor_file",
    "reading",
    "write_tensor_file",
]

SCHEMA_VERSION = 1
MAX_BYTES = 16 * 2**20
_METADATA_KEY = "lr_gym"


class PolicyFileError(ValueError):
    """A policy file is missing, damaged, altered, too large, or of an unknown kind or version."""


def digest(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the JSON and the tensors."""
    sha = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def write_tensor_file(
    path: str | os.PathLike[str],
    kind: str,
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Path:
    """Write atomically: whatever happens, the path holds the old file or the new one.

    Args:
        path: ends in `.safetensors`; missing parent folders are made.
        kind: what the file holds.
        content: plain JSON values.
        tensors: by name.

    Returns:
        The path.

    Raises:
        ValueError: for another ending, or a number in `content` that is not finite.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a policy file ends in .safetensors; got {str(path)!r}")
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {"schema_version": SCHEMA_VERSION, "kind": kind, **content}
    header = json.loads(json.dumps(header, allow_nan=False))
    header["sha256"] = digest(header, tensors)
    write_atomically(path, save(tensors, {_METADATA_KEY: json.dumps(header, sort_keys=True)}))
    return path


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever a damaged or altered file raises into a PolicyFileError that names it."""
    try:
        yield
    except PolicyFileError:
        raise
    except (
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OSError,
        MemoryError,
        RuntimeError,
    ) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise PolicyFileError(
            f"{file} is not a policy file that lr_gym can read: {reason}"
        ) from error


def read_tensor_file(file: Path, *kinds: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read content and tensors of a file of one of these kinds; call it within `reading`.

    Raises:
        PolicyFileError: where the file is missing or too large; the context `reading` turns all
            other errors into a PolicyFileError too.
    """
    if not file.is_file():
        raise PolicyFileError(f"no policy file at {str(file)!r}")
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise PolicyFileError(
            f"{file}: {size} bytes, more than the {MAX_BYTES} that a policy may have"
        )
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        # copies: what get_tensor returns is mapped to the file and would follow its changes
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    content = json.loads(metadata[_METADATA_KEY])
    if content["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"schema version {content['schema_version']!r}, this lr_gym reads {SCHEMA_VERSION}"
        )
    if content.pop("sha256") != digest(content, tensors):
        raise ValueError("the checksum does not match: the file was altered")
    if content["kind"] not in kinds:
        raise ValueError(f"kind {content['kind']!r}, expected {', '.join(kinds)}")
    return content, tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must hold finite numbers")
