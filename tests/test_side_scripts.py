"""Every script of benchmarks/ and experiments/ starts, whatever else has moved in the meantime."""

from __future__ import annotations

import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import ppo_overhead

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "experiments")
SCRIPTS = sorted(file.relative_to(ROOT) for name in FOLDERS for file in (ROOT / name).glob("*.py"))
# They run in environments of their own, which hold the peer that they measure.
PEER_PROGRAMS = sorted((ROOT / "benchmarks" / "peer_programs").glob("*.py"))


@pytest.mark.parametrize("file", SCRIPTS, ids=str)
def test_help(file):
    """A script imports all that it needs, and says what it can do."""
    module = ".".join(file.with_suffix("").parts)
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    if "__main__" in (ROOT / file).read_text():  # the others are imported by scripts
        assert "usage:" in done.stdout


@pytest.mark.parametrize("file", PEER_PROGRAMS, ids=lambda file: file.name)
def test_peer_program_is_python(file, tmp_path):
    py_compile.compile(str(file), cfile=str(tmp_path / "compiled"), doraise=True)


def test_ppo_overhead(capsys):
    ppo_overhead.main(ppo_overhead.Args(updates=1, workers=1, num_envs=4, horizon=20))
    assert "PPO itself" in capsys.readouterr().out
