"""The wheel alone, with torch, numpy and safetensors, is enough to train with our optimizers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NEEDED = ("torch", "numpy", "safetensors")
TRAIN = """
import sys, torch, lr_gym
assert lr_gym.__file__.startswith(sys.prefix)
from lr_gym.optim import PolicyOptimizer
torch.manual_seed(0)
inputs = torch.randn(64, 3)
targets = inputs.sin().sum(1, keepdim=True)
model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
optimizer = PolicyOptimizer(model.named_parameters(), "builtin:default", total_steps=100)
losses = []
for _ in range(100):
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.observe(loss)
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.5 * losses[0], losses
"""


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder outside the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip


def needed_distributions(names: Sequence[str]) -> dict[str, importlib.metadata.Distribution]:
    """Installed distributions of these names, and of all that they depend on."""
    found: dict[str, importlib.metadata.Distribution] = {}
    front = list(names)
    while front:
        name = front.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # only other platforms need it
            continue
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                front.append(requirement.name)
    return found


def link(distribution: importlib.metadata.Distribution, folder: Path) -> None:
    """Link the top-level files and folders of an installed distribution into another folder."""
    tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
    for top in tops:
        source = Path(str(distribution.locate_file(top)))
        if source.exists() and not (folder / top).exists():
            (folder / top).symlink_to(source)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of the sources, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lr_gym", folder / "source" / "lr_gym", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    done = run([*build, folder / "source"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a fresh environment that holds the wheel and NEEDED, by links."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet"]
    done = run([*pip, "--no-deps", "--no-index", wheel], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "links").mkdir()
    for distribution in needed_distributions(NEEDED).values():
        link(distribution, folder / "links")
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "needed.pth").write_text(f"{folder / 'links'}\n")
    return interpreter


def test_the_wheel_needs_four_packages(wheel):
    """All others are extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    lines = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    required = [Requirement(line.partition(": ")[2]) for line in lines]
    hard = {requirement.name for requirement in required if requirement.marker is None}
    assert hard == {*NEEDED, "gymnasium"}


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lr_gym"}
    assert "lr_gym/py.typed" in names
    for pattern in ("policies/*.safetensors", "benchmark/*.jinja2", "benchmark/*.json", "**/*.py"):
        files = (ROOT / "lr_gym").glob(pattern)
        assert {str(file.relative_to(ROOT)) for file in files} <= set(names)


def test_an_optimizer_trains_where_only_the_wheel_is_installed(python, tmp_path):
    done = run([python, "-W", "error::UserWarning", "-c", TRAIN], tmp_path)
    assert done.returncode == 0, done.stderr


# What a user does who lacks an extra, and the extra.
LACKING = [
    ("import lr_gym.benchmark.scores", "benchmark"),
    ("import lr_gym.analysis.certificate", "benchmark"),
    ("from lr_gym.tasks import find_task; find_task('mnist1d-mlp').data()", "tasks"),
    ("from lr_gym.tasks import find_task; find_task('digits-mlp').data()", "tasks"),
    ("from lr_gym.tasks import find_task; find_task('titanic-mlp').data()", "tasks"),
    ("from lr_gym.tasks import find_task; find_task('imdb-head').data()", "tasks"),
    ("from lr_gym.tasks import find_task; find_task('cifar10-resnet18').model()", "tasks"),
]
TRY = """
import json, sys
for code in json.loads(sys.argv[1]):
    try:
        exec(code)
    except ImportError as error:
        print(error)
    else:
        print("no error")
"""


def test_a_missing_extra_is_named(python, tmp_path):
    done = run([python, "-c", TRY, json.dumps([code for code, _ in LACKING])], tmp_path)
    assert done.returncode == 0, done.stderr
    for (code, extra), said in zip(LACKING, done.stdout.splitlines(), strict=True):
        assert f'is missing: pip install "lr-gym[{extra}]"' in said, (code, said)
