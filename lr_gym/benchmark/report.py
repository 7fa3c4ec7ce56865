"""results.json -> one self-contained report.html: tables that need no script, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from lr_gym.files import write_atomically

__all__ = ["write_report"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999", "#8c510a")


def _layout(title_x: str, title_y: str, **options: Any) -> go.Layout:
    return go.Layout(
        template="plotly_white",
        margin={"l": 60, "r": 15, "t": 15, "b": 45},
        height=380,
        legend={"orientation": "h", "y": -0.22},
        xaxis={"title": title_x},
        yaxis={"title": title_y, **options},
        font={"family": "system-ui, sans-serif", "size": 13},
    )


def _curves(rows: Sequence[dict[str, Any]]) -> go.Figure:
    """Mean selection loss of each row's seeds, with the range of their quartiles."""
    figure = go.Figure(layout=_layout("inner step", "selection loss (nats)", type="log"))
    for row, colour in zip(rows, _COLOURS * len(rows), strict=False):
        full = max(len(curve) for curve in row["curves"])
        curves = np.array([curve for curve in row["curves"] if len(curve) == full])
        low, high = np.quantile(curves, (0.25, 0.75), axis=0)
        steps = row["steps"]
        figure.add_scatter(
            x=[*steps, *steps[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            opacity=0.15,
            line={"width": 0},
            fillcolor=colour,
            hoverinfo="skip",
            showlegend=False,
            legendgroup=row["name"],
        )
        figure.add_scatter(
            x=steps,
            y=curves.mean(0),
            name=row["name"],
            line={"color": colour, "dash": "solid" if row["kind"] == "policy" else "dot"},
            legendgroup=row["name"],
        )
    return figure


def _rates(row: dict[str, Any]) -> go.Figure:
    """Geometric mean over seeds of each layer's learning rate."""
    figure = go.Figure(layout=_layout("inner step", "effective learning rate", type="log"))
    for layer, colour in zip(row["layers"], _COLOURS * len(row["layers"]), strict=False):
        i = row["layers"].index(layer)
        figure.add_scatter(
            x=row["steps"],
            y=[rates[i] for rates in row["lr_over_time"]],
            name=f"layer {layer}",
            line={"color": colour},
        )
    return figure


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write the report, readable without a network and, as tables, without JavaScript.

    Args:
        results: as in results.json.
        path: of the HTML file.
    """
    rows = [row for row in results["rows"] if any(row["curves"])]
    figures = [
        ("Loss while training", "Mean over seeds; the band spans the middle half.", _curves(rows)),
        *(
            (f"Learning rates set by {row['name']}", "Geometric mean over seeds, per layer.", _rates(row))
            for row in rows
            if row["kind"] == "policy"
        ),
    ]
    plots = [
        {
            "title": title,
            "about": about,
            "html": figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True}),
        }
        for title, about, figure in figures
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("report.html.jinja2").render(
        results=results, plots=plots, plotlyjs=get_plotlyjs() if plots else ""
    )
    write_atomically(path, html.encode())
