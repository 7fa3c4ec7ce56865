"""The result of an evaluation in words, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_gym.benchmark.above_optimum import above_optimum
from lr_gym.benchmark.contestants import Entrant
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.scores import BOUND, scores
from lr_gym.benchmark.significance import Comparison, smallest_shown

__all__ = ["ADVISED_SEEDS", "costs", "summarise"]

# (task, entrant's name) -> the outcome of each seed
Outcomes = Mapping[tuple[str, str], Sequence[Outcome]]
# Below so many seeds a verdict of "no difference shown" says little, and the summary says that.
ADVISED_SEEDS = 10


def costs(policies: Mapping[str, Mapping[str, Any]], budget: int, tuning_seeds: int) -> list[str]:
    """What was paid before the comparison, in words.

    Args:
        policies: path -> what the policy's file says about the policy; `cost` is what its training
            cost.
        budget: learning rates tried for each contestant that is tuned.
        tuning_seeds: trainings of each of them.
    """
    tuning = (
        f"Tuning cost each contestant that is tuned {budget * tuning_seeds} trainings of each "
        "task, those at a fixed learning rate and untuned policies none."
    )
    unknown = "what that cost is not recorded"
    trained = [
        f"{path} was trained once: {about.get('cost', unknown)}."
        for path, about in policies.items()
    ]
    return [tuning, *trained]


def summarise(
    rows: Sequence[Entrant],
    across: Mapping[str, Any],
    tasks: int,
    failures: int,
    outcomes: Outcomes,
    judged: str = "test loss",
) -> list[str]:
    """The result in words, which names losses as plainly as wins.

    Args:
        rows: entrants.
        across: `ranking`, `winner` and `pairs` over all tasks.
        tasks: number of tasks.
        failures: number of trainings that raised an error.
        outcomes: (task, entrant's name) -> the outcome of each seed.
        judged: name of the loss that trainings are judged by.
    """
    where = "on this task" if tasks == 1 else f"over {tasks} tasks"
    if {len(found) for found in outcomes.values()} == {1}:
        where += ", of one seed, by which nothing can be tested"
    lines = [_winner_line(across["winner"], across["ranking"][0]["name"], where)]
    baselines = [row.name for row in rows if row.policy is None]
    policies = [row.name for row in rows if row.policy is not None]
    if baselines:
        best = next(row["name"] for row in across["ranking"] if row["name"] in baselines)
        for name in policies:
            lines.append(_policy_line(name, baselines, across["pairs"]))
            lines += _best_baseline_lines(name, best, across["pairs"], outcomes, judged)
    for row in rows:
        lines += _guard_lines(row.name, outcomes)
    if failures:
        lines.append(f"{failures} trainings raised an error and count as diverged: see below.")
    return lines


def _winner_line(winner: str | None, best: str, where: str) -> str:
    if winner is None:
        return (
            f"No winner {where}: {best} ranks first, and is not shown to be better than every "
            "other entrant."
        )
    ahead = "" if best == winner else f", though {best} leads the ranking by interquartile means"
    return f"{winner} is the winner {where}: better on average than every other entrant{ahead}."


def _policy_line(name: str, baselines: Sequence[str], pairs: Sequence[Comparison]) -> str:
    """How many baselines a policy is better and worse than, and which."""
    better: list[str] = []
    worse: list[str] = []
    undecided = 0
    for pair in pairs:
        if name not in (pair.first, pair.second):
            continue
        other = pair.second if pair.first == name else pair.first
        if other not in baselines:
            continue
        if pair.better is None:
            undecided += 1
        else:
            (better if pair.better == name else worse).append(other)
    return (
        f"{name}, of {len(baselines)} baselines: better than {_counted(better)}, "
        f"worse than {_counted(worse)}, no difference shown to {undecided or 'none'}."
    )


def _best_baseline_lines(
    name: str, best: str, pairs: Sequence[Comparison], outcomes: Outcomes, judged: str
) -> list[str]:
    """The losses of a policy and of the best baseline, and what so many seeds could show."""
    tasks = [task for task, entrant in outcomes if entrant == best and (task, name) in outcomes]
    if not tasks:
        return []
    own = _losses(name, tasks, outcomes)
    other = _losses(best, tasks, outcomes)
    better = next(pair.better for pair in pairs if {pair.first, pair.second} == {name, best})
    verdict = {name: "better", best: "worse"}.get(better or "", "no difference shown")
    if len(tasks) == 1:
        figures = f"mean {judged} {_loss(own)} against {_loss(other)}"
    else:
        lower = int((own.mean(1) < other.mean(1)).sum())
        figures = f"the lower mean {judged} on {lower} of {len(tasks)} tasks"
    line = f"{name} against the best baseline, {best}: {figures}, {verdict}."
    scored = scores(above_optimum(own, tasks), above_optimum(other, tasks))
    smallest = smallest_shown(scored, len(pairs))
    if better is None and smallest is not None:
        line += f" {_sample_words(own.shape[1], smallest)}"
    return [line]


def _sample_words(seeds: int, smallest: float) -> str:
    """What so many seeds could have shown, where nothing was shown."""
    if smallest < BOUND:
        shown = f"only losses that differ by a factor of {math.exp(smallest):.3g} or more"
    else:
        shown = "no losses, however different,"
    advice = f"; give --seeds {ADVISED_SEEDS} or more" if seeds < ADVISED_SEEDS else ""
    return f"With {seeds} seeds {shown} could have been told apart{advice}."


def _losses(name: str, tasks: Sequence[str], outcomes: Outcomes) -> NDArray[np.float64]:
    """Reported losses (T, S) of an entrant."""
    return np.array([[outcome.test_loss for outcome in outcomes[task, name]] for task in tasks])


def _loss(losses: NDArray[np.float64]) -> str:
    mean = float(losses.mean())
    return f"{mean:.4g}" if math.isfinite(mean) else "infinity (diverged)"


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def _guard_lines(name: str, outcomes: Outcomes) -> list[str]:
    """In how many trainings of an entrant the guard acted; nothing where it never did."""
    groups = [group for (_, entrant), group in outcomes.items() if entrant == name]
    trainings = [outcome for group in groups for outcome in group]
    acted = sum(outcome.guarded for outcome in trainings)
    if not acted:
        return []
    return [
        f"{name}: its guard acted in {acted} of {len(trainings)} trainings, where layers looked "
        "like nothing that the policy has learned from; there its learning rates fade to the "
        "initial one, or hold."
    ]
