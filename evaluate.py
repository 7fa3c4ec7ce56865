"""Compare trained policies with optimizers, tuned at equal cost, in ordinary training scripts.

    python evaluate.py --policy runs/ppo --task mnist1d-mlp --seeds 10 --output-dir runs/eval
    python evaluate.py --policy builtin:default --optimizers adam,muon,prodigy --suite test --output-dir runs/test

Writes results.json and report.html. Every optimizer gets the same number of trials on the selection
split; a policy is entered without any and, unless --no-tune-policies is said, with as many as a
second row. The test split is looked at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import rich.console
import rich.table
import tyro

from agents.run_folder import RunFolder
from lr_gym.analysis.certificate import describe
from lr_gym.benchmark.cell_runs import log_cells
from lr_gym.benchmark.contestants import Entrant, entrants
from lr_gym.benchmark.environment import environment
from lr_gym.benchmark.grid import misset_cells, named_tasks, reported_cells, suite_tasks
from lr_gym.benchmark.progress import CellProgress
from lr_gym.benchmark.report import write_report
from lr_gym.benchmark.results import assemble, costs, plain
from lr_gym.benchmark.run import Cell, Outcome
from lr_gym.benchmark.store import CellStore, complete
from lr_gym.benchmark.tuning import Tuning, tune
from lr_gym.engine import Engine, local_engine, ray_engine
from lr_gym.files import write_atomically
from lr_gym.optional import require
from lr_gym.policies.policy import load_policy
from lr_gym.tracking import Tracker
from lr_gym.types import check_count


@dataclasses.dataclass(frozen=True)
class Args:
    """Compare trained policies with optimizers, tuned at equal cost, in ordinary training scripts."""

    output_dir: Path
    """New folder for results.json, report.html and cells.jsonl.

    One that holds results is never overwritten.
    """
    policy: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Policy file, output folder of train_agent.py, or builtin:NAME.

    Give the option once for each.
    """
    optimizers: str = "adam,adam-constant,adam-cosine,adam-wsd"
    """What to compare with, names of lr_gym.benchmark.contestants.OPTIMIZERS separated by commas."""
    task: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What is trained, a name of lr_gym.tasks.TASKS; give the option once for each.

    Mnist1d-mlp without --suite.
    """
    suite: Literal["test", "validation", "train"] | None = None
    """All tasks of a suite that can run on this machine."""
    seeds: int = 10
    """Trainings of each contestant on each task that are reported.

    None of their seeds was trained or tuned on.
    """
    budget: int = 16
    """Learning rates that are tried for each tuned contestant on each task."""
    tuning_seeds: int = 3
    """Trainings of each learning rate tried."""
    tune_policies: bool = True
    """Enter each policy with a tuned initial learning rate too, as a row of its own."""
    misset: bool = False
    """Also train at 0.01, 0.1, 10 and 100 times each contestant's learning rate."""
    horizon: int | None = None
    """Inner steps per training; the task's own by default."""
    workers: int = os.cpu_count() or 1
    """Processes, of one thread each."""
    engine: Literal["local", "ray"] = "local"
    """local is processes of this machine, ray a Ray cluster (the extra `ray`)."""
    ray_address: str = ""
    """Of a running Ray cluster; by default one of `workers` cores is started here."""
    data_dir: Path | None = None
    """Folder with data that cannot be downloaded, such as cifar-10-batches-py.

    LR_GYM_DATA by default.
    """
    reuse: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Earlier evaluation from which trainings are taken over where they are the same.

    Give the option once for each.
    """
    resume: bool = False
    """Continue an evaluation that was stopped; no cell runs twice.

    One that is complete is only shown.
    """
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online where you are logged in and offline elsewhere."""
    wandb_cells: bool = False
    """Also log every reported training to wandb as a run of its own, grouped by task."""


CELLS = "cells.jsonl"  # in the output folder
MAY_CHANGE = (
    "output_dir",
    "workers",
    "data_dir",
    "engine",
    "ray_address",
    "wandb",
    "wandb_cells",
    "reuse",
    "resume",
)


class Plan(NamedTuple):
    """What an evaluation consists of."""

    rows: list[Entrant]
    tasks: list[str]
    skipped: dict[str, str]
    folder: RunFolder
    config: dict[str, Any]


