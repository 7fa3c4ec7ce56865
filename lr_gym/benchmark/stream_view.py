"""One run of a stream to look at: its hidden changes, and what contestants did about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lr_gym.benchmark.loop import Outcome, evaluation_seed
from lr_gym.benchmark.online import change_steps
from lr_gym.tasks import find_task
from lr_gym.tasks.stream import DataStream

__all__ = ["run_view", "stream_view"]


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
    rows = [
        {"name": name, "steps": run.steps, "loss": run.curve, "lr": _geometric_means(run.lr)}
        for name, run in outcomes.items()
    ]
    changes = change_steps(stream, evaluation_seed(seed), horizon)
    return {"seed": seed, "changes": changes, "rows": rows}


def _geometric_means(rates: Sequence[Sequence[float]]) -> list[float]:
    """The mean of each point's rates; the bound keeps a rate of 0 drawable."""
    return [float(np.exp(np.log(np.maximum(layers, 1e-30)).mean())) for layers in rates]
