"""results.json -> the report's tables in Markdown, for documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lr_gym.benchmark.judged import judged_by, task_judged_by
from lr_gym.benchmark.steps_used import shown_share, some_ended_early

__all__ = ["tables"]


def tables(results: Mapping[str, Any]) -> str:
    """Summary, ranking, every task, and the sensitivity to the learning rate where it was measured.

    Args:
        results: content of results.json.
    """
    judged = judged_by(results["tasks"].values())
    parts = [
        "\n".join(f"- {line}" for line in results["summary"]),
        f"Score: log of {results['reference']}'s {judged} over one's own, same seed; "
        "interquartile mean and interval.",
        _ranking(results),
        " ".join(results["cost"]),
    ]
    for policy in results["probability_of_improvement"]:
        parts += _against_baselines(results, policy)
    for task, entry in results["tasks"].items():
        parts += [f"### {task}", _task(entry)]
    if results["misset"]:
        parts += ["### Score at a learning rate that is off", _misset(results)]
    if results["skipped"]:
        left_out = [f"- left out: {name}: {reason}" for name, reason in results["skipped"].items()]
        parts.append("\n".join(left_out))
    return "\n\n".join([*parts, f"    {results['command']}"]) + "\n"


def _figure(value: float | None, pattern: str = ".4g") -> str:
    return "-" if value is None else format(value, pattern)


def _interval(interval: Mapping[str, Any], pattern: str = ".4g") -> str:
    """A mean with the two ends of its interval."""
    mean, low, high = (_figure(interval[key], pattern) for key in ("mean", "low", "high"))
    return mean if mean == low == high else f"{mean} ({low} to {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ranking(results: Mapping[str, Any]) -> str:
    early = some_ended_early(results["ranking"])
    rows = [
        [
            row["name"],
            _interval(row["score"], "+.3f"),
            *([shown_share(row)] if early else []),
            f"{row['failed']:.0%}",
            ", ".join(row["beats"]) or "none",
        ]
        for row in results["ranking"]
    ]
    steps = ["steps"] if early else []
    return _table(["contestant", "score", *steps, "diverged", "better than (Holm)"], rows)


def _against_baselines(results: Mapping[str, Any], policy: str) -> list[str]:
    """Heading and table of a policy against each baseline; nothing where there are none."""
    speed_up = results["speed_up"][policy]
    rows = [
        [other, _interval(chance, ".2f"), _interval(speed_up[other], ".2f")]
        for other, chance in results["probability_of_improvement"][policy].items()
    ]
    head = [
        "against",
        f"probability of a lower {judged_by(results['tasks'].values())}",
        "speed-up to where it ended",
    ]
    return [f"### {policy} against each baseline", _table(head, rows)] if rows else []


def _task(entry: Mapping[str, Any]) -> str:
    metrics = entry["metrics"]
    early = some_ended_early(entry["rows"])
    rows = [
        [
            row["name"],
            f"{row['lr']:.3g}",
            _interval(row["test_loss"]),
            *(
                _interval(row["metrics"][name], ".3f") if name in row["metrics"] else "-"
                for name in metrics
            ),
            *([shown_share(row)] if early else []),
            str(row["diverged"] + row["raised"]),
        ]
        for row in entry["rows"]
    ]
    steps = ["steps"] if early else []
    return _table(["contestant", "lr", task_judged_by(entry), *metrics, *steps, "diverged"], rows)


def _misset(results: Mapping[str, Any]) -> str:
    factors = [f"{point['factor']:g} x" for point in results["misset"][0]["points"]]
    rows = [
        [entry["name"], *(_figure(point["score"]["mean"], "+.2f") for point in entry["points"])]
        for entry in results["misset"]
    ]
    return _table(["contestant", *factors], rows)
