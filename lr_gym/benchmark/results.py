"""Outcomes of cells -> the content of results.json.

These are plain values. Apart from `timing` they are the same for the same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_gym.analysis.intervals import Interval, mean_interval, paired_difference
from lr_gym.benchmark.above_optimum import above_optimum
from lr_gym.benchmark.contestants import Entrant
from lr_gym.benchmark.curves import area_under_curve, speed_up, steps_to_target
from lr_gym.benchmark.grid import Rates
from lr_gym.benchmark.judged import judged_by
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.one_run import ended_view, stream_view
from lr_gym.benchmark.online import STREAM_METRICS, is_stream
from lr_gym.benchmark.run import Cell
from lr_gym.benchmark.scores import (
    iqm_interval,
    performance_profile,
    probability_of_improvement,
    scores,
)
from lr_gym.benchmark.significance import Comparison, compare_all, winner
from lr_gym.benchmark.steps_used import share_of_steps
from lr_gym.benchmark.summary import summarise
from lr_gym.benchmark.tuning import Tuning
from lr_gym.tasks import find_task

__all__ = ["assemble", "plain", "reference_of"]

# (task, entrant's name) -> the outcome of each seed
Outcomes = Mapping[tuple[str, str], Sequence[Outcome]]
# Scores at which performance profiles are drawn, in nats: fine near 0, coarse beyond.
FAR = np.arange(1.0, 7.1, 0.25)
THRESHOLDS = np.round(np.concatenate([-FAR[::-1], np.arange(-0.98, 0.99, 0.02), FAR]), 2)


def plain(value: Any) -> Any:
    """Turn values into those of JSON: named tuples into objects, numbers not finite into null."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def reference_of(rows: Sequence[Entrant]) -> str:
    """The entrant that scores are relative to.

    It is Adam at 1e-3 where it takes part, else the first baseline, else the first row.
    """
    baselines = [row.name for row in rows if row.policy is None]
    if "adam" in baselines:
        return "adam"
    return baselines[0] if baselines else rows[0].name


def assemble(
    rows: Sequence[Entrant],
    tasks: Sequence[str],
    outcomes: Outcomes,
    lrs: Rates,
    tuning: Mapping[tuple[str, str], Tuning],
    misset: Mapping[float, Outcomes],
    failures: Sequence[tuple[Cell, str]],
) -> dict[str, Any]:
    """Compute everything that follows from outcomes, as plain values.

    Args:
        rows: entrants.
        tasks: names of tasks.
        outcomes: outcomes of the reported cells.
        lrs: learning rate at which each entrant was reported.
        tuning: what tuning found for each (task, entrant's name) that was tuned.
        misset: factor -> outcomes at that many times the learning rate; empty where it was not
            asked for.
        failures: cells that raised, and what they raised.
    """
    targets = {task: _target(task, rows, outcomes) for task in tasks}
    losses = {task: target[1] for task, target in targets.items()}
    entries = {task: _task(task, rows, outcomes, lrs, tuning, targets[task]) for task in tasks}
    across = _across(rows, tasks, outcomes)
    content = {
        "tasks": entries,
        **across,
        "misset": _misset(rows, tasks, misset, outcomes) if misset else [],
        "failures": [
            {"task": cell.task, "contestant": str(cell.contestant), "error": error}
            for cell, error in failures
        ],
        "timing": {task: _timing(task, rows, outcomes, losses[task]) for task in tasks},
        "summary": summarise(
            rows, across, len(tasks), len(failures), outcomes, judged_by(entries.values())
        ),
    }
    values: dict[str, Any] = plain(content)
    return values


# One task


def _target(task: str, rows: Sequence[Entrant], outcomes: Outcomes) -> tuple[str, float]:
    """The best baseline by selection loss, and the mean loss at the end of its curves.

    This loss is the target that the others have to reach. Where even the best baseline diverged
    there is nothing to reach, and the target is -inf. So it is on a stream, which never ends.
    """
    candidates = [row.name for row in rows if row.policy is None] or [row.name for row in rows]
    best = min(candidates, key=lambda name: _selection_loss(outcomes[task, name]))
    if is_stream(task):
        return best, -math.inf
    ends = [o.curve[-1] if math.isfinite(o.test_loss) else np.inf for o in outcomes[task, best]]
    return best, float(np.mean(ends)) if np.isfinite(ends).all() else -math.inf


def _selection_loss(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([o.selection_loss for o in outcomes]))


