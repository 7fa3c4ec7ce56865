"""Every agent at an equal budget of inner steps on mnist1d-mlp, against tuned baselines; and what to control, and how.

Trains each variant from several seeds (train_agent.py, resumable), then deploys what was selected from five initial
learning rates on trainings that nobody learned from, and takes the test loss. Baselines choose their learning rate out
of 13 on the selection split of the same trainings.

    python experiments/compare_agents.py --output-dir runs/agents              # train what is missing, then the tables
    python experiments/compare_agents.py --output-dir runs/agents --tables     # the tables of what is there
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from agents.garo import GaroTrainings, garo_losses
from lr_gym.benchmark.certificate import certificate, describe
from lr_gym.control import ControlSpec
from lr_gym.optim.garo_cell import initial_weights, load_weights
from lr_gym.policy import POLICY_FILE, Policy, constant_policy, load_policy
from lr_gym.rollout import controlled_env, final_losses
from lr_gym.tasks import find_task

TASK = "mnist1d-mlp"
ROOT = Path(__file__).parents[1]
AGENTS = {  # name -> arguments of train_agent.py
    "ppo": ["--agent", "ppo"],
    "es": ["--agent", "es"],
    "dqn": ["--agent", "dqn"],
    "q_learning": ["--agent", "q_learning"],
    "garo": ["--agent", "garo"],
    "garo-global": ["--agent", "garo", "--control", "global"],
}
ABLATION = {
    "ppo-global": ["--agent", "ppo", "--control", "global"],
    "ppo-residual": ["--agent", "ppo", "--action", "residual"],
    "ppo-momentum": ["--agent", "ppo", "--controls", "lr", "momentum"],
    "ppo-noise": ["--agent", "ppo", "--controls", "lr", "momentum", "noise"],
}
LRS = tuple(float(lr) for lr in np.geomspace(1e-4, 1e-1, 13))
INITIAL_LRS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_SEED = 1 << 42  # row seeds of the final comparison


class RandomPolicy:
    """Uniform actions."""

    def __init__(self, spec: ControlSpec) -> None:
        self.spec, self._generator = spec, torch.Generator().manual_seed(0)

    def predict(self, observation: torch.Tensor, state: object = None) -> tuple[torch.Tensor, object]:
        """As Policy.predict."""
        shape = (*observation.shape[:-1], len(self.spec.controls))
        return torch.rand(shape, generator=self._generator) * 2 - 1, state


def deployed(policy: Policy | RandomPolicy, lr: float, runs: int, split: str) -> NDArray[np.float64]:
    """Final losses (runs,) from one initial learning rate; a diverged training counts as 1e3."""
    env = controlled_env(policy.spec, TASK, runs, lr)
    seeds = [FIRST_SEED + i for i in range(runs)]
    return np.minimum(final_losses(env, policy, seeds, split), 1e3)  # type: ignore[arg-type]


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % Student interval over trainings of the agent."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def train_all(folder: Path, variants: dict[str, list[str]], seeds: int, timesteps: int) -> None:
    """Train what is missing, seed by seed, so that every variant has as many."""
    for seed in range(seeds):
        for name, arguments in variants.items():
            output = folder / f"{name}-{seed}"
            if (output / "done").exists():
                continue
            resume = ["--resume"] if (output / "args.json").exists() else []
            command = ["train_agent.py", *arguments, "--task", TASK, "--seed", str(seed), "--compile"]
            command += ["--timesteps", str(timesteps), "--certificate-runs", "0", "--wandb", "disabled"]
            command += ["--output-dir", str(output), *resume]
            print(" ".join(command), flush=True)
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            (output / "done").touch()


def baselines(runs: int) -> dict[str, NDArray[np.float64]]:
    """Test losses (runs,) of each baseline, its learning rate chosen on the selection split."""
    rows = {"Adam, lr 1e-3": deployed(constant_policy(ControlSpec(schedule="constant"), 10), 1e-3, runs, "test")}
    for schedule in ("constant", "cosine", "wsd"):
        policy = constant_policy(ControlSpec(schedule=schedule), 10)
        lr = min(LRS, key=lambda lr, p=policy: float(deployed(p, lr, runs, "selection").mean()))  # type: ignore[misc]
        rows[f"Adam, {schedule}, best of 13 lrs ({lr:.2g})"] = deployed(policy, lr, runs, "test")
    return rows


def policy_rows(folder: Path, name: str, runs: int) -> list[NDArray[np.float64]]:
    """Test losses (initial lrs, runs) of each trained policy of a variant; (1, runs) for GARO, which has one lr."""
    rows = []
    for file in sorted(folder.glob(f"{name}-[0-9]/{POLICY_FILE}")):
        if not (file.parent / "done").exists():
            continue
        if name.startswith("garo"):
            trainings = GaroTrainings(find_task(TASK), runs, layerwise=name == "garo", horizon=None)
            seeds = [FIRST_SEED + i for i in range(runs)]
            losses = garo_losses(trainings, load_weights(file), seeds, "test")
            rows.append(np.minimum(losses, 1e3)[None])
        else:
            policy = load_policy(file)
            rows.append(np.stack([deployed(policy, lr, runs, "test") for lr in INITIAL_LRS]))
    return rows


def garo_controls(runs: int) -> dict[str, NDArray[np.float64]]:
    """Plain SGD at lr 0.01, and GARO with random, frozen weights."""
    trainings = GaroTrainings(find_task(TASK), runs, layerwise=True, horizon=None)
    seeds = [FIRST_SEED + i for i in range(runs)]
    still = initial_weights(16, torch.Generator().manual_seed(0))
    still = still._replace(head=torch.zeros_like(still.head))
    rows = {"SGD, lr 0.01": garo_losses(trainings, still, seeds, "test")}
    frozen = [
        garo_losses(trainings, initial_weights(16, torch.Generator().manual_seed(s)), seeds, "test") for s in range(5)
    ]
    rows["GARO, frozen random weights (mean of 5)"] = np.mean(frozen, axis=0)
    return rows


def table(folder: Path, variants: Sequence[str], runs: int) -> None:
    """Markdown: test loss, and the difference to the best constant learning rate on the same trainings."""
    reference = baselines(runs)
    constant = next(losses for name, losses in reference.items() if "constant" in name)
    print("| contestant | test loss | from lr 1e-3 | minus best constant lr |\n|---|---|---|---|")
    for name, losses in {**reference, **garo_controls(runs)}.items():
        gap = interval(list(losses - constant)) if losses is not constant else ""
        print(f"| {name} | {losses.mean():.3f} | | {gap} |")
    spec = ControlSpec()
    for name, policy in {"random policy": RandomPolicy(spec), "untrained policy": constant_policy(spec, 10)}.items():
        losses = np.stack([deployed(policy, lr, runs, "test") for lr in INITIAL_LRS])
        print(
            f"| {name} | {losses.mean():.3f} | {losses[1].mean():.3f} | {interval(list(losses.mean(0) - constant))} |"
        )
    for name in variants:
        rows = policy_rows(folder, name, runs)
        if not rows:
            continue
        means = [float(row.mean()) for row in rows]
        one = interval([float(row[1].mean()) for row in rows]) if len(rows[0]) > 1 else ""
        gap = interval([mean - float(constant.mean()) for mean in means])
        print(f"| {name}, {len(rows)} trainings | {interval(means)} | {one} | {gap} |", flush=True)


def certificates(folder: Path, names: Sequence[str]) -> None:
    """Whether the first policy of each variant is feedback."""
    for name in names:
        file = folder / f"{name}-0" / POLICY_FILE
        if file.exists() and not name.startswith("garo"):
            print(f"\n{name}:", *describe(certificate(load_policy(file), TASK)), sep="\n  ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each agent")
    parser.add_argument("--ablation-seeds", type=int, default=3)
    parser.add_argument("--timesteps", type=int, default=64_000, help="decisions of each training, 10 inner steps each")
    parser.add_argument("--runs", type=int, default=20, help="trainings of the comparison, per initial lr")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if not args.tables:
        train_all(args.output_dir, AGENTS | ABLATION, min(args.seeds, args.ablation_seeds), args.timesteps)
        train_all(args.output_dir, AGENTS, args.seeds, args.timesteps)
    table(args.output_dir, [*AGENTS, *ABLATION], args.runs)
    certificates(args.output_dir, list(AGENTS))


if __name__ == "__main__":
    main()
