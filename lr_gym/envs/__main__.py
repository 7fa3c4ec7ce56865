"""Write the tables of docs/environment.md anew from FEATURES, ACTIONS and the other tables.

python -m lr_gym.envs docs/environment.md

A table stands between the comments `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from lr_gym.control.action import (
    ACTIONS,
    CONTROLLED,
    FINISH_ABOVE,
    NOISE_PER_OFFSET,
    action_rows,
)
from lr_gym.control.features import FEATURES
from lr_gym.envs.ids import TASK_OF_ENV
from lr_gym.envs.reward import DIVERGED_LOSS, MARGIN, OFFSET
from lr_gym.envs.run_distribution import INITIAL_LR, MONITORED
from lr_gym.tasks import SUITES, TASKS
from lr_gym.updates.rules import RULES
from lr_gym.updates.schedules import SCHEDULES

__all__ = ["TABLES", "with_tables"]

Row = tuple[str, ...]

NEEDS = {
    None: "",
    "loss": "the training loss",
    "progress": "the length of the training",
    "epoch": "the passes over the data",
    "passes": "the length and the passes",
    "monitor": "the held-out loss",
    "gap": "the held-out and the training loss",
}
CONTROLS = {
    "lr": "learning rate = initial rate * base schedule * exp(offset)",
    "momentum": "1 - momentum = (1 - momentum of the base optimizer) * exp(-offset)",
    "noise": f"rms of the gradient noise over that of the gradient = {NOISE_PER_OFFSET:g} * "
    "max(0, offset), at most 1",
    "finish": f"an action above {FINISH_ABOVE:g} ends the training",
}


def _features() -> Iterable[Row]:
    yield "feature", "what", "groups", "needs"
    for name, feature in FEATURES.items():
        about = feature.about.replace("|m|^2", "m^2")  # a bar would end the cell
        groups = ", ".join(sorted(feature.groups)) or "none"
        yield f"`{name}`", about, groups, NEEDS[feature.needs]


def _controls() -> Iterable[Row]:
    yield "control", "what its offset does"
    for name in CONTROLLED:
        yield f"`{name}`", CONTROLS[name]


def _modes() -> Iterable[Row]:
    yield "mode", "an action a", "largest factor on the rate in one decision", "in all"
    for name, mode in ACTIONS.items():
        if mode.discrete:
            factors = (f"{math.exp(level * mode.step):g}" for (level,) in action_rows(("lr",)))
            act = "picks a factor on the learning rate: " + ", ".join(factors)
        else:
            act = "moves the offset by a * step" if mode.recursive else "sets it to a * step"
        yield f"`{name}`", act, f"{math.exp(mode.step):g}", f"{math.exp(mode.bound):g}"


def _rewards() -> Iterable[Row]:
    potential = f"log(loss on the reward split - optimum + {OFFSET:g})"
    yield "data", "reward of a decision", "where a training diverges"
    yield (
        "fixed",
        f"the decrease of {potential}, minus `price` times the share of the steps made",
        f"its return is {MARGIN:g} nat below the lowest that any surviving training can have",
    )
    yield (
        "a stream",
        "minus the mean loss of the minibatches that follow, each before it is learned from, above "
        "its floor",
        f"every decision that is left counts as a loss of {DIVERGED_LOSS:g} times the initial one, "
        f"and of {DIVERGED_LOSS:g} at least",
    )


def _drawn() -> Iterable[Row]:
    yield "option", "values"
    yield "`initial_lr`", "log-uniform, by default from {:g} to {:g}".format(*INITIAL_LR)
    yield "`base`", ", ".join(f"`{name}`" for name in RULES)
    yield "`schedule`", ", ".join(f"`{name}`" for name in SCHEDULES)
    yield "held-out examples", "log-uniform, {:,} to {:,} of the split `monitor`".format(*MONITORED)


def _environments() -> Iterable[Row]:
    id_of = {task: env_id for env_id, task in TASK_OF_ENV.items()}
    yield "suite", "environments"
    for suite, tasks in SUITES.items():
        yield f"`{suite}`", ", ".join(f"`{id_of[task]}`" for task in tasks if task in TASKS)


TABLES: dict[str, Callable[[], Iterable[Row]]] = {
    "features": _features,
    "controls": _controls,
    "modes": _modes,
    "rewards": _rewards,
    "starts": _drawn,
    "environments": _environments,
}


def table(rows: Iterable[Row]) -> str:
    """A table in Markdown, whose first row is its head."""
    lines = ["| " + " | ".join(row) + " |\n" for row in rows]
    return lines[0] + "|---" * (lines[0].count("|") - 1) + "|\n" + "".join(lines[1:])


def with_tables(page: str) -> str:
    """The text of a page whose tables are written anew.

    Raises:
        ValueError: a table of TABLES has no place in the page.
    """
    for name, rows in TABLES.items():
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->\n")
        if not end:
            raise ValueError(f"the page has no place for {name}: write its two comments into it")
        page = before + start + table(rows()) + end + after
    return page


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    file = Path(sys.argv[1])
    file.write_text(with_tables(file.read_text()))
