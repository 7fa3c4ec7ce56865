"""`import lr_gym.optim` is light, and works where the training side cannot be imported."""

from __future__ import annotations

import subprocess
import sys

# What a training script with one of our optimizers must not wait for.
HEAVY = (
    "gymnasium",
    "stable_baselines3",
    "wandb",
    "torchvision",
    "scipy",
    "matplotlib",
    "plotly",
    "sklearn",
    "rich",
    "filelock",
    "agents",
    "lr_gym.tasks",
    "lr_gym.training",
    "lr_gym.envs.env",
    "lr_gym.envs.vector_env",
)


def run(code: str) -> str:
    """Run `code` in a fresh process and return its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_of_the_optimizers_is_light() -> None:
    code = "import sys, torch; before = set(sys.modules); import lr_gym.optim"
    new = run(f"{code}; print(*(set(sys.modules) - before))").split()
    assert "lr_gym.optim" in new
    assert not [name for name in new if any(name == h or name.startswith(f"{h}.") for h in HEAVY)]
    ours = {"lr_gym", "safetensors", "numpy", "torch"}
    foreign = {name.partition(".")[0] for name in new} - ours - sys.stdlib_module_names
    assert not {name for name in foreign if not name.startswith("_")}


def test_import_needs_none_of_the_training_side() -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY}))"
    code = f"{block}; import lr_gym.optim as o; print(len(o.__all__))"
    assert int(run(code)) >= 7