def _task(
    task: str,
    rows: Sequence[Entrant],
    outcomes: Outcomes,
    lrs: Rates,
    tuning: Mapping[tuple[str, str], Tuning],
    target: tuple[str, float],
) -> dict[str, Any]:
    """Everything about one task."""
    reference = reference_of(rows)
    losses = [o.test_loss for o in outcomes[task, reference]]
    set_by, loss = target
    table = [_row(row, lrs[task, row.name], outcomes[task, row.name], losses, loss) for row in rows]
    shown = {
        row.name: outcomes[task, row.name]
        for row in rows
        if row.policy is not None or row.name == reference
    }
    online = [name for name in STREAM_METRICS if any(name in row["metrics"] for row in table)]
    return {
        "about": find_task(task).about,
        "metrics": [*find_task(task).metrics, *online],
        "stream": stream_view(task, shown),
        "ended": ended_view(task, {**shown, set_by: outcomes[task, set_by]}),
        "target": {"set_by": set_by, "loss": loss},
        "rows": table,
        "tuning": {
            row.name: tuning[task, row.name].trials for row in rows if (task, row.name) in tuning
        },
    }


def _row(
    row: Entrant,
    lr: float,
    outcomes: Sequence[Outcome],
    reference: Sequence[float],
    target: float,
) -> dict[str, Any]:
    """One entrant on one task; `reference` holds the reference's test losses."""
    losses = [o.test_loss for o in outcomes]
    to_target = [steps_to_target(o.steps, o.curve, target) for o in outcomes]
    return {
        "name": row.name,
        "kind": row.kind,
        "lr": lr,
        "test_losses": losses,
        "test_loss": mean_interval(losses),
        "selection_loss": _selection_loss(outcomes),
        "share_of_steps": share_of_steps(outcomes),
        "minus_reference": paired_difference(losses, reference),
        "area": mean_interval([area_under_curve(o.steps, o.curve) for o in outcomes]),
        "steps_to_target": to_target,
        "updates_to_target": _median_reached(to_target),
        "diverged": sum(not math.isfinite(o.test_loss) and o.error is None for o in outcomes),
        "raised": sum(o.error is not None for o in outcomes),
        **_finished(outcomes),
    }


