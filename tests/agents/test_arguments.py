"""Preset, config file and command line override one another, and errors name what is wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest

from agents.command_line import parse
from agents.settings import presets
from agents.table import AGENTS
from lr_gym.control.action import ACTIONS, CONTROLLED
from lr_gym.control.features import FEATURES
from lr_gym.updates.rules import RULES
from lr_gym.updates.schedules import SCHEDULES

BASE = ["--output-dir", "out"]


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_has_its_presets(agent):
    for preset in ("default", "source"):
        assert preset in presets(agent)
        assert parse([*BASE, "--agent", agent, "--preset", preset]).preset == preset


GENERALISTS = [
    *((agent, "generalist") for agent in ("ppo", "es", "sweep")),
    *(("sweep", name) for name in ("muon", "anytime")),
]


@pytest.mark.parametrize(("agent", "preset"), GENERALISTS)
def test_generalists_learn_on_random_tasks_and_are_selected_on_others(agent, preset):
    args = parse([*BASE, "--agent", agent, "--preset", preset])
    assert (args.suite, args.selection_suite) == ("random", "validation")


def test_anytime_sees_nothing_that_needs_an_end():
    args = parse([*BASE, "--agent", "sweep", "--preset", "anytime"])
    assert args.control.endless
    assert args.control.average is not None


def test_source_preset_holds_the_values_of_the_source():
    args = parse([*BASE, "--agent", "dqn", "--preset", "source"])
    assert (args.dqn.exploration, args.dqn.gamma, args.dqn.learning_rate) == (
        (0.1, 0.1),
        0.99,
        1e-4,
    )
    args = parse([*BASE, "--agent=q_learning", "--preset=source"])
    assert (
        args.q_learning.exploration,
        args.q_learning.discount,
        args.q_learning.learning_rate,
    ) == (
        (0.1, 0.1),
        0.99,
        1e-4,
    )


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(
        "agent: dqn\nseed: 7\ncontrol:\n  decisions: 20\ndqn:\n  gamma: 0.5\n  hidden: [8]\n"
    )
    args = parse([*BASE, "--config", str(file), "--decisions", "30"])
    assert (args.agent, args.seed) == ("dqn", 7)
    assert (args.control.action, args.control.decisions) == ("discrete", 30)
    assert (args.dqn.gamma, args.dqn.hidden, args.dqn.batch_size) == (0.5, (8,), 512)


def test_a_file_may_name_the_preset(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("agent: sweep\npreset: generalist\n")
    assert parse([*BASE, "--config", str(file)]) == dataclasses.replace(
        parse([*BASE, "--agent", "sweep", "--preset", "generalist"]), config=file
    )
    assert parse([*BASE, "--config", str(file), "--preset", "default"]).suite is None


def test_a_number_without_a_dot_is_a_number(tmp_path):
    """YAML 1.1 reads 1e-3 as a word."""
    file = tmp_path / "mine.yml"
    file.write_text("ppo:\n  learning_rate: 1e-3\n")
    assert parse([*BASE, "--config", str(file)]).ppo.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede: 1", ["sede", "mine.yml", "seed"]),
        ("ppo:\n  gama: 1", ["gama", "ppo", "gamma"]),
        ("- 1", ["mapping", "mine.yml"]),
        ("a: [", ["mine.yml"]),
        ("ppo:\n  gamma: high", ["gamma", "mine.yml", "number", "high"]),
    ],
)
def test_bad_files_are_named(text, words, tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        parse([*BASE, "--config", str(file)])
    for word in words:
        assert word in str(error.value)


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"'best' of ppo; choose from default, source"):
        parse([*BASE, "--preset", "best"])


def test_a_run_goes_on_with_its_own_options(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text("seed: 7\n")
    folder = tmp_path / "run"
    folder.mkdir()
    options = ["--agent", "sweep", "--preset", "anytime", "--config", str(file), "--sweep.hidden"]
    command = ["--output-dir", str(folder), *options, "8", "8", "--data-dir", str(tmp_path)]
    args = parse([*command, "--features", "snr", "steps", "--initial-lr", "0.01", "0.1"])
    values = {**dataclasses.asdict(args), "config": str(file), "data_dir": str(tmp_path)}
    stored = json.dumps({**values, "output_dir": "moved/since"})
    (folder / "args.json").write_text(stored)
    expected = dataclasses.replace(args, resume=True)
    assert parse(["--resume", "--output-dir", str(folder)]) == expected
    assert parse(["--resume", f"--output-dir={folder}", "--seed", "8"]).seed == 8
    again = [*command, "--features", "snr", "steps", "--initial-lr", "0.01", "0.1", "--resume"]
    assert parse(again) == expected
    with pytest.raises(ValueError, match=r"'sarsa'; choose from ppo"):
        parse(["--resume", "--output-dir", str(folder), "--agent", "sarsa"])
    (folder / "args.json").write_text("3")
    with pytest.raises(ValueError, match=r"args\.json does not hold the arguments of a run"):
        parse(["--resume", "--output-dir", str(folder)])


def test_the_help_lists_what_can_be_chosen(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    for table in (ACTIONS, SCHEDULES, RULES, CONTROLLED):
        assert f"{{{','.join(table)}}}" in shown
    assert all(name in shown for name in (*FEATURES, *AGENTS))
    for agent in AGENTS:
        assert f"({', '.join(presets(agent))})" in shown
