"""docs/own_task.md from its first step to its last, with tiny budgets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lr_gym.tasks import check_task

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_task.md").read_text()
SMALL = {  # what makes a command of the page short, added at its end
    "own_task.py": "",
    "train_agent.py": "--horizon 20 --decisions 4 --num-envs 4 --selection-runs 2 --timesteps 16 "
    "--certificate-runs 2 --guard-runs 2 --workers 1 --wandb disabled",
    "deploy.py": "",
    "evaluate.py": "--horizon 20 --seeds 2 --budget 2 --tuning-seeds 1 --workers 1 "
    "--optimizers adam,adamw --wandb disabled",
}


def fenced(language: str) -> list[str]:
    """The blocks of the page in one language, without the indent of the list."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder in which the page was followed, and what each of its scripts printed."""
    folder = tmp_path_factory.mktemp("own")
    for code in fenced("python"):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None
        (folder / name[1]).write_text(code)
    for name in ("train_agent.py", "evaluate.py"):
        # the page is followed in a checkout, whose scripts find it by their own place
        code = f"import runpy\nrunpy.run_path({str(ROOT / name)!r}, run_name='__main__')\n"
        (folder / name).write_text(code)
    commands = [line.split() for block in fenced("bash") for line in block.splitlines()]
    assert [words[:2] for words in commands] == [["python", name] for name in SMALL]
    return folder, {
        words[1]: run(folder, *words[1:], *SMALL[words[1]].split()) for words in commands
    }


def test_the_page_runs_from_data_to_report(outputs):
    folder, printed = outputs
    assert "TensorDataset of 4000 examples (2400, 400, 400, 400, 400)" in printed["own_task.py"]
    assert (folder / "runs/own/policy.safetensors").exists()
    last = float(printed["deploy.py"].split()[-1])
    assert 0.0 < last < 1.386  # below the logarithm of 4 classes
    results = json.loads((folder / "runs/own_eval/results.json").read_text())
    names = {entry["name"] for entry in results["ranking"]}
    assert {"adam", "adamw"} < names
    assert any(name.startswith("policy") for name in names)
    assert (folder / "runs/own_eval/report.html").stat().st_size > 10_000


def test_the_template_is_the_task_of_the_page(tmp_path):
    """Both make the same splits, so that the page explains the template."""
    shutil.copy(ROOT / "examples" / "own_task.py", tmp_path / "template.py")
    (tmp_path / "own_task.py").write_text(fenced("python")[0])
    code = (
        "import torch; from template import TASK as a; from own_task import TASK as b\n"
        "print(all(torch.equal(x, y) for p, q in zip(a.data(), b.data()) for x, y in zip(p, q)))\n"
        "print(a.horizon == b.horizon, a.batch_size == b.batch_size, a.loss is b.loss)"
    )
    assert run(tmp_path, "-c", code).split() == ["True"] * 4


def test_the_template_is_checked():
    from examples.own_task import TASK

    assert check_task(TASK) is TASK
