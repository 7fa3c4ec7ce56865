"""The machine and the versions that a result was measured with."""

from __future__ import annotations

import os
import platform

import torch

import lr_gym

__all__ = ["environment"]


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
