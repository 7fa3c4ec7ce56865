"""Every command and snippet of the README runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line
]
SMALL = {  # what makes a documented command short, added at its end
    "train_agent.py": "--horizon 20 --decisions 4 --num-envs 4 --selection-runs 2 --timesteps 16 --wandb disabled",
    "evaluate.py": "--horizon 20 --seeds 2 --budget 2 --tuning-seeds 1 --workers 1 --wandb disabled",
}


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_snippet(code):
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True, timeout=600)


def test_commands(tmp_path):
    scripts = [command.split() for command in COMMANDS if command.startswith("python ")]
    assert [words[1] for words in scripts] == ["train_agent.py", "evaluate.py"]
    for words in scripts:
        words = [word.replace("runs/", f"{tmp_path}/") for word in words[1:]]
        subprocess.run(
            [sys.executable, *words, *SMALL[words[0]].split()], cwd=ROOT, check=True, timeout=600
        )


def test_make_targets():
    targets = [command.removeprefix("make ") for command in COMMANDS if command.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True, timeout=60
        )


def test_links():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
