"""Imports point only downwards, and what is optional stays where it belongs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("*.py"), *ROOT.glob("lr_gym/**/*.py"), *ROOT.glob("agents/**/*.py")]
MODULES = {
    ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES
}
OURS = {name.partition(".")[0] for name in MODULES}
# From the top of the house to its foundations; what is named nowhere is a foundation.
FLOORS = [
    {name for name in MODULES if name not in ("lr_gym", "agents") and "." not in name},  # scripts
    {name for name in MODULES if name.startswith("agents")},
    {name for name in MODULES if name.startswith("lr_gym.benchmark")},
    {name for name in MODULES if name.startswith("lr_gym.optim")},
    {
        "lr_gym.envs.env",
        "lr_gym.analysis.measure_ranges",
        "lr_gym.envs.rollout",
        "lr_gym.envs.vector_env",
    },
    {"lr_gym.training.inner_loop"},
    {name for name in MODULES if name.startswith("lr_gym.tasks")},
    {"lr_gym.policies.policy"},
    {"lr_gym.policies.mlp_policy", "lr_gym.policies.q_policy"},
    {"lr_gym.control.spec"},
    {
        "lr_gym.control.observation",
        "lr_gym.control.action",
        "lr_gym.envs.reward",
        "lr_gym.control.layer_stats",
        "lr_gym.updates.averaging",
    },
    {"lr_gym.updates.rules", "lr_gym.updates.schedules"},
]
SCIENTIFIC = {
    "gymnasium",
    "stable_baselines3",
    "lr_gym.envs.env",
    "lr_gym.envs.vector_env",
    "lr_gym.training.inner_loop",
    "lr_gym.tasks",
}


def imported(name: str) -> set[str]:
    """Modules that one module imports anywhere in its text, ours in full, others by their first name."""
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


def reachable(name: str) -> set[str]:
    """Everything that a module imports, directly or not."""
    seen, front = set(), [name]
    while front:
        for other in GRAPH.get(front.pop(), set()) - seen:
            seen.add(other)
            front.append(other)
    return seen


def floor(name: str) -> int:
    return next((i for i, modules in enumerate(FLOORS) if name in modules), len(FLOORS))


def test_every_module_of_ours_is_there():
    assert {
        name for names in GRAPH.values() for name in names if name.partition(".")[0] in OURS
    } <= MODULES.keys()


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"lr_gym"}))
def test_no_import_cycle(name):
    assert name not in reachable(name)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"lr_gym"}))
def test_imports_point_downwards(name):
    above = [other for other in GRAPH[name] & MODULES.keys() if floor(other) < floor(name)]
    assert not above, f"{name} imports {above}"


def test_the_library_never_imports_agents_or_scripts():
    for name in MODULES:
        if name.partition(".")[0] == "lr_gym":
            assert not {
                other
                for other in reachable(name) & MODULES.keys()
                if not other.startswith("lr_gym")
            }, name


@pytest.mark.parametrize(
    ("package", "owner"), [("wandb", "lr_gym.tracking"), ("stable_baselines3", "agents.sb3")]
)
def test_optional_package_has_one_door(package, owner):
    users = [name for name in MODULES if package in GRAPH[name]]
    assert users
    assert all(name == owner or name.startswith(f"{owner}.") for name in users)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("lr_gym.optim")])
def test_optimizers_need_no_environment(name):
    needs = reachable(name) - {"lr_gym"}
    assert not {n for n in needs if any(n == s or n.startswith(s + ".") for s in SCIENTIFIC)}
