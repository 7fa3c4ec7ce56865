"""Engines: where cells run. Each takes cells and yields them with their outcomes, in the order in which they finish."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Protocol

import torch

from lr_gym.benchmark.run import Cell, Outcome, attempt

__all__ = ["Engine", "here", "local_engine", "process_pool", "run_cells"]


class Engine(Protocol):
    """Runs cells."""

    def __call__(self, cells: Iterable[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Yield every cell once, as it finishes."""
        ...


def here(cells: Iterable[Cell]) -> Iterator[tuple[Cell, Outcome]]:
    """In this process, on one thread, one after the other."""
    for cell in cells:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            outcome = attempt(cell)
        finally:
            torch.set_num_threads(threads)
        yield cell, outcome


def _prepare(parent: int) -> None:
    """One thread; gone when the parent is, even when that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    torch.set_num_threads(1)
    threading.Thread(target=watch, daemon=True).start()


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes of one thread each, which do not outlive this one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(os.getpid(),))


@contextmanager
def local_engine(workers: int) -> Iterator[Engine]:
    """Processes of one thread each, kept until the end."""
    if workers <= 1:
        yield here
        return
    with process_pool(workers) as pool:

        def engine(cells: Iterable[Cell]) -> Iterator[tuple[Cell, Outcome]]:
            futures = {pool.submit(attempt, cell): cell for cell in cells}
            for future in as_completed(futures):
                yield futures[future], future.result()

        try:
            yield engine
        finally:
            pool.shutdown(cancel_futures=True)


def run_cells(cells: Iterable[Cell], workers: int = 1) -> dict[Cell, Outcome]:
    """Outcomes of cells, run by processes of their own where `workers` is above 1."""
    with local_engine(workers) as engine:
        return dict(engine(list(cells)))
