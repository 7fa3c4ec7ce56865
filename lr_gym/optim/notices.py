"""Warnings of PolicyOptimizer: each is given once, and points at the user's own line."""

from __future__ import annotations

import sys
import warnings

__all__ = ["Notices", "warn_user"]

LIBRARIES = ("lr_gym", "torch")  # packages whose frames are not the user's


def _user_stacklevel() -> int:
    """The stacklevel for `warnings.warn` in `warn_user` that points at the user's code."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in LIBRARIES:
            return level
        frame = frame.f_back
        level += 1
    return level


def warn_user(message: str) -> None:
    """Warn, with the line of the user's code that led here."""
    warnings.warn(f"PolicyOptimizer: {message}", stacklevel=_user_stacklevel())


class Notices:
    """Which warnings an optimizer has given."""

    def __init__(self) -> None:
        """Begin with none."""
        self._given: set[str] = set()

    def given(self, key: str) -> bool:
        """Whether the warning of this name was given."""
        return key in self._given

    def once(self, key: str, message: str) -> None:
        """Give a warning, unless the one of this name was given before."""
        if key not in self._given:
            self._given.add(key)
            warn_user(message)
