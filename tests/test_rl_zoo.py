"""rl-baselines3-zoo trains on our environments; skipped if it is missing (pip install rl_zoo3)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(importlib.util.find_spec("rl_zoo3") is None, reason="rl_zoo3 is not installed")
def test_zoo_trains(tmp_path):
    words = "rl_zoo3.train --algo ppo --env lr_gym/MNIST1D-MLP-v0 --gym-packages lr_gym"
    command = words.split()
    command += ["--conf-file", str(ROOT / "agents/rl_zoo/ppo.yml"), "-f", str(tmp_path), "-n", "80"]
    command += ["-params", "n_envs:1", "--env-kwargs", "horizon:20", "decisions:10"]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, timeout=600)
    assert list(tmp_path.glob("ppo/*/*.zip"))
