"""`import lr_gym` registers the environments, and imports neither tasks nor training code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

import lr_gym
from lr_gym.envs.ids import TASK_OF_ENV
from lr_gym.tasks import TASKS

ROOT = Path(__file__).parents[1]
MAKE = """
from gymnasium.vector import VectorEnv
env = gymnasium.make("lr_gym/MNIST1D-MLP-v0")
assert type(env.unwrapped).__name__ == "LRControlEnv"
assert isinstance(gymnasium.make_vec("lr_gym/MNIST1D-MLP-v0", num_envs=2), VectorEnv)
"""


def run(code: str) -> str:
    """Run `code` in a fresh process, where a warning is an error, and return its output."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["import lr_gym, gymnasium", "import gymnasium, lr_gym"])
def test_the_order_of_the_imports_does_not_matter(first):
    run(first + MAKE)


def test_the_id_may_name_the_package_to_import():
    run('import gymnasium; gymnasium.make("lr_gym:lr_gym/MNIST1D-MLP-v0")')


def test_asking_for_gymnasium_does_not_disturb_the_registration():
    """Libraries ask whether Gymnasium is installed before somebody imports it."""
    run(
        "import importlib.util, lr_gym\n"
        'assert importlib.util.find_spec("gymnasium")\n'
        "import gymnasium\n"
        'assert "lr_gym/LRControl-v0" in gymnasium.registry'
    )


def test_gymnasium_keeps_its_own_loader():
    run(
        "import sys; before = list(sys.meta_path)\n"
        "import lr_gym, gymnasium, inspect, importlib.resources\n"
        "assert sys.meta_path == before\n"
        "assert 'register' in inspect.getsource(gymnasium)\n"
        "assert importlib.resources.files('gymnasium').joinpath('__init__.py').is_file()"
    )


def test_lr_gym_is_imported_where_gymnasium_cannot_be():
    run('import sys; sys.modules["gymnasium"] = None; import lr_gym')


def test_registration_imports_neither_tasks_nor_training_code():
    code = "import sys, lr_gym, gymnasium; print(*(n for n in sys.modules if 'lr_gym' in n))"
    allowed = {"lr_gym", "lr_gym.envs", "lr_gym.envs.ids", "lr_gym.envs.registration"}
    assert {name for name in run(code).split() if "__editable__" not in name} <= allowed
    assert run("import sys, lr_gym; print('torch' in sys.modules)") == "False\n"


def test_every_task_has_its_environment():
    assert {env_id: TASKS[name].name for env_id, name in TASK_OF_ENV.items()} == TASK_OF_ENV
    assert sorted(TASK_OF_ENV.values()) == sorted(TASKS)
    for env_id, task in TASK_OF_ENV.items():
        assert gymnasium.spec(f"lr_gym/{env_id}").kwargs == {"task": task}


def test_the_generic_environment_takes_any_task():
    assert lr_gym.__version__
    env = gymnasium.make("lr_gym/LRControl-v0", task="quadratic", horizon=12, decisions=4)
    env.reset(seed=0)
    with pytest.raises(TypeError, match="task"):
        gymnasium.make("lr_gym/LRControl-v0")
