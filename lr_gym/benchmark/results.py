"""Outcomes of cells -> the content of results.json.

Plain values, the same for the same seeds but for `timing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_gym.benchmark.contestants import Entrant
from lr_gym.benchmark.curves import area_under_curve, speed_up, steps_to_target
from lr_gym.benchmark.metrics import Interval, mean_interval, paired_difference
from lr_gym.benchmark.run import Cell, Outcome
from lr_gym.benchmark.scores import (
    iqm_interval,
    performance_profile,
    probability_of_improvement,
    scores,
)
from lr_gym.benchmark.significance import compare_all, winner
from lr_gym.benchmark.tuning import Tuning
from lr_gym.tasks import find_task

__all__ = ["assemble", "costs", "plain", "reference_of", "summarise"]

Outcomes = Mapping[tuple[str, str], Sequence[Outcome]]  # (task, entrant's name) -> one per seed
_FAR = np.arange(1.0, 7.1, 0.25)
THRESHOLDS = np.round(np.concatenate([-_FAR[::-1], np.arange(-0.98, 0.99, 0.02), _FAR]), 2)  # nats


def plain(value: Any) -> Any:
    """For JSON: tuples with names as objects, numbers that are not finite as null."""
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
    """Whom scores are relative to.

    Adam at 1e-3 where it takes part, else the first baseline, else the first row.
    """
    baselines = [row.name for row in rows if row.optimizer]
    return "adam" if "adam" in baselines else (baselines or [rows[0].name])[0]


def _target(task: str, rows: Sequence[Entrant], outcomes: Outcomes) -> tuple[str, float]:
    """The best baseline by selection loss, and the mean end of its curves.

    What the others have to reach.

    Where even that diverged there is nothing to reach: -inf.
    """
    candidates = [row for row in rows if row.optimizer] or list(rows)
    best = min(
        candidates,
        key=lambda row: float(np.mean([o.selection_loss for o in outcomes[task, row.name]])),
    )
    ends = [
        o.curve[-1] if math.isfinite(o.test_loss) else np.inf for o in outcomes[task, best.name]
    ]
    return best.name, float(np.mean(ends)) if np.isfinite(ends).all() else -math.inf


def _median_reached(steps: Sequence[float]) -> float:
    """Median of those that reach the target, inf where none does."""
    reached = [value for value in steps if math.isfinite(value)]
    return float(np.median(reached)) if reached else math.inf


def _row(
    row: Entrant,
    lr: float,
    outcomes: Sequence[Outcome],
    reference: Sequence[Outcome],
    target: float,
) -> Any:
    """One entrant on one task."""
    whole = [o for o in outcomes if math.isfinite(o.test_loss)]
    losses = [o.test_loss for o in outcomes]
    to_target = [steps_to_target(o.steps, o.curve, target) for o in outcomes]
    rates = np.array([o.lr for o in whole])  # (seeds, points, layers)
    return {
        "name": row.name,
        "kind": "baseline" if row.optimizer else "policy",
        "lr": lr,
        "test_losses": losses,
        "test_loss": mean_interval(losses),
        "selection_loss": float(np.mean([o.selection_loss for o in outcomes])),
        "minus_reference": paired_difference(losses, [o.test_loss for o in reference]),
        "metrics": {
            key: mean_interval([o.metrics[key] for o in outcomes])
            for key in (whole[0].metrics if len(whole) == len(outcomes) else ())
        },
        "area": mean_interval([area_under_curve(o.steps, o.curve) for o in outcomes]),
        "steps_to_target": to_target,
        "updates_to_target": _median_reached(to_target),
        "diverged": sum(not math.isfinite(o.test_loss) and not o.error for o in outcomes),
        "raised": sum(bool(o.error) for o in outcomes),
        "steps": whole[0].steps if whole else [],
        "curves": [o.curve for o in whole],
        "layers": whole[0].layers if whole else [],
        "lr_over_time": np.exp(np.log(np.maximum(rates, 1e-30)).mean(0)) if whole else [],
    }


def _losses(name: str, tasks: Sequence[str], outcomes: Outcomes) -> NDArray[np.float64]:
    """Test losses (T, S)."""
    return np.array([[o.test_loss for o in outcomes[task, name]] for task in tasks])


def _speed_ups(
    name: str, other: str, tasks: Sequence[str], outcomes: Outcomes
) -> list[list[float]]:
    """Of one entrant over another with the same seed (T, S)."""
    return [
        [
            speed_up(mine.steps if math.isfinite(mine.test_loss) else [], mine.curve, theirs.curve)
            for mine, theirs in zip(outcomes[task, name], outcomes[task, other], strict=True)
        ]
        for task in tasks
    ]


def _across(rows: Sequence[Entrant], tasks: Sequence[str], outcomes: Outcomes) -> dict[str, Any]:
    """Ranking, pairs and profiles over all tasks."""
    reference = reference_of(rows)
    losses = {row.name: _losses(row.name, tasks, outcomes) for row in rows}
    normal = {name: scores(loss, losses[reference]) for name, loss in losses.items()}
    pairs = compare_all(list(losses), lambda first, second: scores(losses[first], losses[second]))
    ranking: list[dict[str, Any]] = [
        {
            "name": row.name,
            "about": row.about,
            "kind": "baseline" if row.optimizer else "policy",
            "score": iqm_interval(normal[row.name]),
            "failed": float(np.mean(~np.isfinite(losses[row.name]))),
            "beats": [
                p.second if p.first == row.name else p.first for p in pairs if p.better == row.name
            ],
        }
        for row in rows
    ]
    policies = [row.name for row in rows if row.policy]
    baselines = [row.name for row in rows if not row.policy]

    def against_baselines(figure: Callable[[str, str], Interval]) -> dict[str, dict[str, Interval]]:
        return {name: {other: figure(name, other) for other in baselines} for name in policies}

    return {
        "reference": reference,
        "ranking": sorted(ranking, key=lambda entry: -entry["score"].mean),
        "pairs": pairs,
        "winner": winner(pairs),
        "probability_of_improvement": against_baselines(
            lambda name, other: probability_of_improvement(losses[name], losses[other])
        ),
        "speed_up": against_baselines(
            lambda name, other: iqm_interval(_speed_ups(name, other, tasks, outcomes))
        ),
        "profiles": {
            "thresholds": THRESHOLDS,
            "fractions": {
                name: performance_profile(values, THRESHOLDS) for name, values in normal.items()
            },
        },
    }


def _misset(
    rows: Sequence[Entrant],
    tasks: Sequence[str],
    outcomes: Mapping[float, Outcomes],
    right: Outcomes,
) -> list[dict[str, Any]]:
    """Each entrant at a learning rate that is off by each factor, scored like the ranking."""
    reference = _losses(reference_of(rows), tasks, right)
    table = []
    for row in rows:
        points = []
        for factor, found in outcomes.items():
            losses = _losses(row.name, tasks, found)
            points.append(
                {
                    "factor": factor,
                    "score": iqm_interval(scores(losses, reference)),
                    "failed": float(np.mean(~np.isfinite(losses))),
                    "test_loss": {
                        task: float(np.mean(loss)) for task, loss in zip(tasks, losses, strict=True)
                    },
                }
            )
        table.append(
            {"name": row.name, "kind": "baseline" if row.optimizer else "policy", "points": points}
        )
    return table


def _timing(
    rows: Sequence[Entrant], tasks: Sequence[str], outcomes: Outcomes, targets: Mapping[str, float]
) -> Any:
    """Seconds of a training's updates, all and to the target, the only figures that differ between two runs."""
    table: dict[str, dict[str, dict[str, float]]] = {task: {} for task in tasks}
    for task in tasks:
        for row in rows:
            found = outcomes[task, row.name]
            seconds = float(np.mean([o.training for o in found]))
            each = seconds / max(1.0, float(np.mean([o.updates for o in found])))
            steps = _median_reached(
                [steps_to_target(o.steps, o.curve, targets[task]) for o in found]
            )
            table[task][row.name] = {"training": seconds, "to_target": each * steps}
    return table


