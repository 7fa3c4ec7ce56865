"""results.json -> the report's tables in Markdown, for documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["tables"]


def _figure(value: float | None, pattern: str = ".4g") -> str:
    return "-" if value is None else format(value, pattern)


def _interval(interval: Mapping[str, Any], pattern: str = ".4g") -> str:
    """Mean, and its two ends."""
    mean, low, high = (_figure(interval[key], pattern) for key in ("mean", "low", "high"))
    return mean if mean == low == high else f"{mean} ({low} to {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(results: Mapping[str, Any]) -> str:
    """Summary, ranking, every task, and sensitivity where it was measured.

    Args:
        results: as in results.json.
    """
    ranking = [
        [
            row["name"],
            _interval(row["score"], "+.3f"),
            f"{row['failed']:.0%}",
            ", ".join(row["beats"]) or "none",
        ]
        for row in results["ranking"]
    ]
    parts = [
        "\n".join(f"- {line}" for line in results["summary"]),
        f"Score: log of {results['reference']}'s test loss over one's own, same seed; "
        "interquartile mean and interval.",
        _table(["contestant", "score", "diverged", "better than (Holm)"], ranking),
        *([" ".join(results["cost"])] if "cost" in results else []),  # not told by older versions
    ]
    for policy, chances in results["probability_of_improvement"].items():
        against = [
            [other, _interval(chance, ".2f"), _interval(results["speed_up"][policy][other], ".2f")]
            for other, chance in chances.items()
        ]
        if against:
            head = ["against", "probability of a lower test loss", "speed-up to where it ended"]
            parts += [f"### {policy} against each baseline", _table(head, against)]
    for task, entry in results["tasks"].items():
        metrics = entry["metrics"]
        rows = [
            [
                row["name"],
                f"{row['lr']:.3g}",
                _interval(row["test_loss"]),
                *(
                    _interval(row["metrics"][m], ".3f") if m in row["metrics"] else "-"
                    for m in metrics
                ),
                str(row["diverged"] + row["raised"]),
            ]
            for row in entry["rows"]
        ]
        parts += [
            f"### {task}",
            _table(["contestant", "lr", "test loss", *metrics, "diverged"], rows),
        ]
    if results["misset"]:
        factors = [f"{point['factor']:g} x" for point in results["misset"][0]["points"]]
        off = [
            [entry["name"], *(_figure(point["score"]["mean"], "+.2f") for point in entry["points"])]
            for entry in results["misset"]
        ]
        parts += ["### Score at a learning rate that is off", _table(["contestant", *factors], off)]
    left_out = [f"- left out: {name}: {reason}" for name, reason in results["skipped"].items()]
    parts += ["\n".join(left_out)] if left_out else []
    return "\n\n".join([*parts, f"    {results['command']}"]) + "\n"
