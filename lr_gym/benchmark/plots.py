"""Plots of the report: content of results.json -> plotly."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from lr_gym.benchmark.judged import ONLINE, task_judged_by

__all__ = [
    "BASELINE_COLOUR",
    "POLICY_COLOUR",
    "Plot",
    "entrant_styles",
    "plots_of",
    "task_plots",
]

POLICY_COLOUR = "#d55e00"
BASELINE_COLOUR = "#0072b2"
# Colours that are told apart by colour-blind readers too; after the last one, dashes change.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#999999",
    "#8c510a",
    "#5e4fa2",
)
DASHES = ("solid", "dot", "dash", "dashdot")


class Plot(NamedTuple):
    """A figure with a heading.

    Attributes:
        title: heading.
        about: one sentence on how to read the figure.
        figure: plotly figure.
    """

    title: str
    about: str
    figure: Any


def _styles(names: Sequence[str], bold: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """A colour and a dash for each name, which depend on its place; bold names have thick lines."""
    count = len(COLOURS)
    return {
        name: {
            "color": COLOURS[i % count],
            "dash": DASHES[i // count % len(DASHES)],
            "width": 4.0 if name in bold else 1.8,
        }
        for i, name in enumerate(names)
    }


def entrant_styles(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How the line of each entrant is drawn in every plot; policies have thick lines.

    Args:
        results: content of results.json.
    """
    entries = results["ranking"]
    policies = {entry["name"] for entry in entries if entry["kind"] == "policy"}
    return _styles([entry["name"] for entry in entries], policies)


def _layout(title_x: str, title_y: str, rows: int = 0, **options: Any) -> go.Layout:
    return go.Layout(
        template="plotly_white",
        margin={"l": 60, "r": 15, "t": 10, "b": 45},
        height=400 + 12 * rows,
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
        xaxis={"title": title_x, **options.pop("x", {})},
        yaxis={"title": title_y, "automargin": True, **options.pop("y", {})},
        font={"family": "system-ui, sans-serif", "size": 13},
        **options,
    )


def _ranking(results: Mapping[str, Any]) -> go.Figure:
    """Interquartile mean of each entrant with its interval."""
    entries = results["ranking"][::-1]  # the best on top
    figure = go.Figure(layout=_layout("score (right is better)", ""))
    for kind, colour in (("policy", POLICY_COLOUR), ("baseline", BASELINE_COLOUR)):
        chosen = [entry for entry in entries if entry["kind"] == kind]
        figure.add_scatter(
            x=[entry["score"]["mean"] for entry in chosen],
            y=[entry["name"] for entry in chosen],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [entry["score"]["high"] - entry["score"]["mean"] for entry in chosen],
                "arrayminus": [entry["score"]["mean"] - entry["score"]["low"] for entry in chosen],
            },
            mode="markers",
            marker={"color": colour, "size": 10},
            name=kind,
        )
    figure.update_layout(
        height=160 + 30 * len(entries),
        yaxis={"categoryorder": "array", "categoryarray": [entry["name"] for entry in entries]},
        legend={"y": -60 / (160 + 30 * len(entries))},
    )
    return figure


def _profiles(results: Mapping[str, Any], styles: Mapping[str, Any]) -> go.Figure:
    """Fraction of trainings at or above each score, where these fractions change."""
    figure = go.Figure(
        layout=_layout("score", "fraction of trainings at least as good", rows=len(styles))
    )
    at = np.array(results["profiles"]["thresholds"])
    fractions = results["profiles"]["fractions"]
    values = np.array([fractions[name] for name in styles])
    moving = np.nonzero(((values > 0.0) & (values < 1.0)).any(0))[0]
    inside = slice(max(0, moving.min() - 2), moving.max() + 3) if len(moving) else slice(None)
    for name, row in zip(styles, values, strict=True):
        figure.add_scatter(
            x=at[inside],
            y=row[inside],
            name=name,
            line={**styles[name], "shape": "hv"},
            mode="lines",
        )
    return figure


def _misset(results: Mapping[str, Any], styles: Mapping[str, Any]) -> go.Figure:
    """Score of each entrant against the factor by which its learning rate is off."""
    options = {"x": {"type": "log", "tickvals": [0.01, 0.1, 1, 10, 100]}}
    figure = go.Figure(
        layout=_layout("learning rate, times its own", "score", rows=len(styles), **options)
    )
    for entry in results["misset"]:
        figure.add_scatter(
            x=[point["factor"] for point in entry["points"]],
            y=[point["score"]["mean"] for point in entry["points"]],
            name=entry["name"],
            line=styles[entry["name"]],
            mode="lines+markers",
        )
    return figure


