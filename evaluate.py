"""Compare trained policies with optimizers, tuned at equal cost, in ordinary training scripts.

    python evaluate.py --policy runs/ppo --task mnist1d-mlp --seeds 10 --output-dir runs/eval
    python evaluate.py --policy builtin:default --optimizers adam,muon --suite test --output-dir out

Writes results.json and report.html. Every tuned optimizer gets the same number of trials, which are
judged by the selection split. A policy takes part without any trials and, unless --no-tune-policies
is given, in a second row with as many trials. The test split is looked at once. Streams, which have
no splits, judge by the mean loss before learning, on other seeds for tuning than for the report.
Finished trainings are kept in the cache folder, where every later evaluation finds them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from lr_gym.benchmark.above_optimum import BelowOptimumError
from lr_gym.benchmark.cell_runs import log_cells
from lr_gym.benchmark.command_line import MAY_CHANGE, Args, command_of, parse
from lr_gym.benchmark.contestants import Entrant, entrants
from lr_gym.benchmark.environment import environment
from lr_gym.benchmark.grid import Grid, misset_cells, named_tasks, reported_cells, suite_tasks
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.progress import run_cells
from lr_gym.benchmark.report import write_report
from lr_gym.benchmark.results import assemble, plain
from lr_gym.benchmark.run import Cell
from lr_gym.benchmark.summary import costs
from lr_gym.benchmark.terminal import print_results
from lr_gym.benchmark.tuning import Tuning, best_trial, tuning_cells
from lr_gym.engine import Engine, open_engine
from lr_gym.files import write_atomically
from lr_gym.optional import require
from lr_gym.policies.policy import load_policy
from lr_gym.run_folder import RunFolder
from lr_gym.tracking import Tracker
from lr_gym.types import check_count

RANKING_COLUMNS = ["contestant", "score", "low", "high", "failed", "better than"]


class Plan(NamedTuple):
    """What an evaluation consists of.

    Attributes:
        rows: who is compared.
        tasks: names of the tasks.
        skipped: task of the suite that cannot run here -> why.
        folder: the output folder, which this process owns.
        config: the arguments as plain values.
    """

    rows: list[Entrant]
    tasks: list[str]
    skipped: dict[str, str]
    folder: RunFolder
    config: dict[str, Any]


class Trained(NamedTuple):
    """What was trained.

    Attributes:
        tuning: (task, entrant's name) -> what tuning found.
        lrs: (task, entrant's name) -> learning rate of the reported trainings.
        grid: (task, entrant's name) -> the reported cells.
        misset: factor on the learning rates -> cells as in `grid`.
        tuned: outcomes of the cells of tuning.
        reported: outcomes of the cells of `grid` and `misset`.
    """

    tuning: Mapping[tuple[str, str], Tuning]
    lrs: Mapping[tuple[str, str], float]
    grid: Grid
    misset: Mapping[float, Grid]
    tuned: Mapping[Cell, Outcome]
    reported: Mapping[Cell, Outcome]

    def outcomes_of(self, grid: Grid) -> dict[tuple[str, str], list[Outcome]]:
        """The outcomes of reported cells, in the places of the cells."""
        return {key: [self.reported[cell] for cell in cells] for key, cells in grid.items()}


def main(args: Args) -> None:
    """Evaluate; the exit status is 1 where a training raised an error."""
    if args.data_dir is not None:
        os.environ["LR_GYM_DATA"] = str(args.data_dir)  # worker processes read it too
    try:
        plan = make_plan(args)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    advice = f"continue with: {command_of(args)} --resume"
    try:
        failures = evaluate(args, plan)["failures"]
    except BrokenProcessPool:
        sys.exit(
            f"error: a worker process was killed, perhaps because memory was full; {advice} and "
            "fewer --workers"
        )
    except OSError as error:  # a full disk, most likely
        sys.exit(f"error: {error}; what was saved is intact: solve this, then {advice}")
    except BelowOptimumError as error:
        sys.exit(f"error: {error}; then {advice}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; {advice}")
    if failures:
        sys.exit(f"{len(failures)} trainings raised an error; the first: {failures[0]['error']}")


def make_plan(args: Args) -> Plan:
    """Check the arguments, find entrants and tasks, and claim the output folder.

    Raises:
        ValueError: if an argument is wrong.
        ImportError: if a package is missing that the arguments need.
        OSError: if the output folder cannot be made.
    """
    for name in ("seeds", "budget", "tuning_seeds", "workers"):
        check_count(name, getattr(args, name))
    if args.horizon is not None:
        check_count("horizon", args.horizon)
    if args.engine == "ray":
        require("ray", "ray")
    rows = find_rows(args)
    tasks, skipped = find_tasks(args)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(args).items()}
    folder = RunFolder(args.output_dir, config, resume=args.resume, may_change=MAY_CHANGE)
    return Plan(rows, tasks, skipped, folder, config)


def find_rows(args: Args) -> list[Entrant]:
    """Who is compared."""
    optimizers = [name.strip() for name in args.optimizers.split(",") if name.strip()]
    rows = entrants(optimizers, args.policy)
    if args.tune_policies:
        return rows
    return [row for row in rows if row.policy is None or row.lr is not None]


def find_tasks(args: Args) -> tuple[list[str], dict[str, str]]:
    """Names of the tasks, and for each task that is left out why."""
    if args.task and args.suite:
        raise ValueError("give --task or --suite, not both")
    if args.suite:
        return suite_tasks(args.suite)
    return named_tasks(args.task or ("mnist1d-mlp",)), {}


def evaluate(args: Args, plan: Plan) -> dict[str, Any]:
    """Train, report, log and show; or only show what is complete."""
    results_file = args.output_dir / "results.json"
    report = args.output_dir / "report.html"
    if results_file.exists():
        results: dict[str, Any] = json.loads(results_file.read_text())
        plan.folder.close()
        print_results(results)
        print(f"report: {report} (complete; nothing was run again)")
        return results
    with open_engine(args.engine, args.workers, args.ray_address) as engine:
        trained = train(args, plan, engine)
    results = compile_results(args, plan, trained)
    write_report(results, report)
    if args.wandb_cells:
        # Each cell is a run of its own, and wandb has one open run at a time.
        log_cells(args.output_dir, trained.reported, args.wandb)
    name = f"evaluate-{args.output_dir.name}"
    tracker = Tracker(args.output_dir, plan.config, wandb=args.wandb, name=name)
    log_ranking(tracker, results["ranking"])
    tracker.save_file(report, "report")
    # This file says that the evaluation is complete, so it is the last one.
    write_atomically(results_file, json.dumps(results, indent=1, allow_nan=False).encode())
    tracker.save_file(results_file, "results")
    tracker.close()
    plan.folder.close()
    print_results(results)
    print(f"report: {report}")
    return results


def train(args: Args, plan: Plan, engine: Engine) -> Trained:
    """Tune the entrants without a fixed learning rate, then train every entrant on every seed."""
    rows, tasks = plan.rows, plan.tasks
    trials = tuning_cells(
        rows, tasks, budget=args.budget, seeds=args.tuning_seeds, horizon=args.horizon
    )
    tried = [cell for group in trials.values() for cells in group for cell in cells]
    tuned = run_cells("tuning", tried, engine, args.workers)
    tuning = {key: best_trial(group, tuned) for key, group in trials.items()}
    lrs = {
        (task, row.name): tuning[task, row.name].lr if row.lr is None else row.lr
        for task in tasks
        for row in rows
    }
    grid = reported_cells(rows, tasks, lrs, args.seeds, args.horizon)
    misset = misset_cells(rows, tasks, lrs, args.seeds, args.horizon) if args.misset else {}
    tables = (grid, *misset.values())
    compared = [cell for table in tables for cells in table.values() for cell in cells]
    reported = run_cells("comparing", compared, engine, args.workers)
    return Trained(tuning, lrs, grid, misset, tuned, reported)


def compile_results(args: Args, plan: Plan, trained: Trained) -> dict[str, Any]:
    """The content of results.json."""
    outcomes = [*trained.tuned.items(), *trained.reported.items()]
    failures = [(cell, outcome.error) for cell, outcome in outcomes if outcome.error is not None]
    misset = {factor: trained.outcomes_of(grid) for factor, grid in trained.misset.items()}
    computed = assemble(
        plan.rows,
        plan.tasks,
        trained.outcomes_of(trained.grid),
        trained.lrs,
        trained.tuning,
        misset,
        failures,
    )
    policies = {path: plain(load_policy(path).about) for path in args.policy}
    return {
        **computed,
        "seeds": args.seeds,
        "budget": args.budget,
        "tuning_seeds": args.tuning_seeds,
        "horizon": args.horizon,
        "skipped": plan.skipped,
        "policies": policies,
        "cost": costs(policies, args.budget, args.tuning_seeds),
        "command": command_of(args),
        "environment": environment(),
    }


def log_ranking(tracker: Tracker, ranking: list[dict[str, Any]]) -> None:
    """Log the scores, and the ranking as a table."""
    tracker.log({f"score/{entry['name']}": entry["score"]["mean"] for entry in ranking}, 0)
    tracker.save_table("ranking", RANKING_COLUMNS, [ranking_row(entry) for entry in ranking])


def ranking_row(entry: Mapping[str, Any]) -> list[Any]:
    """The values of RANKING_COLUMNS."""
    score = entry["score"]
    interval = [score["mean"], score["low"], score["high"]]
    return [entry["name"], *interval, entry["failed"], ", ".join(entry["beats"])]


if __name__ == "__main__":
    try:
        arguments = parse(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    main(arguments)
