"""Registers the environments with Gymnasium without importing Gymnasium.

`import lr_gym` must register the environments, since Gymnasium's users expect that an import of a
package does so. But every `import lr_gym.optim` imports `lr_gym` first, and a training script that
only wants an optimizer must not wait for Gymnasium. Hence the environments are registered at once
where Gymnasium is imported already, and otherwise as soon as someone imports it.

Gymnasium itself offers nothing for this: its plugins, which were entry points of installed
packages, were removed in version 1.0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from lr_gym.envs.ids import TASK_OF_ENV

__all__ = ["GENERIC_ID", "NAMESPACE", "register_environments", "register_when_possible"]

NAMESPACE = "lr_gym"
# The environment of any task: its keyword `task` is a name, an import path or a Task.
GENERIC_ID = "LRControl-v0"

_ENV = "lr_gym.envs.env:LRControlEnv"
_VECTOR_ENV = "lr_gym.envs.vector_env:make_vector_env"


def register_environments() -> None:
    """Register one environment for each task, and the generic one whose task is a keyword.

    The entry points are strings, so that Gymnasium imports tasks and training code only when an
    environment is made.
    """
    import gymnasium

    gymnasium.register(f"{NAMESPACE}/{GENERIC_ID}", _ENV, vector_entry_point=_VECTOR_ENV)
    for env_id, task in TASK_OF_ENV.items():
        gymnasium.register(
            f"{NAMESPACE}/{env_id}", _ENV, vector_entry_point=_VECTOR_ENV, kwargs={"task": task}
        )


class _WaitForGymnasium(MetaPathFinder):
    """Finder that lets the other finders find Gymnasium, and registers after it has been loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module `gymnasium` and no other."""
        if fullname != "gymnasium":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            # Not before: whoever only asks whether Gymnasium is installed calls find_spec too.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                register_environments()

        # The loader stays Gymnasium's own, since other code asks it for sources and data files.
        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def register_when_possible() -> None:
    """Register the environments now if Gymnasium is imported, else when it is imported."""
    if sys.modules.get("gymnasium") is not None:  # None would forbid its import
        register_environments()
    else:
        sys.meta_path.insert(0, _WaitForGymnasium())
