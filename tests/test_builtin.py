"""What ships with the package is small, described, and loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from lr_gym.optim.contrib.garo_weights import load_weights
from lr_gym.policies.builtin import BUILTIN, GARO, builtin_file, builtin_names
from lr_gym.policies.policy import builtin_policies, load_policy

PAGE = (Path(__file__).parents[1] / "docs" / "policies.md").read_text()


@pytest.mark.parametrize("name", builtin_names())
def test_every_file_is_small_described_and_loads(name):
    assert builtin_file(name).stat().st_size < 100_000
    assert f"\n## {name}\n" in PAGE
    if name == GARO:
        assert load_weights(BUILTIN + name).hidden_size > 0
    else:
        assert load_policy(BUILTIN + name).about["selection_loss"] > 0.0


def test_the_page_describes_nothing_else():
    headings = [line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")]
    names = [heading for heading in headings if heading.islower()]  # others begin with a capital
    assert sorted(names) == builtin_names()
    assert builtin_policies() == [name for name in builtin_names() if name != GARO]
