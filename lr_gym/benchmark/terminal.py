"""results.json -> what is printed on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rich.box
import rich.table

from lr_gym.analysis.certificate import TESTED, describe
from lr_gym.benchmark.judged import judged_by
from lr_gym.benchmark.scores import SCORE_SCALE
from lr_gym.benchmark.steps_used import shown_share, some_ended_early
from lr_gym.console import print_whole

__all__ = ["print_results", "ranking_table"]


def print_results(results: Mapping[str, Any]) -> None:
    """Print the ranking, the summary, the certificates of policies, and what was left out."""
    print_whole(ranking_table(results))
    for line in results["summary"]:
        print(line)
    certified = {p: about for p, about in results["policies"].items() if "certificate" in about}
    if certified:
        print(TESTED)
    for path, about in certified.items():
        print(f"{path} on {about['certificate']['task']}:")
        print(*(f"  {line}" for line in describe(about["certificate"])), sep="\n")
    for name, reason in results["skipped"].items():
        print(f"skipped {name}: {reason}")


def ranking_table(results: Mapping[str, Any]) -> rich.table.Table:
    """The ranking; where there is one task, with the learning rates and losses on it."""
    tasks = list(results["tasks"])
    alone = len(tasks) == 1
    judged = judged_by(results["tasks"].values())
    where = tasks[0] if alone else f"{len(tasks)} tasks"
    table = rich.table.Table(
        title=f"{where}, {results['seeds']} seeds",
        caption=f"score: log of {results['reference']}'s {judged} over one's own; {SCORE_SCALE}",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("contestant", no_wrap=True)
    early = some_ended_early(results["ranking"])
    steps = ["steps"] if early else []
    headings = ["score", "95 % interval", "failed", *steps, *(["lr", judged] if alone else [])]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    on_task = {row["name"]: row for row in results["tasks"][tasks[0]]["rows"]}
    for entry in results["ranking"]:
        share = [shown_share(entry)] if early else []
        cells = _scores(entry) + share + (_on_task(on_task[entry["name"]]) if alone else [])
        style = "" if entry["policy"] is None else "bold"
        table.add_row(entry["name"], *cells, style=style)
    return table


def _scores(entry: Mapping[str, Any]) -> list[str]:
    """Score, its interval, and the fraction of trainings that failed."""
    score = entry["score"]
    interval = f"{score['low']:+.3f} .. {score['high']:+.3f}"
    return [f"{score['mean']:+.3f}", interval, f"{entry['failed']:.0%}"]


def _on_task(row: Mapping[str, Any]) -> list[str]:
    """Learning rate and mean loss."""
    loss = row["test_loss"]["mean"]
    return [f"{row['lr']:.3g}", "diverged" if loss is None else f"{loss:.4f}"]