def assemble(
    rows: Sequence[Entrant],
    tasks: Sequence[str],
    outcomes: Outcomes,
    lrs: Mapping[tuple[str, str], float],
    tuning: Mapping[tuple[str, str], Tuning],
    misset: Mapping[float, Outcomes],
    failures: Sequence[tuple[Cell, str]],
) -> dict[str, Any]:
    """Everything that is computed from outcomes, as plain values.

    Args:
        rows: entrants.
        tasks: names.
        outcomes: of the reported cells.
        lrs: at which each entrant was reported.
        tuning: what tuning found.
        misset: factor -> outcomes at that many times the learning rate; empty where it was not
            asked for.
        failures: cells that raised, and what.
    """
    reference = reference_of(rows)
    targets = {task: _target(task, rows, outcomes) for task in tasks}
    per_task = {
        task: {
            "about": find_task(task).about,
            "metrics": list(find_task(task).metrics),
            "target": {"set_by": targets[task][0], "loss": targets[task][1]},
            "rows": [
                _row(
                    row,
                    lrs[task, row.name],
                    outcomes[task, row.name],
                    outcomes[task, reference],
                    targets[task][1],
                )
                for row in rows
            ],
            "tuning": {
                row.name: tuning[task, row.name].trials
                for row in rows
                if (task, row.name) in tuning
            },
        }
        for task in tasks
    }
    across = _across(rows, tasks, outcomes)
    content = {
        "tasks": per_task,
        **across,
        "misset": _misset(rows, tasks, misset, outcomes) if misset else [],
        "failures": [
            {
                "task": cell.task,
                "contestant": cell.contestant.optimizer or cell.contestant.policy,
                "error": error,
            }
            for cell, error in failures
        ],
        "timing": _timing(
            rows, tasks, outcomes, {task: target[1] for task, target in targets.items()}
        ),
    }
    return {**plain(content), "summary": summarise(rows, across, len(tasks), failures, outcomes)}


