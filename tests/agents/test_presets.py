"""Every preset of every agent makes its learner: no feature lacks bins, no option contradicts."""

from __future__ import annotations

import dataclasses

import pytest

from agents.command_line import parse
from agents.settings import presets
from agents.table import AGENTS, build_learner
from lr_gym.policies.policy import load_policy


def distinct(agent: str) -> list[str]:
    """The presets of an agent, each setting once: some presets are other names of the same."""
    found = presets(agent)
    return [name for i, name in enumerate(found) if found[name] not in list(found.values())[:i]]


@pytest.mark.parametrize(
    ("agent", "preset"), [(agent, preset) for agent in AGENTS for preset in distinct(agent)]
)
def test_every_preset_makes_its_learner(agent, preset, tmp_path):
    """With fewer trainings than the preset has, and not compiled; all else is the preset's."""
    args = parse(["--agent", agent, "--preset", preset, "--output-dir", str(tmp_path)])
    small = dataclasses.replace(args, num_envs=64, selection_runs=1, workers=1, compile=False)
    _, updates = build_learner(small)
    assert updates >= 1


def test_the_q_table_learns_on_streams_from_what_its_preset_shows(tmp_path):
    words = "--agent q_learning --preset stream --horizon 60 --decisions 6 --num-envs 8"
    args = parse([*words.split(), "--selection-runs", "1", "--output-dir", str(tmp_path)])
    learner, _ = build_learner(dataclasses.replace(args, compile=False, workers=1))
    figures = learner.update()
    assert figures["visited_states"] > 1
    learner.save(tmp_path / "policy.safetensors", {})
    policy = load_policy(tmp_path / "policy.safetensors")
    assert policy.spec.features == ("scaled_lr", "loss_excess", "loss_surprise")
