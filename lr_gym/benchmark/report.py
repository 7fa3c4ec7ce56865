"""results.json -> one self-contained report.html: tables that need no script, and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from lr_gym.analysis.certificate import TESTED
from lr_gym.benchmark.judged import judged_by, task_judged_by
from lr_gym.benchmark.plots import Plot, plots_of, task_plots
from lr_gym.benchmark.scores import SCORE_SCALE
from lr_gym.benchmark.steps_used import shown_share, some_ended_early
from lr_gym.files import write_atomically

__all__ = ["write_report"]

PLOT_OPTIONS = {"responsive": True, "displaylogo": False}


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write the report, which needs no network; its tables need no JavaScript.

    Args:
        results: content of results.json.
        path: the HTML file.
    """
    plots = {name: _html(plot, name) for name, plot in plots_of(results).items()}
    per_task = {
        task: [_html(plot, f"{task}-{i}") for i, plot in enumerate(task_plots(results, task))]
        for task in results["tasks"]
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "interval": _interval}
    html = environment.get_template("report.html.jinja2").render(
        results=results,
        plots=plots,
        task_plots=per_task,
        plotlyjs=get_plotlyjs(),
        score_scale=SCORE_SCALE,
        judged=judged_by(results["tasks"].values()),
        task_judged_by=task_judged_by,
        some_ended_early=some_ended_early,
        shown_share=shown_share,
        tested=TESTED,
    )
    write_atomically(path, html.encode())


def _number(value: float | None, pattern: str = ".4f", missing: str = "diverged") -> str:
    """A figure of results.json, in which null stands for a value that is not finite."""
    return missing if value is None else format(value, pattern)


def _interval(interval: dict[str, float | None], pattern: str = ".4f") -> str:
    """The two ends of an interval, "-" where it has no width."""
    if interval["low"] is None or interval["low"] == interval["high"]:
        return "-"
    return f"{_number(interval['low'], pattern)} to {_number(interval['high'], pattern)}"


def _html(plot: Plot, name: str) -> dict[str, str]:
    figure = plot.figure.to_html(
        full_html=False, include_plotlyjs=False, config=PLOT_OPTIONS, div_id=f"plot-{name}"
    )
    return {"title": plot.title, "about": plot.about, "html": figure}
