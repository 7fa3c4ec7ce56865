"""Functions of nested tuples of tensors, captured as CUDA graphs.

A few hundred kernels that are launched as one.

A graph works on fixed addresses. So the function takes a state, which it changes in place and which
keeps its memory from call to call, and further inputs, which are copied to memory of the graph's
own.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch

from lr_gym.training.compiled import LOCK
from lr_gym.tree import leaves_of, with_leaves

__all__ = ["Captured", "CudaCapture"]

MOST = 4  # graphs that are kept at once, of different states
WARM_UPS = (
    2  # calls before the capture, in which libraries choose algorithms and allocate workspaces
)


class CudaCapture:
    """Captures functions of no arguments on one device, all in one pool of memory, since they never run together."""

    def __init__(self, device: torch.device) -> None:
        """`device`: of every tensor that the functions look at."""
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run a function a few times, and capture it: what replays its kernels on the same memory.

        Raises:
            RuntimeError: for what cannot be captured.
        """
        with LOCK, torch.cuda.device(self._device):  # a process captures one graph at a time
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(current)
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        run()
            finally:
                current.wait_stream(stream)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with (
                torch.cuda.stream(
                    current
                ),  # to which a capture that fails to begin would not come back
                torch.cuda.graph(
                    graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
                ),
            ):
                run()
            return graph.replay


def _cause(error: BaseException) -> str:
    """What went wrong first, on one line.

    What ends a broken capture says only that it was broken.
    """
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0][:200]


@dataclasses.dataclass
class _Graph:
    """One capture.

    Attributes:
        given: the further inputs, in memory of the graph's own.
        result: what the function returned, likewise: of the last replay.
        replay: runs the graph.
    """

    given: Any
    result: Any = None
    replay: Callable[[], None] = lambda: None


class Captured:
    """A function of a state and further inputs that is captured for the memory of each state it is called with.

    It must change the state in place, return new tensors, read nothing back to the host, and look at no other tensors
    but such as stay where they are. To be captured it is called a few times on a state that is then put back. Where
    that fails there is one warning, and the function runs as it stands.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        capture: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> None:
        """`function(state, *given)`.

        What is captured, by `capture`, such as `CudaCapture(device)`.
        """
        self._function, self._capture = function, capture
        self._graphs: dict[Any, _Graph] = {}  # by addresses of a state and shapes, oldest first
        self._failed = False

    def __call__(self, state: Any, *given: Any) -> Any:
        """`function(state, *given)`."""
        graph = None if self._failed else self._graph(state, given)
        if graph is None:
            return self._function(state, *given)
        for own, value in zip(leaves_of(graph.given), leaves_of(given), strict=True):
            own.copy_(value)
        graph.replay()
        return with_leaves(graph.result, [x.clone() for x in leaves_of(graph.result)])

    def _graph(self, state: Any, given: Any) -> _Graph | None:
        """The graph for the memory of a state and inputs of such shapes, captured if there is none.

        None on failure.
        """
        here = ((x.data_ptr(), x.shape, x.stride()) for x in leaves_of(state))
        key = (*here, *((x.shape, x.dtype) for x in leaves_of(given)))
        if key not in self._graphs:
            if len(self._graphs) == MOST:
                del self._graphs[next(iter(self._graphs))]
            before = [x.clone() for x in leaves_of(state)]
            try:
                self._graphs[key] = self._captured(state, given)
            except RuntimeError as error:  # whatever cannot be captured, training can go on without
                self._failed = True
                warnings.warn(
                    f"no CUDA graph is captured: {_cause(error)}", RuntimeWarning, stacklevel=4
                )
            for leaf, value in zip(leaves_of(state), before, strict=True):
                leaf.copy_(value)
        return self._graphs.get(key)

    def _captured(self, state: Any, given: Any) -> _Graph:
        graph = _Graph(with_leaves(given, [x.clone() for x in leaves_of(given)]))

        def run() -> None:
            graph.result = self._function(state, *graph.given)

        graph.replay = self._capture(run)
        return graph
