"""What ships with the package is small, described, and loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deployed import train
from tiny import TINY, plain_run

from lr_gym.optim import PolicyOptimizer
from lr_gym.optim.contrib.garo_weights import load_weights
from lr_gym.policies.builtin import BUILTIN, GARO, builtin_file, builtin_names
from lr_gym.policies.policy import builtin_policies, load_policy

PAGE = (Path(__file__).parents[1] / "docs" / "policies.md").read_text()


@pytest.mark.parametrize("name", builtin_names())
def test_every_file_is_small_described_and_loads(name):
    assert builtin_file(name).stat().st_size < 250_000
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


def test_held_out_is_default_where_it_is_told_no_held_out_loss():
    """Their learning rates and weights are equal up to rounding, and nothing is ended."""
    runs = []
    for name in ("held_out", "default"):
        model, loss_at = plain_run(TINY, 3, torch.float32)
        optimizer = PolicyOptimizer(
            model.named_parameters(), f"builtin:{name}", 1e-2, 300, steps_per_epoch=7
        )
        rates = []
        for step in range(300):
            train(optimizer, model, loss_at, [step])
            rates.append(optimizer.applied_lrs()[0])
            assert not (optimizer.finished and step < 299)
        runs.append((rates, model))
    torch.testing.assert_close(
        torch.tensor(runs[0][0]), torch.tensor(runs[1][0]), rtol=1e-3, atol=0
    )
    for mine, theirs in zip(runs[0][1].parameters(), runs[1][1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)


def test_held_out_ends_a_training_whose_held_out_loss_turns_and_no_other():
    ends = {}
    for name, held_out in {
        "turns": lambda share: 0.5 + abs(share - 0.2),
        "falls": lambda share: 1.0 - 0.9 * share,
    }.items():
        model, loss_at = plain_run(TINY, 3, torch.float32)
        optimizer = PolicyOptimizer(
            model.named_parameters(), "builtin:held_out", 1e-2, 500, steps_per_epoch=7
        )
        step = 0
        while not optimizer.finished:
            train(optimizer, model, loss_at, [step])
            step += 1
            if step % 10 == 0:
                optimizer.observe_validation(held_out(step / 500))
        ends[name] = step
    assert ends["falls"] == 500
    assert 100 < ends["turns"] < 400