def build(args: Args) -> Plan:
    """Rows, tasks and output folder.

    A ValueError or ImportError says what is wrong with the arguments.
    """
    for name in ("seeds", "budget", "tuning_seeds", "workers"):
        check_count(name, getattr(args, name))
    for earlier in args.reuse:
        if not (Path(earlier) / CELLS).is_file():
            raise ValueError(
                f"--reuse {earlier}: no {CELLS} there; name the output folder of an evaluation"
            )
    if args.horizon is not None:
        check_count("horizon", args.horizon)
    if args.engine == "ray":
        require("ray", "ray")
    if args.task and args.suite:
        raise ValueError("give --task or --suite, not both")
    rows = entrants(
        [name.strip() for name in args.optimizers.split(",") if name.strip()], args.policy
    )
    if not args.tune_policies:
        rows = [row for row in rows if not (row.policy and row.lr is None)]
    tasks, skipped = (
        suite_tasks(args.suite) if args.suite else (named_tasks(args.task or ("mnist1d-mlp",)), {})
    )
    config = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(args).items()}
    folder = RunFolder(args.output_dir, config, resume=args.resume, may_change=MAY_CHANGE)
    return Plan(rows, tasks, skipped, folder, config)


def open_engine(args: Args) -> AbstractContextManager[Engine]:
    """Where cells run."""
    return (
        ray_engine(args.workers, args.ray_address)
        if args.engine == "ray"
        else local_engine(args.workers)
    )


def find_learning_rates(
    args: Args, plan: Plan, engine: Engine, store: CellStore
) -> tuple[dict[tuple[str, str], Tuning], list[tuple[Cell, str]]]:
    """What tuning found, and the cells that raised."""
    bar: list[CellProgress] = []

    def start(cells: list[Cell]) -> None:
        bar.append(CellProgress("tuning", cells, args.workers).__enter__())

    try:
        tuning, outcomes = tune(
            plan.rows,
            plan.tasks,
            engine,
            store,
            budget=args.budget,
            seeds=args.tuning_seeds,
            horizon=args.horizon,
            on_start=start,
            on_done=lambda cell, outcome: bar[0](cell, outcome),
        )
    finally:
        for progress in bar:
            progress.__exit__()
    return tuning, [(cell, outcome.error) for cell, outcome in outcomes.items() if outcome.error]


def compare(
    args: Args,
    plan: Plan,
    tuning: Mapping[tuple[str, str], Tuning],
    tuning_failures: list[tuple[Cell, str]],
    engine: Engine,
    store: CellStore,
) -> tuple[dict[str, Any], dict[Cell, Outcome]]:
    """Train every entrant on every task and seed, look at the test split, and assemble the results."""
    lrs = {
        (task, row.name): tuning[task, row.name].lr if row.lr is None else row.lr
        for task in plan.tasks
        for row in plan.rows
    }
    grid = reported_cells(plan.rows, plan.tasks, lrs, args.seeds, args.horizon)
    off = misset_cells(plan.rows, plan.tasks, lrs, args.seeds, args.horizon) if args.misset else {}
    cells = [cell for table in (grid, *off.values()) for group in table.values() for cell in group]
    unique = list(dict.fromkeys(cells))
    with CellProgress("comparing", unique, args.workers) as progress:
        outcomes = complete(unique, engine, store, progress)
    failures = [(cell, outcomes[cell].error) for cell in unique if outcomes[cell].error]

    def of(table: Mapping[tuple[str, str], list[Cell]]) -> Any:
        return {key: [outcomes[cell] for cell in group] for key, group in table.items()}

    missets = {factor: of(table) for factor, table in off.items()}
    results = assemble(
        plan.rows, plan.tasks, of(grid), lrs, tuning, missets, [*tuning_failures, *failures]
    )
    return results, outcomes