def _band(rows: Sequence[Mapping[str, Any]], styles: Mapping[str, Any], stream: bool) -> go.Figure:
    """Mean loss of each entrant's seeds, with a band between their quartiles."""
    title = f"{ONLINE} above the floor" if stream else "test loss"
    # above its floor a loss may be below 0, by chance
    y = {"type": "linear" if stream else "log"}
    figure = go.Figure(layout=_layout("updates", title, rows=len(rows), y=y))
    for row in rows:
        curves = np.array(row["curves"], dtype=np.float64)  # null, a loss not finite, becomes nan
        low, high = np.quantile(curves, (0.25, 0.75), axis=0)
        steps = row["steps"]
        figure.add_scatter(
            x=[*steps, *steps[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            opacity=0.15,
            line={"width": 0},
            fillcolor=styles[row["name"]]["color"],
            hoverinfo="skip",
            mode="lines",
            showlegend=False,
            legendgroup=row["name"],
        )
        figure.add_scatter(
            x=steps,
            y=curves.mean(0),
            name=row["name"],
            line=styles[row["name"]],
            mode="lines",
            legendgroup=row["name"],
        )
    return figure


def _rates(row: Mapping[str, Any]) -> go.Figure:
    """Geometric mean over seeds of each layer's learning rate."""
    layers = row["layers"]
    layout = _layout(
        "updates",
        "effective learning rate",
        rows=len(layers),
        y={"type": "log", "exponentformat": "power"},
    )
    figure = go.Figure(layout=layout)
    for i, (layer, style) in enumerate(_styles(layers).items()):
        rates = [point[i] for point in row["lr_over_time"]]
        figure.add_scatter(x=row["steps"], y=rates, name=f"layer {layer}", line=style, mode="lines")
    return figure


def _one_run(
    view: Mapping[str, Any], styles: Mapping[str, Any], title: str, scale: str
) -> go.Figure:
    """One run: losses above, learning rates below, and vertical lines.

    On a stream the lines are its changes; else they are where an entrant ended its training.

    Args:
        view: what `one_run` says of the run.
        styles: how the line of each entrant is drawn.
        title: what the losses are.
        scale: "linear" or "log", of the losses.
    """
    y = {"domain": [0.42, 1.0], "type": scale}
    layout = _layout("updates", title, rows=8, y=y, x={"anchor": "y2"})
    figure = go.Figure(layout=layout)
    figure.update_layout(
        yaxis2={
            "title": "learning rate",
            "type": "log",
            "exponentformat": "power",
            "domain": [0.0, 0.36],
            "automargin": True,
        }
    )
    for row in view["rows"]:
        line = {"name": row["name"], "line": styles[row["name"]], "mode": "lines"}
        group = {"legendgroup": row["name"]}
        figure.add_scatter(x=row["steps"], y=row["loss"], **line, **group)
        figure.add_scatter(
            x=row["steps"], y=row["lr"], yaxis="y2", showlegend=False, **line, **group
        )
    grey = {"color": "#999999", "width": 1}
    lines = [(step, grey) for step in view.get("changes", ())]
    lines += [
        (row["end"], {**styles[row["name"]], "dash": "dot", "width": 1})
        for row in view["rows"]
        if row.get("end") is not None
    ]
    for step, line in lines:
        figure.add_shape(type="line", x0=step, x1=step, y0=0, y1=1, yref="paper", line=line)
    return figure


def plots_of(results: Mapping[str, Any]) -> dict[str, Plot]:
    """Plots over all tasks by name: ranking, profiles, and misset where it was measured.

    Args:
        results: content of results.json.
    """
    styles = entrant_styles(results)
    bars = "Interquartile mean of all tasks and seeds, with its 95 % interval."
    plots = {
        "ranking": Plot("Ranking", bars, _ranking(results)),
        "profiles": Plot(
            "Performance profile",
            "The share of trainings that score at least so much; policies are thick.",
            _profiles(results, styles),
        ),
    }
    if results["misset"]:
        about = "A flat line needs no tuning: the score at 0.01 to 100 times the learning rate."
        plots["misset"] = Plot("Sensitivity to the learning rate", about, _misset(results, styles))
    return plots


def task_plots(results: Mapping[str, Any], task: str) -> list[Plot]:
    """Plots of one task: the losses of all entrants, and the learning rates that each policy set.

    Of a stream there is also one run, with its changes; and one where an entrant ended early.

    Args:
        results: content of results.json.
        task: name of the task.
    """
    styles = entrant_styles(results)
    entry = results["tasks"][task]
    rows = [row for row in entry["rows"] if row["curves"]]
    if not rows:  # every training diverged
        return []
    view = entry.get("stream")
    plots = [
        Plot(
            f"{task_judged_by(entry).capitalize()} while training",
            "Mean over the seeds that did not diverge; the band spans their middle half.",
            _band(rows, styles, stream=bool(view)),
        )
    ]
    if view:
        about = (
            "Losses are means since the point before, and learning rates geometric means over "
            "layers. A vertical line is a change of the data, of which nobody is told."
        )
        figure = _one_run(view, styles, f"{ONLINE} above the floor", "linear")
        plots.append(Plot(f"One stream, seed {view['seed']}", about, figure))
    if ended := entry.get("ended"):
        about = (
            "Learning rates are geometric means over layers. A dotted line stands where an "
            "entrant ended its training, after its learning rate had come down."
        )
        figure = _one_run(ended, styles, "test loss", "log")
        plots.append(Plot(f"A training that ended early, seed {ended['seed']}", about, figure))
    for row in rows:
        if row["kind"] == "policy":
            title = f"Learning rates set by {row['name']} from lr {row['lr']:g}"
            plots.append(Plot(title, "Geometric mean over seeds, per layer.", _rates(row)))
    return plots
