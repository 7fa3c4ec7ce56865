"""Cells on a Ray cluster, where one machine is not enough. The extra `ray` brings it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from lr_gym.benchmark.engine import Engine
from lr_gym.benchmark.run import Cell, Outcome, attempt
from lr_gym.tasks.cache import require

__all__ = ["ray_engine"]


def _alone(cell: Cell) -> Outcome:
    torch.set_num_threads(1)
    return attempt(cell)


@contextmanager
def ray_engine(workers: int, address: str = "") -> Iterator[Engine]:
    """Ray tasks of one core each.

    Args:
        workers: cores of a cluster that is started here.
        address: of a running cluster, whose machines have lr_gym and the tasks' data; "" starts one here.

    Raises:
        ImportError: where Ray is missing, naming the extra.
    """
    ray = require("ray", "ray")
    where = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
    ray.init(log_to_driver=False, **where)
    remote = ray.remote(num_cpus=1)(_alone)

    def engine(cells: Iterable[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        pending = {remote.remote(cell): cell for cell in cells}
        while pending:
            for done in ray.wait(list(pending))[0]:
                yield pending.pop(done), ray.get(done)

    try:
        yield engine
    finally:
        ray.shutdown()
