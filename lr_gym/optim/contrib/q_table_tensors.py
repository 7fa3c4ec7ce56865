"""EnhancedSGD's Q-table as tensors with fixed shapes, for checkpoints."""

from __future__ import annotations

from torch import Tensor

from lr_gym.optim.contrib.exact_numbers import exact, numbers_of
from lr_gym.policies.q_table import QLearningController

__all__ = ["load_table", "table_tensors"]

COUNTS = ("epoch", "epoch_count")  # numbers of a table that are integers


def table_tensors(table: QLearningController) -> dict[str, Tensor]:
    """Everything that is known of a table, on the host."""
    state = table.state_dict()
    edges = [number for row in table.edges for number in (len(row), *row)]
    tensors = {f"q_{name}": x for name, x in state.items() if isinstance(x, Tensor)}
    numbers = exact([state[name] for name in _numbers(table)])
    return {**tensors, "q_numbers": numbers, "q_edges": exact(edges)}


def load_table(table: QLearningController, tensors: dict[str, Tensor]) -> None:
    """Restore what `table_tensors` returned, options and bins included."""
    numbers = dict(zip(_numbers(table), numbers_of(tensors["q_numbers"]), strict=True))
    state = {name: int(x) if name in COUNTS else x for name, x in numbers.items()}
    flat = numbers_of(tensors["q_edges"])
    edges = []
    while flat:
        end = 1 + int(flat[0])
        edges.append(flat[1:end])
        flat = flat[end:]
    own = {name.removeprefix("q_"): x for name, x in tensors.items()}
    names = ("q", "visits", "actions", "generator")
    table.load_state_dict({**state, "edges": edges, **{name: own[name] for name in names}})


def _numbers(table: QLearningController) -> list[str]:
    """Names of a table's numbers, in a fixed order."""
    return sorted(name for name, x in table.state_dict().items() if isinstance(x, (int, float)))