def _finished(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Curves of the trainings that did not diverge; metrics where none did."""
    finished = [o for o in outcomes if math.isfinite(o.test_loss)]
    if not finished:
        return {"metrics": {}, "steps": [], "curves": [], "layers": [], "lr_over_time": []}
    metrics = _metrics(outcomes) if len(finished) == len(outcomes) else {}
    rates = np.array([o.lr for o in finished])  # (seeds, points, layers)
    return {
        "metrics": metrics,
        "steps": finished[0].steps,
        "curves": [o.curve for o in finished],
        "layers": finished[0].layers,
        # geometric mean over seeds; the bound keeps a rate of 0 drawable
        "lr_over_time": np.exp(np.log(np.maximum(rates, 1e-30)).mean(0)),
    }


def _metrics(outcomes: Sequence[Outcome]) -> dict[str, Interval]:
    """Means over seeds; seeds without a figure, such as streams that did not change, are left out.

    Metrics that no seed has a figure of are left out too.
    """
    values = {
        name: [o.metrics[name] for o in outcomes if not math.isnan(o.metrics[name])]
        for name in outcomes[0].metrics
    }
    return {name: mean_interval(found) for name, found in values.items() if found}


def _median_reached(steps: Sequence[float]) -> float:
    """Median of the trainings that reach the target, inf where none does."""
    reached = [value for value in steps if math.isfinite(value)]
    return float(np.median(reached)) if reached else math.inf


def _timing(
    task: str, rows: Sequence[Entrant], outcomes: Outcomes, target: float
) -> dict[str, dict[str, float]]:
    """Mean seconds of a training's updates, all of them and those until the target is reached.

    These are the only figures that differ when the same evaluation is run again.
    """
    table = {}
    for row in rows:
        found = outcomes[task, row.name]
        seconds = float(np.mean([o.training for o in found]))
        per_update = seconds / max(1.0, float(np.mean([o.updates for o in found])))
        updates = _median_reached([steps_to_target(o.steps, o.curve, target) for o in found])
        table[row.name] = {"training": seconds, "to_target": per_update * updates}
    return table


# All tasks


def _across(rows: Sequence[Entrant], tasks: Sequence[str], outcomes: Outcomes) -> dict[str, Any]:
    """Ranking, pairs and profiles over all tasks."""
    reference = reference_of(rows)
    losses = {row.name: _losses(row.name, tasks, outcomes) for row in rows}
    scored = {name: scores(loss, losses[reference]) for name, loss in losses.items()}
    pairs = compare_all(list(losses), lambda first, second: scores(losses[first], losses[second]))

    def improvement(name: str, other: str) -> Interval:
        return probability_of_improvement(losses[name], losses[other])

    ending = [task for task in tasks if not is_stream(task)]

    def faster(name: str, other: str) -> Interval:
        if not ending:
            return Interval(math.nan, math.nan, math.nan)
        return iqm_interval(_speed_ups(name, other, ending, outcomes))

    return {
        "reference": reference,
        "ranking": _ranking(rows, losses, scored, pairs, _steps_used(rows, tasks, outcomes)),
        "pairs": pairs,
        "winner": winner(pairs),
        "probability_of_improvement": _against_baselines(rows, improvement),
        "speed_up": _against_baselines(rows, faster),
        "profiles": {
            "thresholds": THRESHOLDS,
            "fractions": {
                name: performance_profile(values, THRESHOLDS) for name, values in scored.items()
            },
        },
    }


def _losses(name: str, tasks: Sequence[str], outcomes: Outcomes) -> NDArray[np.float64]:
    """Test losses (T, S) of an entrant, above the optimum of each task."""
    return above_optimum([[o.test_loss for o in outcomes[task, name]] for task in tasks], tasks)


def _steps_used(
    rows: Sequence[Entrant], tasks: Sequence[str], outcomes: Outcomes
) -> dict[str, float]:
    """Mean share of the steps that each entrant made, over all trainings that did not fail."""
    return {
        row.name: share_of_steps([o for task in tasks for o in outcomes[task, row.name]])
        for row in rows
    }


def _ranking(
    rows: Sequence[Entrant],
    losses: Mapping[str, NDArray[np.float64]],
    scored: Mapping[str, NDArray[np.float64]],
    pairs: Sequence[Comparison],
    steps_used: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Entrants by score, best first; `policy` is the key of the entrant in `policies`."""
    ranking: list[dict[str, Any]] = [
        {
            "name": row.name,
            "about": row.about,
            "kind": row.kind,
            "policy": row.policy,
            "score": iqm_interval(scored[row.name]),
            "failed": float(np.mean(~np.isfinite(losses[row.name]))),
            "share_of_steps": steps_used[row.name],
            "beats": [
                p.second if p.first == row.name else p.first for p in pairs if p.better == row.name
            ],
        }
        for row in rows
    ]
    return sorted(ranking, key=lambda entry: -entry["score"].mean)


def _against_baselines(
    rows: Sequence[Entrant], figure: Callable[[str, str], Interval]
) -> dict[str, dict[str, Interval]]:
    """A figure of each policy's row against each baseline."""
    policies = [row.name for row in rows if row.policy is not None]
    baselines = [row.name for row in rows if row.policy is None]
    return {name: {other: figure(name, other) for other in baselines} for name in policies}


def _speed_ups(
    name: str, other: str, tasks: Sequence[str], outcomes: Outcomes
) -> list[list[float]]:
    """Speed-ups (T, S) of one entrant over another with the same seed."""
    return [
        [
            speed_up(mine.steps if math.isfinite(mine.test_loss) else [], mine.curve, theirs.curve)
            for mine, theirs in zip(outcomes[task, name], outcomes[task, other], strict=True)
        ]
        for task in tasks
    ]


def _misset(
    rows: Sequence[Entrant],
    tasks: Sequence[str],
    outcomes: Mapping[float, Outcomes],
    right: Outcomes,
) -> list[dict[str, Any]]:
    """Each entrant at each factor of its learning rate, scored as in the ranking."""
    reference = _losses(reference_of(rows), tasks, right)

    def point(name: str, factor: float) -> dict[str, Any]:
        losses = _losses(name, tasks, outcomes[factor])
        means = {
            task: float(np.mean([o.test_loss for o in outcomes[factor][task, name]]))
            for task in tasks
        }
        return {
            "factor": factor,
            "score": iqm_interval(scores(losses, reference)),
            "failed": float(np.mean(~np.isfinite(losses))),
            "test_loss": means,
        }

    return [
        {
            "name": row.name,
            "kind": row.kind,
            "points": [point(row.name, factor) for factor in outcomes],
        }
        for row in rows
    ]