def costs(policies: Mapping[str, Mapping[str, Any]], budget: int, tuning_seeds: int) -> list[str]:
    """What was paid before the comparison, in words.

    Args:
        policies: path -> what is known of the policy, `cost` of it.
        budget: learning rates of each contestant that is tuned.
        tuning_seeds: trainings of each of them.
    """
    tuning = (
        f"Tuning cost each contestant that is tuned {budget * tuning_seeds} trainings of each "
        "task, those at a fixed "
        "learning rate and untuned policies none."
    )
    unknown = "what that cost is not recorded"
    return [
        tuning,
        *(
            f"{path} was trained once: {about.get('cost', unknown)}."
            for path, about in policies.items()
        ),
    ]


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def summarise(
    rows: Sequence[Entrant],
    across: Mapping[str, Any],
    tasks: int,
    failures: Sequence[tuple[Cell, str]],
    outcomes: Outcomes,
) -> list[str]:
    """The result in words, losses as plainly as wins."""
    where = "on this task" if tasks == 1 else f"over {tasks} tasks"
    if {len(found) for found in outcomes.values()} == {1}:
        where += ", of one seed, by which nothing can be tested"
    best = across["ranking"][0]["name"]
    if across["winner"]:
        ahead = (
            f", though {best} leads the ranking by interquartile means"
            if best != across["winner"]
            else ""
        )
        lines = [
            f"{across['winner']} is the winner {where}: better on average than every other "
            f"entrant{ahead}."
        ]
    else:
        lines = [
            f"No winner {where}: {best} ranks first, and is not shown to be better than every "
            "other entrant."
        ]
    baselines = {row.name for row in rows if row.optimizer}
    for row in rows:
        if not row.policy or not baselines:
            continue
        verdicts: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
        for pair in across["pairs"]:
            other = pair.second if pair.first == row.name else pair.first
            if row.name in (pair.first, pair.second) and other in baselines:
                key = (
                    "level" if not pair.better else "better" if pair.better == row.name else "worse"
                )
                verdicts[key].append(other)
        better, worse = (_counted(verdicts[key]) for key in ("better", "worse"))
        level = len(verdicts["level"])
        lines.append(
            f"{row.name}, of {len(baselines)} baselines: better than {better}, worse than {worse}, "
            f"no difference shown to {level or 'none'}."
        )
    for row in rows:
        trainings = [
            outcome
            for (_, name), group in outcomes.items()
            if name == row.name
            for outcome in group
        ]
        if acted := sum(outcome.guarded for outcome in trainings):
            lines.append(
                f"{row.name}: its guard acted in {acted} of {len(trainings)} trainings, where "
                "layers looked like "
                "nothing that the policy has learned from; there its learning rates fade to the "
                "initial one, or hold."
            )
    if failures:
        lines.append(f"{len(failures)} trainings raised an error and count as diverged: see below.")
    return lines
