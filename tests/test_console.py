"""Output for terminals and for logs: names stay whole, and progress does not flood a log."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import rich.table

import lr_gym.benchmark.progress as cell_progress
import train_agent
from lr_gym.benchmark.progress import CellProgress
from lr_gym.console import Pace, can_draw, duration, print_whole, track

ROOT = Path(__file__).parents[1]
LONG = "policy runs/of/a/folder/with/a/long/name (tuned lr)"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Tells the time that a test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class FakeCell(NamedTuple):
    """What is looked at of a cell."""

    task: str = "quadratic"


class Timed(NamedTuple):
    """What is looked at of an outcome."""

    seconds: float


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """As in continuous integration, which may have asked for colours."""
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def table() -> rich.table.Table:
    made = rich.table.Table()
    for heading in ("contestant", *(f"a figure {i}" for i in range(6))):
        made.add_column(heading)
    made.add_row(LONG, *["+0.123 .. +0.456"] * 6)
    return made


def test_a_table_is_whole_where_there_is_no_terminal(capsys):
    print_whole(table())
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "policy" in line)
    assert LONG in line
    assert line.count("+0.123 .. +0.456") == 6
    assert len(line) > 80


def test_a_bar_needs_a_terminal(monkeypatch):
    assert can_draw(Terminal())
    assert not can_draw(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(Terminal())


def due(pace: Pace, clock: Clock, seconds: int) -> list[int]:
    """The seconds in which a line is due, when one is offered every second."""
    lines = []
    for second in range(seconds):
        clock.now = float(second)
        if pace.due(last=second == seconds - 1):
            lines.append(second)
    return lines


def test_lines_come_at_first_at_the_end_and_every_30_seconds(clock):
    assert due(Pace(io.StringIO(), clock=clock), clock, 100) == [0, 30, 60, 90, 99]


def test_every_line_is_due_on_a_terminal(clock):
    assert due(Pace(Terminal(), clock=clock), clock, 5) == [0, 1, 2, 3, 4]


def test_an_evaluation_in_a_log_prints_lines(clock, capsys):
    """200 cells of 3 seconds are 600 seconds: 20 lines, the first, and the last."""
    with CellProgress("tuning", [FakeCell()] * 200, 1, clock) as progress:
        for number in range(200):
            clock.now = 3.0 * (number + 1)
            progress(FakeCell(), Timed(3.0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[0] == "tuning 1/200  3 s  about 9.9 min left"
    assert lines[-1] == "tuning 200/200  10.0 min  about 0.0 min left"


def test_an_evaluation_on_a_terminal_draws_a_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with CellProgress("tuning", [FakeCell()] * 4, 1) as progress:
        for _ in range(4):
            progress(FakeCell(), Timed(1.0))
    assert "━" in screen.getvalue()
    assert "4/4" in screen.getvalue()


def test_no_bar_is_made_without_a_terminal(monkeypatch):
    monkeypatch.setattr(cell_progress, "_bar", lambda: pytest.fail("a bar was made"))
    CellProgress("tuning", [FakeCell()], 1)


def test_track_returns_the_items_and_prints_the_last_line(capsys):
    assert list(track(iter("abc"), 3, "playing")) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["playing 1/3", "playing 3/3"]
    assert list(track(iter(""), 0)) == []
    assert capsys.readouterr().err == ""


def test_durations():
    assert [duration(s) for s in (0.4, 99.0, 100.0, 3600.0)] == [
        "0 s",
        "99 s",
        "1.7 min",
        "60.0 min",
    ]


TRAIN = (
    "--output-dir OUT --task quadratic --horizon 8 --decisions 4 --num-envs 2 --selection-runs 2 "
    "--selection-every 3 --timesteps 80 --workers 1 --certificate-runs 0 --guard-runs 0 "
    "--wandb disabled"
)
LINE = re.compile(
    r"update (\d+)/10  reward loss \S+  diverged \S+  (selection loss \S+  )?"
    r"(best selection loss \S+  )?(\d+) decisions/s  \d+ s left"
)


def matches(text: str) -> list[re.Match[str]]:
    return [match for line in text.splitlines() if (match := LINE.fullmatch(line.strip()))]


def test_a_training_in_a_log_says_how_fast_and_how_good_it_is(tmp_path, capsys):
    """It takes far less than 30 seconds, so only the first and the last update have a line."""
    train_agent.main(TRAIN.replace("OUT", str(tmp_path / "out")).split())
    printed = capsys.readouterr().out
    found = matches(printed)
    assert [int(match[1]) for match in found] == [1, 10]
    assert found[0][3] is None
    (final,) = re.findall(r"^best selection loss (\S+); policy saved", printed, re.MULTILINE)
    assert float(found[1][3].split()[-1]) == pytest.approx(float(final), rel=1e-2)
    assert all(int(match[4]) > 0 for match in found)


def test_a_training_on_a_terminal_prints_every_update(tmp_path):
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "train_agent.py",
        *TRAIN.replace("OUT", str(tmp_path / "out")).split(),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=subprocess.DEVNULL) as training:
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux says so where the other end is closed
                break
            if not part:
                break
            parts.append(part)
    os.close(ours)
    assert training.returncode == 0
    found = matches(b"".join(parts).decode())
    assert [int(match[1]) for match in found] == list(range(1, 11))
    assert found[2][2] is not None
