"""All agents at an equal budget of inner steps on mnist1d-mlp, against tuned baselines.

Each variant is trained from several seeds by train_agent.py. The selected policies are then
deployed on trainings that no agent has learned from, each from an initial learning rate of its own
(log-uniform in 1e-4..3e-2), and the test loss is reported. Baselines choose among 13 learning rates
on the selection split of other trainings.

    python -m experiments.compare_agents --output-dir runs/agents  # trains what is missing
    python -m experiments.compare_agents --output-dir runs/agents --tables  # trains nothing
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from agents.garo import HIDDEN, GaroTrainings, garo_losses
from lr_gym.analysis.certificate import certificate, describe
from lr_gym.control.spec import ControlSpec
from lr_gym.envs.rollout import DIVERGED, controlled_env, final_losses
from lr_gym.optim.contrib.garo_weights import initial_weights, load_weights
from lr_gym.policies.policy import POLICY_FILE, Policy, constant_policy, load_policy
from lr_gym.tasks import find_task

TASK = "mnist1d-mlp"
ROOT = Path(__file__).parents[1]
AGENTS = {  # name -> arguments for train_agent.py
    "ppo": ["--agent", "ppo"],
    "es": ["--agent", "es"],
    "dqn": ["--agent", "dqn"],
    "q_learning": ["--agent", "q_learning"],
    "garo": ["--agent", "garo"],
}
ABLATION = {
    "q_learning-per_layer": ["--agent", "q_learning", "--granularity", "per_layer"],
    "garo-global": ["--agent", "garo", "--granularity", "global"],
    "ppo-global": ["--agent", "ppo", "--granularity", "global"],
    "ppo-residual": ["--agent", "ppo", "--action", "residual"],
    "ppo-momentum": ["--agent", "ppo", "--controls", "lr", "momentum"],
    "ppo-noise": ["--agent", "ppo", "--controls", "lr", "momentum", "noise"],
}
LRS = tuple(float(lr) for lr in np.geomspace(1e-4, 1e-1, 13))
RANGE = (1e-4, 3e-2)  # from which each training of a policy draws its initial learning rate
FIRST_SEED = 1 << 42  # row seeds of the final comparison
TUNING_SEED = 1 << 43  # row seeds by which baselines choose their learning rate


class RandomPolicy:
    """Uniform actions."""

    def __init__(self, spec: ControlSpec) -> None:
        self.spec = spec
        self._generator = torch.Generator().manual_seed(0)

    def predict(
        self, observation: torch.Tensor, state: object = None
    ) -> tuple[torch.Tensor, object]:
        """Draw an action for each row, as Policy.predict."""
        shape = (*observation.shape[:-1], len(self.spec.controls))
        return torch.rand(shape, generator=self._generator) * 2 - 1, state


def final(
    policy: Policy | RandomPolicy,
    lr: float | tuple[float, float],
    runs: int,
    split: str,
    seed: int = FIRST_SEED,
) -> NDArray[np.float64]:
    """Final losses (runs,); a diverged training counts as DIVERGED."""
    env = controlled_env(policy.spec, TASK, runs, lr)
    return np.minimum(final_losses(env, policy, [seed + i for i in range(runs)], split), DIVERGED)  # type: ignore[arg-type]


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % Student interval over trainings of the agent."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def train_all(
    folder: Path, variants: dict[str, list[str]], seeds: int, timesteps: int, jobs: int
) -> None:
    """Train what is missing, seed by seed, `jobs` trainings at a time with one worker each."""

    def one(job: tuple[int, str, list[str]]) -> None:
        seed, name, arguments = job
        output = folder / f"{name}-{seed}"
        if (output / "done").exists():
            return
        resume = ["--resume"] if (output / "args.json").exists() else []
        command = [
            "train_agent.py",
            *arguments,
            "--task",
            TASK,
            "--seed",
            str(seed),
            "--compile",
            "--workers",
            "1",
        ]
        command += ["--timesteps", str(timesteps), "--certificate-runs", "0", "--wandb", "disabled"]
        command += ["--output-dir", str(output), *resume]
        print(" ".join(command), flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (output / "done").touch()

    with ThreadPoolExecutor(jobs) as pool:
        list(
            pool.map(
                one,
                [(seed, name, words) for seed in range(seeds) for name, words in variants.items()],
            )
        )


def baseline(schedule: str, runs: int) -> tuple[str, NDArray[np.float64]]:
    """Name and test losses (runs,) of AdamW under a schedule, its rate tuned by selection loss."""
    policy = constant_policy(ControlSpec(schedule=schedule), 10)
    lr = min(LRS, key=lambda lr: float(final(policy, lr, 20, "selection", TUNING_SEED).mean()))
    return f"AdamW, {schedule}, best of 13 lrs ({lr:.2g})", final(policy, lr, runs, "test")


def fixed(optimizer: str, runs: int) -> tuple[str, NDArray[np.float64]]:
    """Name and test losses (runs,) of an optimizer at its usual learning rate."""
    base, lr = optimizer.split()
    spec = ControlSpec(schedule="constant", base=base)
    name = f"{optimizer}, momentum 0.9" if base == "sgd" else optimizer
    return name, final(constant_policy(spec, 10), float(lr), runs, "test")


def untrained(kind: str, runs: int) -> tuple[str, NDArray[np.float64]]:
    """Name and test losses (2, runs) without learning: from any initial lr, and from 1e-3."""
    spec = ControlSpec()
    policy = RandomPolicy(spec) if kind == "random" else constant_policy(spec, 10)
    return f"{kind} policy", np.stack([final(policy, lr, runs, "test") for lr in (RANGE, 1e-3)])


def garo(file: Path | None, layerwise: bool, runs: int) -> tuple[str, NDArray[np.float64]]:
    """Name and test losses (runs,) of a trained GARO, or without a file of five frozen cells."""
    trainings = GaroTrainings(find_task(TASK), runs, layerwise=layerwise, horizon=None)
    seeds = [FIRST_SEED + i for i in range(runs)]
    if file is not None:
        return file.parent.name, np.minimum(
            garo_losses(trainings, load_weights(file), seeds, "test"), DIVERGED
        )
    cells = [initial_weights(HIDDEN, torch.Generator().manual_seed(seed)) for seed in range(5)]
    losses = np.stack([garo_losses(trainings, cell, seeds, "test") for cell in cells])
    return "GARO, frozen random weights, mean of 5", np.minimum(losses, DIVERGED).mean(0)


def plain_sgd(runs: int) -> tuple[str, NDArray[np.float64]]:
    """Name and test losses (runs,) of SGD at lr 0.01, no momentum: GARO whose cell never moves."""
    trainings = GaroTrainings(find_task(TASK), runs, layerwise=True, horizon=None)
    cell = initial_weights(HIDDEN, torch.Generator().manual_seed(0))
    still = cell._replace(head=torch.zeros_like(cell.head))
    return "sgd 1e-2, no momentum", garo_losses(
        trainings, still, [FIRST_SEED + i for i in range(runs)], "test"
    )


def trained(file: Path, runs: int) -> tuple[str, NDArray[np.float64]]:
    """Folder and test losses (2, runs) of a trained policy: from any initial lr, and from 1e-3."""
    policy = load_policy(file)
    return file.parent.name, np.stack([final(policy, lr, runs, "test") for lr in (RANGE, 1e-3)])


def table(folder: Path, variants: Sequence[str], runs: int, jobs: int) -> None:
    """Print test losses, and their difference to the best constant rate on the same trainings."""
    files = [
        file for name in variants for file in sorted(folder.glob(f"{name}-[0-9]/{POLICY_FILE}"))
    ]
    files = [file for file in files if (file.parent / "done").exists()]
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        calls = [pool.submit(fixed, name, runs) for name in ("adam 1e-3", "adamw 1e-3", "sgd 1e-2")]
        calls += [
            pool.submit(baseline, schedule, runs) for schedule in ("constant", "cosine", "wsd")
        ]
        calls += [pool.submit(untrained, kind, runs) for kind in ("random", "untrained")]
        calls += [pool.submit(plain_sgd, runs), pool.submit(garo, None, True, runs)]
        policies = [
            pool.submit(garo, file, not file.parent.name.startswith("garo-global"), runs)
            if file.parent.name.startswith("garo")
            else pool.submit(trained, file, runs)
            for file in files
        ]
        rows = [call.result() for call in calls]
        learned = dict(call.result() for call in policies)
    constant = next(losses for name, losses in rows if "constant" in name)
    print(
        "| contestant | trainings | test loss | from lr 1e-3 | minus best constant lr "
        "|\n|---|---|---|---|---|"
    )
    for name, losses in rows:
        every = np.atleast_2d(losses)
        one = f"{every[1].mean():.3f}" if len(every) > 1 else ""
        gap = interval(list(every[0] - constant)) if losses is not constant else ""
        print(f"| {name} | | {every[0].mean():.3f} | {one} | {gap} |")
    for name in variants:
        found = [
            np.atleast_2d(losses)
            for key, losses in learned.items()
            if key.rpartition("-")[0] == name
        ]
        if found:
            one = (
                interval([float(losses[1].mean()) for losses in found]) if len(found[0]) > 1 else ""
            )
            gap = interval([float((losses[0] - constant).mean()) for losses in found])
            print(
                f"| {name} | {len(found)} | {interval([float(x[0].mean()) for x in found])} | "
                f"{one} | {gap} |"
            )


def certificates(folder: Path, names: Sequence[str]) -> None:
    """Print the certificate of each variant's first policy: is it feedback or a schedule?"""
    for name in names:
        file = folder / f"{name}-0" / POLICY_FILE
        if file.exists() and not name.startswith("garo"):
            print(
                f"\n{name}:",
                *describe(certificate(load_policy(file), TASK)),
                sep="\n  ",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each agent")
    parser.add_argument("--ablation-seeds", type=int, default=3)
    parser.add_argument(
        "--timesteps",
        type=int,
        default=64_000,
        help="decisions of each training, 10 inner steps each",
    )
    parser.add_argument("--runs", type=int, default=50, help="trainings of each row of the tables")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument(
        "--tables", action="store_true", help="train nothing, print the tables of what is there"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if not args.tables:
        train_all(args.output_dir, AGENTS, args.seeds, args.timesteps, args.jobs)
        train_all(args.output_dir, ABLATION, args.ablation_seeds, args.timesteps, args.jobs)
    table(args.output_dir, [*AGENTS, *ABLATION], args.runs, args.jobs)
    certificates(args.output_dir, list(AGENTS))


if __name__ == "__main__":
    main()
