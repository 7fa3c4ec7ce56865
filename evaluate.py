"""Deploy a trained policy in ordinary training scripts and compare it with Adam.

    python evaluate.py --policy runs/ppo --task mnist1d-mlp --seeds 10 --output-dir runs/eval

Writes results.json and report.html. Adam's learning rates are tuned on the selection split, the policy gets no tuning,
and the test split is looked at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich.console
import rich.progress
import rich.table
import torch
import tyro

import lr_gym
from agents.run_folder import RunFolder
from lr_gym.benchmark.metrics import mean_interval, paired_difference
from lr_gym.benchmark.report import write_report
from lr_gym.benchmark.run import OPTIMIZERS, Cell, Contestant, Outcome, run_cells
from lr_gym.files import write_atomically
from lr_gym.policy import MLPPolicy, load_policy
from lr_gym.tasks import Task, find_task
from lr_gym.tracking import Tracker
from lr_gym.types import check_count

GRID = (
    1e-4,
    3e-4,
    1e-3,
    2e-3,
    4e-3,
    8e-3,
    1.6e-2,
    3e-2,
)  # peak learning rates that each baseline may choose from
INITIAL_LRS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # where the policy has to start from


@dataclasses.dataclass(frozen=True)
class Args:
    """Deploy a trained policy in ordinary training scripts and compare it with Adam."""

    policy: str
    """Policy file, output folder of train_agent.py, or builtin:NAME."""
    output_dir: Path
    """New folder for results.json and report.html; one that holds results is never overwritten."""
    task: str = "mnist1d-mlp"
    """What is trained, a name of lr_gym.tasks.TASKS."""
    optimizers: str = "adam,adam-constant,adam-cosine,adam-wsd"
    """Baselines to compare with, names of lr_gym.benchmark.run.OPTIMIZERS separated by commas."""
    seeds: int = 10
    """Trainings of each contestant; none of their seeds was trained on."""
    horizon: int | None = None
    """Inner steps per training; the task's own by default."""
    workers: int = os.cpu_count() or 1
    """Processes, of one thread each."""
    resume: bool = False
    """Start an evaluation that was stopped again; one that is complete is only shown."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where you are logged in and offline elsewhere."""


def run_all(cells: list[Cell], workers: int, title: str) -> dict[Cell, Outcome]:
    """Run cells under a progress bar."""
    console = rich.console.Console(stderr=True)
    done = run_cells(cells, workers)
    return dict(rich.progress.track(done, total=len(cells), description=title, console=console))


def names(args: Args) -> list[str]:
    """The baselines asked for; a ValueError lists the valid ones."""
    chosen = [name.strip() for name in args.optimizers.split(",") if name.strip()]
    for name in chosen:
        if name not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
    return list(dict.fromkeys(chosen))


def tune(args: Args) -> tuple[list[Contestant], dict[str, list[float]]]:
    """Each baseline at its best learning rate by mean selection loss, and all those losses."""
    tuned = {name: [Contestant(name, lr) for lr in GRID] for name in names(args) if OPTIMIZERS[name].lr is None}
    cells = [
        Cell(contestant, args.task, seed, horizon=args.horizon)
        for contestants in tuned.values()
        for contestant in contestants
        for seed in range(args.seeds)
    ]
    outcomes = run_all(cells, args.workers, "tuning") if cells else {}
    best, losses = [], {}
    for name in names(args):
        if (fixed := OPTIMIZERS[name].lr) is not None:
            best.append(Contestant(name, fixed))
            continue
        means = [
            float(np.mean([o.selection_loss for cell, o in outcomes.items() if cell.contestant == c]))
            for c in tuned[name]
        ]
        losses[OPTIMIZERS[name].about] = means
        best.append(tuned[name][int(np.argmin(means))])
    return best, losses


def row(name: str, kind: str, lr: str, outcomes: list[list[Outcome]]) -> dict[str, Any]:
    """One row of the table; `outcomes` holds a list per seed, over which that seed's figures are averaged."""
    flat = [outcome for seed in outcomes for outcome in seed]
    survivors = [outcome for outcome in flat if np.isfinite(outcome.test_loss)]
    rates = np.array([outcome.lr for outcome in survivors]) if survivors else np.empty((0, 0, 0))
    losses = [float(np.mean([o.test_loss for o in seed])) for seed in outcomes]
    metrics = {
        key: mean_interval([float(np.mean([o.metrics[key] for o in seed])) for seed in outcomes])._asdict()
        for key in (survivors[0].metrics if len(survivors) == len(flat) else ())
    }
    return {
        "name": name,
        "kind": kind,
        "lr": lr,
        "selection_loss": mean_interval(
            [float(np.mean([o.selection_loss for o in seed])) for seed in outcomes]
        )._asdict(),
        "test_losses": losses,
        "test_loss": mean_interval(losses)._asdict(),
        "metrics": metrics,
        "diverged": len(flat) - len(survivors),
        "steps": survivors[0].steps if survivors else [],
        "curves": [outcome.curve for outcome in survivors],
        "layers": survivors[0].layers if survivors else [],
        "lr_over_time": np.exp(np.log(rates).mean(0)).tolist() if survivors else [],
    }


