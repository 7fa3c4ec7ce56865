"""Every command and snippet of the README runs, every Python snippet of docs/*.md too.

Snippets that are indented, below an item of a list, are fragments and do not run alone. A snippet
that begins with "# torchrun" runs on as many ranks as it says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES_WITH_LINKS = [
    *PAGES,
    *sorted((ROOT / "docs" / "results").glob("*.md")),
    *sorted((ROOT / "docs" / "api").glob("*.md")),
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
]
SMALL = {  # what makes a documented command short, added at its end
    "train_agent.py": "--horizon 20 --decisions 4 --num-envs 4 --selection-runs 2 --timesteps 16 "
    "--wandb disabled",
    "evaluate.py": "--horizon 20 --seeds 2 --budget 2 --tuning-seeds 1 --workers 1 "
    "--wandb disabled",
}


def blocks(text, language):
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks(README, "bash") for line in block.splitlines() if line]
# Other packages warn of themselves and of a machine without a GPU.
WARNINGS = {"integrations.md": "error:PolicyOptimizer"}
SNIPPETS = [
    pytest.param(code, WARNINGS.get(page.name, "error"), id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page.read_text(), "python"))
]
# A snippet that begins with "# NAME.py" is a module that the commands use.
MODULES = {
    match[1]: code
    for code in blocks(README, "python")
    if (match := re.match(r"# (\w+\.py)\n", code))
}


@pytest.mark.parametrize(("code", "warnings"), SNIPPETS)
def test_snippet(code, warnings, tmp_path):
    command = [sys.executable, "-W", warnings, "-c", code]
    if ranks := re.match(r"# torchrun --nproc-per-node (\d) ", code):
        # gloo's threads abort the interpreter's exit now and then, with torch's AdamW too
        leave = "import os\ndistributed.barrier()\nos._exit(0)\n"
        last = "distributed.destroy_process_group()\n"
        assert code.endswith(last)
        (tmp_path / "train.py").write_text(code.removesuffix(last) + leave)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launch, "--nproc-per-node", ranks[1], tmp_path / "train.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=600)


def test_commands(tmp_path):
    for name, code in MODULES.items():
        (tmp_path / name).write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    scripts = [command.split()[1:] for command in COMMANDS if command.startswith("python ")]
    assert [words[0] for words in scripts] == ["train_agent.py", "train_agent.py", "evaluate.py"]
    for words in scripts:
        command = [word.replace("runs/", f"{tmp_path}/") for word in words]
        command += SMALL[words[0]].split()
        subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, check=True, timeout=600
        )


def test_other_commands():
    others = [command for command in COMMANDS if not command.startswith("python ")]
    assert others == ['pip install -e ".[all]"', "make demo", "make test"]
    for command in others[1:]:
        subprocess.run(
            ["make", "--dry-run", command.removeprefix("make ")],
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=60,
        )


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES_WITH_LINKS, ids=lambda page: page.name)
def test_links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        other = (page.parent / file) if file else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other), target


def test_length():
    assert len(README.split()) < 1000