def show(results: dict[str, Any]) -> None:
    """The ranking on the terminal."""
    tasks = list(results["tasks"])
    reference = results["reference"]
    where = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
    table = rich.table.Table(
        title=f"{where}, {results['seeds']} seeds: log of {reference}'s test loss over one's own"
    )
    table.add_column("contestant")
    for heading in (
        "score",
        "95 % interval",
        "failed",
        *(["lr", "test loss", "95 % interval"] * (len(tasks) == 1)),
    ):
        table.add_column(heading, justify="right")
    alone = {row["name"]: row for row in results["tasks"][tasks[0]]["rows"]}
    for entry in results["ranking"]:
        score, row = entry["score"], alone[entry["name"]]
        cells = [
            f"{score['mean']:+.3f}",
            f"{score['low']:+.3f} .. {score['high']:+.3f}",
            f"{entry['failed']:.0%}",
        ]
        if len(tasks) == 1:
            mean, low, high = (
                "diverged" if row["test_loss"][key] is None else f"{row['test_loss'][key]:.4f}"
                for key in ("mean", "low", "high")
            )
            cells += [f"{row['lr']:g}", mean, f"{low} .. {high}"]
        table.add_row(entry["name"], *cells, style="bold" if entry["kind"] == "policy" else "")
    rich.console.Console().print(table)
    for line in results["summary"]:
        print(line)
    for path, about in results["policies"].items():
        if "certificate" in about:
            print(f"feedback or schedule? {path} on {about['certificate']['task']}:")
            print(*(f"  {line}" for line in describe(about["certificate"])), sep="\n")
    for name, reason in results["skipped"].items():
        print(f"skipped {name}: {reason}")


def evaluate(args: Args, plan: Plan) -> dict[str, Any]:
    """Tune, compare, report; or show what is complete."""
    file, report = args.output_dir / "results.json", args.output_dir / "report.html"
    if file.exists():
        results: dict[str, Any] = json.loads(file.read_text())
        plan.folder.close()
        show(results)
        print(f"report: {report} (complete; nothing was run again)")
        return results
    earlier = [Path(folder) / CELLS for folder in args.reuse]
    with CellStore(args.output_dir / CELLS, earlier) as store, open_engine(args) as engine:
        tuning, failures = find_learning_rates(args, plan, engine, store)
        results, outcomes = compare(args, plan, tuning, failures, engine, store)
    policies = {path: plain(load_policy(path).about) for path in args.policy}
    results |= {
        "seeds": args.seeds,
        "budget": args.budget,
        "tuning_seeds": args.tuning_seeds,
        "horizon": args.horizon,
        "skipped": plan.skipped,
        "policies": policies,
        "cost": costs(policies, args.budget, args.tuning_seeds),
        "command": shlex.join(["python", "evaluate.py", *sys.argv[1:]]),
        "environment": environment(),
    }
    write_report(results, report)
    if args.wandb_cells:  # runs of their own, so not while that of the evaluation is open
        log_cells(args.output_dir, outcomes, args.wandb)
    tracker = Tracker(
        args.output_dir, plan.config, wandb=args.wandb, name=f"evaluate-{args.output_dir.name}"
    )
    tracker.log(
        {f"score/{entry['name']}": entry["score"]["mean"] for entry in results["ranking"]}, 0
    )
    columns = ["contestant", "score", "low", "high", "failed", "better than"]
    ranking = [
        [
            e["name"],
            e["score"]["mean"],
            e["score"]["low"],
            e["score"]["high"],
            e["failed"],
            ", ".join(e["beats"]),
        ]
        for e in results["ranking"]
    ]
    tracker.save_table("ranking", columns, ranking)
    tracker.save_file(report, "report")
    write_atomically(
        file, json.dumps(results, indent=1, allow_nan=False).encode()
    )  # with it all is complete
    tracker.save_file(file, "results")
    tracker.close()
    plan.folder.close()
    show(results)
    print(f"report: {report}")
    return results


def main(args: Args) -> None:
    """Build, then evaluate; the exit status is 1 where a training raised an error."""
    if args.data_dir is not None:
        os.environ["LR_GYM_DATA"] = str(args.data_dir)  # worker processes read it too
    try:
        plan = build(args)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    again = f"continue with: python {shlex.join([arg for arg in sys.argv if arg != '--resume'])} --resume"
    try:
        failures = evaluate(args, plan)["failures"]
    except BrokenProcessPool:
        sys.exit(
            f"error: a worker process was killed, perhaps for its memory; {again} and fewer "
            "--workers"
        )
    except OSError as error:  # a full disk, most likely
        sys.exit(f"error: {error}; what was saved before is intact: mend that, then {again}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; {again}")
    if failures:
        sys.exit(f"{len(failures)} trainings raised an error; the first: {failures[0]['error']}")


if __name__ == "__main__":
    main(tyro.cli(Args))