def compare(args: Args, baselines: list[Contestant]) -> list[dict[str, Any]]:
    """The policy from every initial learning rate, and the baselines, on the test split."""
    policies = [Contestant("", lr, args.policy) for lr in INITIAL_LRS]
    cells = [
        Cell(contestant, args.task, seed, test=True, horizon=args.horizon)
        for contestant in policies + baselines
        for seed in range(args.seeds)
    ]
    outcomes = run_all(cells, args.workers, "comparing")

    def of(contestant: Contestant) -> list[Outcome]:
        return [outcomes[cell] for cell in cells if cell.contestant == contestant]

    over_lrs = [list(seed) for seed in zip(*(of(c) for c in policies), strict=True)]
    mean = row("policy, mean over its initial lrs", "mean", "1e-4 to 3e-2", over_lrs)
    mean["curves"] = []
    rows = [mean]
    rows += [row(c.name, "policy", f"{c.lr:g}", [[o] for o in of(c)]) for c in policies]
    rows += [row(c.name, "baseline", f"{c.lr:g}", [[o] for o in of(c)]) for c in baselines]
    for entry in rows:
        if entry["kind"] == "baseline":
            entry["policy_minus_this"] = paired_difference(mean["test_losses"], entry["test_losses"])._asdict()
        else:
            entry["policy_minus_this"] = None
    return rows


def summarise(rows: list[dict[str, Any]]) -> list[str]:
    """The result in words, wins and losses alike."""
    lines = []
    for entry in rows:
        if gap := entry["policy_minus_this"]:
            verdict = "better than" if gap["high"] < 0 else "worse than" if gap["low"] > 0 else "level with"
            lines.append(
                f"The policy is {verdict} {entry['name']} (lr {entry['lr']}): test loss {gap['mean']:+.4f}, "
                f"95 % interval {gap['low']:+.4f} to {gap['high']:+.4f}."
            )
    return lines


def show(results: dict[str, Any]) -> None:
    """The table on the terminal."""
    table = rich.table.Table(title=f"{results['task']}: test loss, mean over {results['seeds']} seeds")
    table.add_column("contestant")
    for heading in ("lr", "test loss", "95 % interval", "policy minus this"):
        table.add_column(heading, justify="right")
    for entry in results["rows"]:
        loss, gap = entry["test_loss"], entry["policy_minus_this"]
        table.add_row(
            entry["name"],
            entry["lr"],
            f"{loss['mean']:.4f}",
            f"{loss['low']:.4f} .. {loss['high']:.4f}",
            f"{gap['mean']:+.4f} ({gap['low']:+.4f} .. {gap['high']:+.4f})" if gap else "",
            style="bold" if entry["kind"] == "mean" else "",
        )
    rich.console.Console().print(table)
    for line in results["summary"]:
        print(line)


def build(args: Args) -> tuple[Task, MLPPolicy, RunFolder, dict[str, Any]]:
    """Task, policy, output folder and the arguments as plain values; a ValueError says what is wrong with them."""
    for name in ("seeds", "workers"):
        check_count(name, getattr(args, name))
    names(args)
    task, policy = find_task(args.task), load_policy(args.policy)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(args).items()}
    may_change = ("workers", "wandb", "resume")
    folder = RunFolder(args.output_dir, config, resume=args.resume, may_change=may_change)
    return task, policy, folder, config


def evaluate(args: Args, task: Task, policy: MLPPolicy, folder: RunFolder, config: dict[str, Any]) -> None:
    """Tune the baselines, compare, report."""
    file, report = args.output_dir / "results.json", args.output_dir / "report.html"
    if file.exists():
        show(json.loads(file.read_text()))
        print(f"report: {report} (complete; nothing was run again)")
        return
    tracker = Tracker(args.output_dir, config, wandb=args.wandb, name=f"evaluate-{task.name}")

    baselines, losses = tune(args)
    rows = compare(args, baselines)
    results = {
        "task": task.name,
        "seeds": args.seeds,
        "grid": list(GRID),
        "metrics": list(task.metrics),
        "summary": summarise(rows),
        "rows": rows,
        "tuning": losses,
        "command": shlex.join(["python", "evaluate.py", *sys.argv[1:]]),
        "policy": dict(policy.about),
        "environment": {
            "lr_gym": lr_gym.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
    }
    write_report(results, report)
    write_atomically(file, json.dumps(results, indent=1).encode())
    for i, entry in enumerate(rows):
        tracker.log({f"test_loss/{entry['name']}": entry["test_loss"]["mean"]}, i)
    tracker.save_file(report, "report")
    tracker.close()
    folder.close()
    show(results)
    print(f"report: {report}")


def main(args: Args) -> None:
    """Build, then evaluate."""
    try:
        parts = build(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    evaluate(args, *parts)


if __name__ == "__main__":
    main(tyro.cli(Args))
