"""Tables of the documents say what the code's tables say."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from lr_gym.benchmark.optimizers import OPTIMIZERS
from lr_gym.envs.__main__ import with_tables
from lr_gym.envs.ids import TASK_OF_ENV
from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.optim import PatienceRule, PolicyOptimizer
from lr_gym.policies.policy import builtin_policies, load_policy

DOCS = Path(__file__).parents[1] / "docs"


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of the rows below a header line."""
    text = (DOCS / page).read_text()
    lines = text[text.index(header) :].splitlines()[2:]
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def optimizer_table() -> str:
    """The table of optimizers as docs/comparing.md shows it."""
    lines = ["| name | what | learning rate |", "|---|---|---|"]
    for name, recipe in OPTIMIZERS.items():
        low, high = recipe.space
        tuned = f"tuned, {low:g} to {high:g}"
        rate = tuned if recipe.lr is None else f"{recipe.lr:g}, not tuned"
        lines.append(f"| `{name}` | {recipe.about} | {rate} |")
    return "\n".join(lines)


def test_comparing_lists_every_optimizer():
    text = (DOCS / "comparing.md").read_text()
    found = re.search(r"<!-- optimizers -->\n(.*?)\n<!-- end of optimizers -->", text, re.DOTALL)
    assert found is not None
    assert found[1].strip() == optimizer_table()


def test_deployment_says_how_far_each_policy_moves_a_rate():
    table = rows("deployment.md", "| policy | largest factor")
    assert sorted(row[0].strip("`") for row in table) == builtin_policies()
    for name, factor, interval in table:
        policy = load_policy(f"builtin:{name.strip('`')}")
        assert policy.spec.action == "recursive"
        assert math.exp(policy.spec.action_step) == pytest.approx(float(factor))
        assert math.exp(policy.spec.action_bound) == pytest.approx(1000.0)
        if name != "`stream`":  # it is told no length, so it always decides at its interval
            assert policy.spec.decisions == 50
        assert policy.interval == int(interval)


def test_deployment_lists_the_keys_of_metrics():
    params = torch.nn.Linear(4, 1).named_parameters()
    optimizer = PolicyOptimizer(params, total_steps=10, finish=PatienceRule(patience=2))
    keys = {key.partition("/")[0] for key in optimizer.metrics()}
    table = rows("deployment.md", "| key | what it is |")
    assert {row[0].strip("`").partition("/")[0] for row in table} == keys


def test_the_tables_of_the_environment_are_current():
    page = (DOCS / "environment.md").read_text()
    assert page == with_tables(page), "run: python -m lr_gym.envs docs/environment.md"


def test_the_page_of_the_environment_lists_every_info():
    env = LRControlVectorEnv("quadratic", num_envs=1, horizon=2)
    _, infos = env.reset(seed=0)
    table = rows("environment.md", "| key | what |")
    assert {row[0].strip("`") for row in table} == set(infos)


def test_the_page_of_the_environment_lists_every_environment():
    table = rows("environment.md", "| suite | environments |")
    shown = [env_id for row in table for env_id in re.findall(r"`(.*?)`", row[1])]
    assert sorted(shown) == sorted(TASK_OF_ENV)
