"""`lr_gym.optim` works where the training side of the project cannot be imported."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = (
    "gymnasium",
    "stable_baselines3",
    "wandb",
    "agents",
    "lr_gym.envs.env",
    "lr_gym.training.inner_loop",
    "lr_gym.tasks",
)


def test_import_needs_none_of_the_training_side() -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED}))"
    code = f"{block}; import lr_gym.optim as o; print(len(o.__all__))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 7
