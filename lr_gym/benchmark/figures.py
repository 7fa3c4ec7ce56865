"""The main plots of results.json as PNG and SVG.

They are for documents, which cannot hold the interactive plots of the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from lr_gym.benchmark.judged import ONLINE, judged_by
from lr_gym.benchmark.plots import BASELINE_COLOUR, POLICY_COLOUR, entrant_styles

__all__ = ["write_figures"]

# plotly's names of dashes -> matplotlib's
DASHES = {"solid": "-", "dot": ":", "dash": "--", "dashdot": "-."}


def write_figures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ranking, profiles, misset where it was measured, and streams, each as PNG and SVG.

    Args:
        results: content of results.json.
        folder: folder for the files; it is made where it does not exist.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"ranking": _ranking(results), "profiles": _profiles(results)}
    if results["misset"]:
        figures["misset"] = _misset(results)
    for task, entry in results["tasks"].items():
        if entry.get("stream"):
            figures[task] = _stream(results, entry["stream"])
    return [
        _save(figure, name, folder / f"{name}.{ending}")
        for name, figure in figures.items()
        for ending in ("png", "svg")
    ]


def _save(figure: Figure, name: str, file: Path) -> Path:
    """Write a figure so that equal results give equal files: without date, with fixed SVG ids."""
    metadata = {"Date": None} if file.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(file, dpi=150, metadata=metadata)
    return file


def _styles(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How the line of each entrant is drawn, as in the report."""
    return {
        name: {
            "color": style["color"],
            "linestyle": DASHES[style["dash"]],
            "linewidth": style["width"] * 0.8,
        }
        for name, style in entrant_styles(results).items()
    }


def _ranking(results: Mapping[str, Any]) -> Figure:
    """Interquartile mean of each entrant with its interval."""
    entries = results["ranking"][::-1]  # the best on top
    judged = judged_by(results["tasks"].values())
    figure = Figure(figsize=(7.0, 1.2 + 0.28 * len(entries)), layout="constrained")
    axes = figure.add_subplot(
        xlabel=f"log of {results['reference']}'s {judged} over one's own (right is better)"
    )
    for kind, colour in (("policy", POLICY_COLOUR), ("baseline", BASELINE_COLOUR)):
        rows = [(i, entry["score"]) for i, entry in enumerate(entries) if entry["kind"] == kind]
        means = [score["mean"] for _, score in rows]
        ends = [[s["mean"] - s["low"] for _, s in rows], [s["high"] - s["mean"] for _, s in rows]]
        axes.errorbar(means, [i for i, _ in rows], xerr=ends, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(entries)), [entry["name"] for entry in entries])
    axes.axvline(0.0, color="#999999", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    return figure


def _profiles(results: Mapping[str, Any]) -> Figure:
    """Fraction of trainings that score at least so much, for scores within +-1 nat."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="score", ylabel="fraction of trainings with at least this score", xlim=(-1, 1)
    )
    styles = _styles(results)
    for name, fractions in results["profiles"]["fractions"].items():
        axes.plot(results["profiles"]["thresholds"], fractions, label=name, **styles[name])
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _misset(results: Mapping[str, Any]) -> Figure:
    """Score of each entrant at a learning rate that is off."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="times its learning rate", ylabel="score", xscale="log")
    styles = _styles(results)
    for row in results["misset"]:
        factors = [point["factor"] for point in row["points"]]
        means = [point["score"]["mean"] for point in row["points"]]
        axes.plot(factors, means, label=row["name"], **styles[row["name"]])
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _stream(results: Mapping[str, Any], view: Mapping[str, Any]) -> Figure:
    """One run of a stream: losses and learning rates, and its changes as vertical lines."""
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True)
    losses.set_ylabel(f"{ONLINE} above the floor")
    rates.set(xlabel="updates", ylabel="learning rate", yscale="log")
    styles = _styles(results)
    for axes in (losses, rates):
        for step in view["changes"]:
            axes.axvline(step, color="#999999", linewidth=0.8)
        axes.grid(alpha=0.3)
    for row in view["rows"]:
        losses.plot(row["steps"], row["loss"], label=row["name"], **styles[row["name"]])
        rates.plot(row["steps"], row["lr"], **styles[row["name"]])
    losses.legend(fontsize="small")
    return figure
