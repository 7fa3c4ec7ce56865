"""The machine and the versions that a result was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import lr_gym

__all__ = ["commit", "environment"]


def environment() -> dict[str, str]:
    """Versions and machine, as plain values."""
    return {
        "lr_gym": lr_gym.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def commit() -> str | None:
    """The commit of the checkout, with "-dirty" where files differ from it; None without git."""
    root = Path(lr_gym.__file__).parent.parent
    if not (root / ".git").exists():  # the library is installed, or git is not used
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
