"""Pictures of a controlled training: its loss so far and each layer's learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_gym.optional import check_installed

__all__ = ["History", "Recording", "render_ansi", "render_rgb"]

# (inner step, training loss, (L,) effective learning rates) of each decision
History = Sequence[tuple[int, float, NDArray[np.float64]]]

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 40


def _spark(values: Sequence[float]) -> str:
    """A sparkline of the last numbers, logarithmic: the lowest has the lowest bar."""
    finite = np.log10(np.clip(np.nan_to_num(values, nan=1e-12, posinf=1e12), 1e-12, 1e12))[-_WIDTH:]
    low, high = finite.min(), finite.max()
    levels = (
        np.full(len(finite), 4) if high == low else np.round((finite - low) / (high - low) * 7) + 1
    )
    return "".join(_BARS[int(level)] for level in levels)


def render_ansi(history: History, layers: Sequence[str], horizon: int) -> str:
    """A few lines of text; sparklines are logarithmic and show the last 40 decisions."""
    step, loss, _ = history[-1]
    lines = [
        f"step {step}/{horizon}",
        f"{'loss':<12} {loss:9.3g} {_spark([row[1] for row in history])}",
    ]
    for i, name in enumerate(layers):
        lines.append(
            f"lr {name:<9.9} {history[-1][2][i]:9.3g} {_spark([row[2][i] for row in history])}"
        )
    return "\n".join(lines) + "\n"


def render_rgb(history: History, layers: Sequence[str], horizon: int) -> NDArray[np.uint8]:
    """A picture (320, 640, 3) of uint8."""
    check_installed("benchmark", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), dpi=100)
    # Laid out by hand, since matplotlib's solver takes ten times as long as all the rest.
    figure.subplots_adjust(left=0.12, right=0.98, top=0.97, bottom=0.14, hspace=0.12)
    canvas = FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, sharex=True)
    steps = [row[0] for row in history]
    top.plot(steps, [row[1] for row in history], color="black")
    top.set(ylabel="loss", xlim=(0, horizon))
    for i, name in enumerate(layers):
        bottom.plot(steps, [row[2][i] for row in history], label=name)
    bottom.set(ylabel="lr", xlabel="inner step", yscale="log")
    if len(layers) <= 8:
        bottom.legend(fontsize=7, loc="lower left", ncols=4)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Recording:
    """The histories of all runs of an environment; nothing is kept where nothing is drawn."""

    def __init__(self, render_mode: str | None, runs: int) -> None:
        """Start with empty histories.

        Args:
            render_mode: "rgb_array", "ansi", or None to record nothing.
            runs: number of runs.
        """
        self._draw = {"rgb_array": render_rgb, "ansi": render_ansi}.get(render_mode or "")
        self._histories: list[list[tuple[int, float, NDArray[np.float64]]]]
        self._histories = [[] for _ in range(runs)]

    def append(self, infos: Mapping[str, NDArray[Any]]) -> None:
        """Add the figures of a decision, as infos of the environment, to every run."""
        if self._draw is not None:
            for row in range(len(self._histories)):
                self._add(infos, row)

    def restart(
        self, infos: Callable[[], Mapping[str, NDArray[Any]]], rows: NDArray[np.intp]
    ) -> None:
        """Begin new histories of some rows with the figures of their first decision.

        Args:
            infos: makes infos of the environment; called only where anything is drawn.
            rows: (n,) indices of the rows.
        """
        if self._draw is None:
            return
        first = infos()
        for row in rows:
            self._histories[row] = []
            self._add(first, row)

    def draw(self, layers: Sequence[str], horizon: int) -> tuple[Any, ...]:
        """One frame per run.

        Args:
            layers: names of the layers.
            horizon: inner steps of a training.

        Raises:
            ValueError: where the environment was made without a render mode.
        """
        if self._draw is None:
            raise ValueError(
                "render() needs render_mode='rgb_array' or 'ansi' when the environment is made"
            )
        return tuple(self._draw(history, layers, horizon) for history in self._histories)

    def _add(self, infos: Mapping[str, NDArray[Any]], row: int | np.intp) -> None:
        step, loss = int(infos["step"][row]), float(infos["train_loss"][row])
        self._histories[row].append((step, loss, infos["lr"][row]))
