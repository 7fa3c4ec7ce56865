"""Functions of nested tuples of tensors, captured as CUDA graphs: a few hundred kernels that are launched as one.

A graph works on fixed addresses. So the function takes a state, which it changes in place and which keeps its memory
from call to call, and further inputs, which are copied to memory of the graph's own.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch

from lr_gym.rows import leaves_of, with_leaves

__all__ = ["Captured", "cuda_graph"]

MOST = 4  # graphs that are kept at once: when all runs of an environment start anew, they lie in other memory
WARM_UPS = 2  # calls before the capture, in which libraries choose algorithms and allocate workspaces


def cuda_graph(run: Callable[[], None]) -> Callable[[], None]:
    """Run a function of no arguments a few times, and capture it: what replays its kernels on the same memory."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may step other loops
        run()
    return graph.replay


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
        self, function: Callable[..., Any], capture: Callable[[Callable[[], None]], Callable[[], None]] = cuda_graph
    ) -> None:
        """`function(state, *given)`: what is captured, by `capture`."""
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
        """The graph for the memory of a state and inputs of such shapes, captured if there is none; None on failure."""
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
                cause = str(error).strip().partition("\n")[0][:200]
                warnings.warn(f"no CUDA graph is captured: {cause}", RuntimeWarning, stacklevel=4)
            for leaf, value in zip(leaves_of(state), before, strict=True):
                leaf.copy_(value)
        return self._graphs.get(key)

    def _captured(self, state: Any, given: Any) -> _Graph:
        graph = _Graph(with_leaves(given, [x.clone() for x in leaves_of(given)]))

        def run() -> None:
            graph.result = self._function(state, *graph.given)

        graph.replay = self._capture(run)
        return graph
