"""The main plots of results.json as PNG and SVG, for documents that cannot hold the report's interactive ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from lr_gym.benchmark.plots import entrant_styles

__all__ = ["write_figures"]

_DASHES = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-."}


def _lines(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How each entrant is drawn, as in the report."""
    return {
        name: {
            "color": style["color"],
            "linestyle": _DASHES[style["dash"]],
            "linewidth": style["width"] * 0.8,
        }
        for name, style in entrant_styles(results).items()
    }


def _ranking(results: Mapping[str, Any]) -> Figure:
    """Interquartile mean of each entrant with its interval."""
    entries = results["ranking"][::-1]
    figure = Figure(figsize=(7.0, 1.2 + 0.28 * len(entries)), layout="constrained")
    axes = figure.add_subplot(
        xlabel=f"log of {results['reference']}'s test loss over one's own (right is better)"
    )
    for kind, colour in (("policy", "#d55e00"), ("baseline", "#0072b2")):
        rows = [(i, entry["score"]) for i, entry in enumerate(entries) if entry["kind"] == kind]
        means = [score["mean"] for _, score in rows]
        ends = [[s["mean"] - s["low"] for _, s in rows], [s["high"] - s["mean"] for _, s in rows]]
        axes.errorbar(means, [i for i, _ in rows], xerr=ends, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(entries)), [entry["name"] for entry in entries])
    axes.axvline(0.0, color="#999999", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _profiles(results: Mapping[str, Any]) -> Figure:
    """Fraction of trainings at least so good, within +-1 nat."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="score", ylabel="fraction of trainings with at least this score", xlim=(-1, 1)
    )
    lines = _lines(results)
    for name, fractions in results["profiles"]["fractions"].items():
        axes.plot(results["profiles"]["thresholds"], fractions, label=name, **lines[name])
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _misset(results: Mapping[str, Any]) -> Figure:
    """Score of each entrant at a learning rate that is off."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="times its learning rate", ylabel="score", xscale="log")
    lines = _lines(results)
    for row in results["misset"]:
        points = row["points"]
        axes.plot([p["factor"] for p in points], [p["score"]["mean"] for p in points], label=row["name"],
                  **lines[row["name"]])  # fmt: skip
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def write_figures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ranking, profiles, and misset where it was measured, each as PNG and SVG.

    Args:
        results: as in results.json.
        folder: made where it does not exist.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"ranking": _ranking(results), "profiles": _profiles(results)}
    if results["misset"]:
        figures["misset"] = _misset(results)
    files = []
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            files.append(folder / f"{name}.{ending}")
            with rc_context({"svg.hashsalt": name}):  # the same file for the same results
                figure.savefig(
                    files[-1], dpi=150, metadata={"Date": None} if ending == "svg" else None
                )
    return files
