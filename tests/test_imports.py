"""Imports point only downwards, and each optional package has its place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("lr_gym", "agents", "examples", "experiments", "benchmarks")
FILES = [
    *ROOT.glob("*.py"),
    *(file for folder in FOLDERS for file in ROOT.glob(f"{folder}/**/*.py")),
]
MODULES = {
    ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES
}
OURS = {name.partition(".")[0] for name in MODULES}
# From the top of the house to the ground floor: a package with all that is in it, or a module.
FLOORS = [
    ("train_agent", "evaluate", "examples", "experiments", "benchmarks"),
    ("agents",),
    ("lr_gym.benchmark",),
    ("lr_gym.analysis",),
    ("lr_gym.integrations",),
    ("lr_gym.optim",),
    ("lr_gym.envs",),
    ("lr_gym.training",),
    ("lr_gym.tasks",),
    ("lr_gym.policies",),
    ("lr_gym.control",),
    ("lr_gym.updates",),
    tuple(
        f"lr_gym.{name}"
        for name in (
            "types",
            "rng",
            "layers",
            "tree",
            "files",
            "tracking",
            "optional",
            "console",
            "engine",
            "run_folder",
        )
    ),
]
# Every import of `lr_gym.x` imports `lr_gym` first, which registers the environments and for that
# reads one light table of lr_gym.envs. It therefore stands on no floor; test_registration.py checks
# what it imports.
ROOT_MODULE = "lr_gym"


def imported(name: str) -> set[str]:
    """Modules that one module imports anywhere in its text; of foreign ones the first name."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & MODULES.keys()) or {node.module}
    found.discard("__future__")
    return {
        module if module.partition(".")[0] in OURS else module.partition(".")[0] for module in found
    } - {name}


GRAPH = {name: imported(name) for name in MODULES}


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def reachable(name: str) -> set[str]:
    """Everything that a module imports, directly or not."""
    seen, front = set(), [name]
    while front:
        for other in GRAPH.get(front.pop(), set()) - seen:
            seen.add(other)
            front.append(other)
    return seen


def floor(name: str) -> int:
    """Number of the floor on which a module stands, 0 at the top."""
    (found,) = (
        i for i, packages in enumerate(FLOORS) if any(is_in(name, package) for package in packages)
    )
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_of_ours_is_there(name):
    assert {other for other in GRAPH[name] if other.partition(".")[0] in OURS} <= MODULES.keys()


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {ROOT_MODULE}))
def test_no_import_cycle(name):
    assert name not in reachable(name)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {ROOT_MODULE}))
def test_imports_point_downwards(name):
    ours = GRAPH[name] & MODULES.keys() - {ROOT_MODULE}
    above = [other for other in ours if floor(other) < floor(name)]
    assert not above, f"{name} imports {above}"


def test_the_library_never_imports_agents_or_scripts():
    for name in MODULES:
        if is_in(name, "lr_gym"):
            assert all(is_in(other, "lr_gym") for other in reachable(name) & MODULES.keys()), name


@pytest.mark.parametrize(
    ("package", "owner"), [("wandb", "lr_gym.tracking"), ("stable_baselines3", "agents.sb3")]
)
def test_optional_package_has_one_door(package, owner):
    users = [name for name in MODULES if package in GRAPH[name]]
    assert users
    assert all(is_in(name, owner) for name in users)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if is_in(name, "lr_gym.optim")))
def test_optimizers_need_no_environment(name):
    """Not even inside a function, which test_optim_import.py would not see."""
    forbidden = ("gymnasium", "stable_baselines3", "lr_gym.envs", "lr_gym.training", "lr_gym.tasks")
    needs = reachable(name) - {ROOT_MODULE}
    assert not [other for other in needs if any(is_in(other, package) for package in forbidden)]
