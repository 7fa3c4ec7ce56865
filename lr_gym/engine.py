"""Engines run many independent jobs: in this process, in processes of this machine, or on Ray.

An engine takes a function and its jobs, and yields each job with its result as soon as the job has
finished. The function and the jobs must be picklable, and each job runs on one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch

from lr_gym.optional import require

__all__ = ["Engine", "local_engine", "open_engine", "process_pool", "ray_engine", "run_here"]

Job = TypeVar("Job")
Result = TypeVar("Result")


class Engine(Protocol):
    """What all engines are: a callable that runs a function on each of many jobs."""

    def __call__(
        self, function: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Iterator[tuple[Job, Result]]:
        """Yield every job once, with its result, in the order in which they finish."""
        ...


def _on_one_thread(function: Callable[[Job], Result], job: Job) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(job)
    finally:
        torch.set_num_threads(threads)


def run_here(
    function: Callable[[Job], Result], jobs: Iterable[Job]
) -> Iterator[tuple[Job, Result]]:
    """Run one job after the other in this process; this function is an engine itself."""
    for job in jobs:
        yield job, _on_one_thread(function, job)


def _prepare_worker(parent: int) -> None:
    """Let a worker compute on one thread, and end when its parent ends, even if that is killed."""

    def watch() -> None:
        # A process whose parent has ended is given another parent.
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    torch.set_num_threads(1)
    threading.Thread(target=watch, daemon=True).start()


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Start processes of one thread each, which end when this one ends."""
    return ProcessPoolExecutor(
        workers,
        # A forked process would inherit torch's threads in an unknown state.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare_worker,
        initargs=(os.getpid(),),
    )


@contextmanager
def local_engine(workers: int) -> Iterator[Engine]:
    """Give an engine of processes of this machine, which are kept until the context ends.

    Args:
        workers: The number of processes; with 1 the jobs run in this process.
    """
    if workers <= 1:
        yield run_here
        return
    with process_pool(workers) as pool:

        def engine(
            function: Callable[[Job], Result], jobs: Iterable[Job]
        ) -> Iterator[tuple[Job, Result]]:
            futures = {pool.submit(function, job): job for job in jobs}
            for future in as_completed(futures):
                yield futures[future], future.result()

        try:
            yield engine
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def ray_engine(workers: int, address: str | None = None) -> Iterator[Engine]:
    """Give an engine of Ray tasks that use one core each.

    Args:
        workers: The number of cores of a cluster that is started here.
        address: The address of a running cluster, whose machines have lr_gym and the data of the
            tasks. Without it a cluster is started here.

    Raises:
        ImportError: Ray is missing. The message names the extra.
    """
    ray = require("ray", "ray")
    cluster: dict[str, Any] = (
        {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
    )
    ray.init(log_to_driver=False, **cluster)
    run = ray.remote(num_cpus=1)(_on_one_thread)

    def engine(
        function: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Iterator[tuple[Job, Result]]:
        pending = {run.remote(function, job): job for job in jobs}
        while pending:
            for done in ray.wait(list(pending))[0]:
                yield pending.pop(done), ray.get(done)

    try:
        yield engine
    finally:
        ray.shutdown()


def open_engine(
    name: str, workers: int, address: str | None = None
) -> AbstractContextManager[Engine]:
    """The engine that a command line names.

    Args:
        name: Either "local" or "ray".
        workers: See `local_engine` and `ray_engine`.
        address: See `ray_engine`.

    Raises:
        ValueError: There is no engine of this name.
    """
    if name == "ray":
        return ray_engine(workers, address)
    if name == "local":
        return local_engine(workers)
    raise ValueError(f"unknown engine {name!r}; choose local or ray")
