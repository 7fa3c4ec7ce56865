"""Tasks of one's own: found by their place, checked, and used wherever a task is named."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import lr_gym  # noqa: F401 - registers the environments
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.tasks import check_task, find_task
from lr_gym.tasks.__main__ import OWN_TASK

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def products(folder):
    (folder / "products.py").write_text(OWN_TASK)
    return "products:TASK"


def test_the_task_of_the_page_is_found_and_right(products):
    task = find_task(products)
    assert task.name == "products"
    assert check_task(task) is task
    assert find_task(products) is task
    assert find_task(task) is task


def test_modules_in_packages_and_beside_them_are_found(folder):
    (folder / "shapes").mkdir()
    (folder / "shapes" / "inner.py").write_text(OWN_TASK)
    (folder / "beside.py").write_text("from shapes.inner import TASK as OTHER\n")
    assert find_task("shapes.inner:TASK") is find_task("beside:OTHER")


def test_environments_take_the_place_of_a_task(products):
    env = gymnasium.make("lr_gym/LRControl-v0", task=products, horizon=4, decisions=2)
    observation, _ = env.reset(seed=0)
    assert np.isfinite(observation).all()
    assert LRControlVectorEnv(products, num_envs=2).task is find_task(products)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere:TASK", "there is no module 'nowhere', neither in the current folder"),
        ("products.py:TASK", "write it as my_package.my_module:TASK"),
        ("products/TASK:x", "write it as my_package.my_module:TASK"),
        ("products:", "write it as my_package.my_module:TASK"),
        ("products:task", r"task is missing in .*products.py, .* Tasks there are: TASK"),
        ("products:data", r"data is of type _lru_cache_wrapper in .*Tasks there are: TASK"),
        ("random:TASK", r"TASK is missing in .*random.py, .*Tasks there are: none"),
    ],
)
def test_a_wrong_place_is_explained(products, place, message):
    with pytest.raises(ValueError, match=message) as error:
        find_task(place)
    assert repr(place) in str(error.value)


def test_a_module_that_misses_another_one_says_so(folder):
    (folder / "needy.py").write_text("import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package") as error:
        find_task("needy:TASK")
    assert str(error.value).startswith("task 'needy:TASK': importing needy failed: No module")
    (folder / "outdated.py").write_text("from torch import no_such_name\n")
    with pytest.raises(ImportError, match=r"'outdated:TASK': importing outdated failed: .*no_such"):
        find_task("outdated:TASK")


def test_the_core_alone_trains_a_task_of_ones_own(products):
    """Of all packages only the hard dependencies are needed."""
    needed = {"torch", "numpy", "safetensors", "gymnasium"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [name for names in project["optional-dependencies"].values() for name in names]
    distributions = {re.split(r"[\[><=]", name)[0] for name in listed} - {"lr-gym"}
    optional = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if distributions & {owner.lower().replace("_", "-") for owner in owners}
    }
    assert {"rich", "scipy", "sklearn", "torchvision"} <= optional
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.modules.update(dict.fromkeys({sorted(optional - needed)}))\n"
        "from lr_gym.envs.vector_env import LRControlVectorEnv\n"
        f"env = LRControlVectorEnv({products!r}, num_envs=2, horizon=4, decisions=2)\n"
        "env.reset(seed=0)\n"
        "print(env.step(env.action_space.sample())[1].shape)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.strip() == "(2,)", done.stderr


def test_a_wrong_task_is_refused_where_it_is_found(folder):
    (folder / "wrong.py").write_text(OWN_TASK.replace(".mean(1)", ".mean()"))
    with pytest.raises(ValueError, match=r"task 'products': the loss has shape \(\)"):
        find_task("wrong:TASK")


def test_an_unknown_name_says_how_to_name_a_task_of_ones_own():
    with pytest.raises(ValueError, match=r"unknown task 'mnist'.*my_package.my_module:TASK"):
        find_task("mnist")


def script(name: str, *options: str) -> subprocess.CompletedProcess:
    """A script of ours, started in the current folder."""
    command = [sys.executable, str(ROOT / name), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_both_scripts_take_the_place_of_a_task(products, folder):
    """The processes of the comparison find it as well."""
    short = ("--task", products, "--horizon", "4")
    trained = script(
        "train_agent.py", "--output-dir", "trained", *short, "--num-envs", "2", "--workers", "1",
        "--timesteps", "8", "--decisions", "2", "--selection-runs", "2",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    compared = script(
        "evaluate.py", "--output-dir", "compared", *short, "--policy", "trained", "--seeds", "2",
        "--optimizers", "adam", "--budget", "1", "--tuning-seeds", "1", "--workers", "2",
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    results = json.loads((folder / "compared" / "results.json").read_text())
    assert list(results["tasks"]) == [products]


def test_a_script_says_what_a_task_lacks(folder):
    (folder / "wrong.py").write_text(OWN_TASK.replace(".mean(1)", ".mean()"))
    done = script("train_agent.py", "--output-dir", "trained", "--task", "wrong:TASK")
    assert done.returncode == 1
    assert "error: task 'products': the loss has shape ()" in done.stderr
    assert "Traceback" not in done.stderr
