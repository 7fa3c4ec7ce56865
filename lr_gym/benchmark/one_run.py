"""One run to look at: a stream with its hidden changes, or a training that ended early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lr_gym.benchmark.loop import Outcome, evaluation_seed
from lr_gym.benchmark.online import change_steps
from lr_gym.tasks import find_task
from lr_gym.tasks.stream import DataStream

__all__ = ["ended_view", "run_view", "stream_view"]


def stream_view(task: str, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any] | None:
    """The first of the reported seeds in which the stream changes, else the first one.

    Args:
        task: name of a task.
        outcomes: name of an entrant that is shown -> its outcome of each seed.

    Returns:
        `seed`, `changes`, which are the steps at which the stream changes, and for each entrant in
        `rows` its `name`, and by `steps` its `loss` above the floor and its `lr`, the geometric
        mean over layers. None for fixed data.
    """
    stream = find_task(task).data()
    if not isinstance(stream, DataStream):
        return None
    groups = list(outcomes.values())
    horizon = max(outcome.updates for group in groups for outcome in group)
    changes = [
        change_steps(stream, evaluation_seed(seed), horizon) for seed in range(len(groups[0]))
    ]
    seed = next((seed for seed, steps in enumerate(changes) if steps), 0)
    return run_view(stream, seed, {name: group[seed] for name, group in outcomes.items()})


def run_view(stream: DataStream, seed: int, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """What `stream_view` returns, of the run of one seed.

    Args:
        stream: the data.
        seed: number of the evaluation seed.
        outcomes: name of an entrant that is shown -> its outcome.
    """
    horizon = max(outcome.updates for outcome in outcomes.values())
    return {
        "seed": seed,
        "changes": change_steps(stream, evaluation_seed(seed), horizon),
        "rows": [_row(name, run) for name, run in outcomes.items()],
    }


def ended_view(task: str, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any] | None:
    """The first of the reported seeds in which an entrant ended its training early.

    Args:
        task: name of a task.
        outcomes: name of an entrant that is shown -> its outcome of each seed.

    Returns:
        `seed`, and for each entrant in `rows` its `name`, `end`, which is the number of updates
        where it ended early, else None, and by `steps` up to there its `loss` and its `lr`. None
        where nobody ended early, and for a stream.
    """
    if isinstance(find_task(task).data(), DataStream):
        return None
    groups = list(outcomes.values())
    ended = [any(_ended_early(group[seed]) for group in groups) for seed in range(len(groups[0]))]
    if not any(ended):
        return None
    seed = ended.index(True)
    rows = []
    for name, group in outcomes.items():
        run = group[seed]
        end = run.updates if _ended_early(run) else None
        row = _row(name, run)
        if end is not None:
            # later points repeat the last ones
            kept = sum(step <= end for step in run.steps)
            row |= {key: row[key][:kept] for key in ("steps", "loss", "lr")}
        rows.append({**row, "end": end})
    return {"seed": seed, "rows": rows}


def _ended_early(run: Outcome) -> bool:
    """Whether a training ended before its horizon; one that diverged or raised was ended."""
    return math.isfinite(run.test_loss) and bool(run.steps) and run.updates < run.steps[-1]


def _row(name: str, run: Outcome) -> dict[str, Any]:
    return {"name": name, "steps": run.steps, "loss": run.curve, "lr": _geometric_means(run.lr)}


def _geometric_means(rates: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each point's rates; the bound keeps a rate of 0 drawable."""
    return [float(np.exp(np.log(np.maximum(layers, 1e-30)).mean())) for layers in rates]
