"""Functions of nested tuples of tensors, executed as CUDA graphs.

A CUDA graph is a recording of kernels, a few hundred here, that are launched together. They work on
fixed addresses. So the function takes a state, which keeps its memory from call to call, and
further inputs, which are copied to memory of the graph's own.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch

from lr_gym.training.compiled import LOCK
from lr_gym.tree import leaves_of, with_leaves

__all__ = ["CudaGraphCapture", "CudaGraphFunction", "copy_into"]

# Graphs that are kept at once, of different states. Each holds memory of its own.
KEPT_GRAPHS = 4
# Calls before the capture, in which libraries choose algorithms and allocate workspaces.
WARM_UPS = 2


def copy_into(target: Any, source: Any) -> Any:
    """Copy nested tuples of tensors into the memory of others of the same shapes; return those."""
    for old, new in zip(leaves_of(target), leaves_of(source), strict=True):
        if new is not old:
            old.copy_(new)
    return target


class CudaGraphCapture:
    """Captures functions without arguments on one device.

    All of them share one pool of memory, since they never run at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        """Choose the device that holds every tensor the functions look at."""
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run a function a few times, then capture it.

        Returns:
            A function that replays its kernels on the same memory.

        Raises:
            RuntimeError: for what cannot be captured.
        """
        with LOCK, torch.cuda.device(self._device):  # a process captures one graph at a time
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            current = torch.cuda.current_stream()
            stream.wait_stream(current)
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        run()
            finally:
                current.wait_stream(stream)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            capturing = torch.cuda.graph(
                graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
            )
            # The outer context restores the current stream, which a capture that fails to begin
            # would not.
            with torch.cuda.stream(current), capturing:
                run()
            return graph.replay


def _first_cause(error: BaseException) -> str:
    """What went wrong first, on one line; the last error only says that the capture was broken."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0][:200]


@dataclasses.dataclass
class _Graph:
    """One captured graph.

    Attributes:
        given: the further inputs, in memory of the graph's own.
        result: what the function returned beside the state, overwritten by every replay.
        replay: runs the graph.
    """

    given: Any
    result: Any = None
    replay: Callable[[], None] = lambda: None


class CudaGraphFunction:
    """A function that is captured as a CUDA graph for each state it is called with.

    `function(state, *given)` returns the next state and a result. The next state is written to the
    memory of `state`. The function must read nothing back to the host, and look at no other tensors
    but those that never move. To be captured it is called a few times on the state, which is put
    back afterwards. If that fails there is one warning, and from then on the function is just
    called.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Any, Any]],
        capture: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> None:
        """Wrap a function; it is captured when it is called.

        Args:
            function: takes and returns nested tuples of tensors.
            capture: captures a function without arguments, as `CudaGraphCapture(device)` does.
        """
        self._function = function
        self._capture = capture
        self._graphs: dict[Any, _Graph] = {}  # addresses of a state, and shapes -> graph
        self._failed = False

    def __call__(self, state: Any, *given: Any) -> tuple[Any, Any]:
        """Return the next state, in the memory of `state`, and a copy of the result."""
        graph = None if self._failed else self._graph(state, given)
        if graph is None:
            return self._in_place(state, given)
        copy_into(graph.given, given)
        graph.replay()
        return state, with_leaves(graph.result, [x.clone() for x in leaves_of(graph.result)])

    def _in_place(self, state: Any, given: Any) -> tuple[Any, Any]:
        next_state, result = self._function(state, *given)
        return copy_into(state, next_state), result

    def _graph(self, state: Any, given: Any) -> _Graph | None:
        """The graph for the memory of a state and the shapes of inputs; None if capturing fails."""
        addresses = ((x.data_ptr(), x.shape, x.stride()) for x in leaves_of(state))
        key = (*addresses, *((x.shape, x.dtype) for x in leaves_of(given)))
        if key not in self._graphs:
            if len(self._graphs) == KEPT_GRAPHS:
                oldest = next(iter(self._graphs))  # a dict keeps the order of insertion
                del self._graphs[oldest]
            before = [x.clone() for x in leaves_of(state)]
            try:
                self._graphs[key] = self._captured(state, given)
            except RuntimeError as error:  # whatever went wrong, training can go on without
                self._failed = True
                warnings.warn(
                    f"no CUDA graph is captured: {_first_cause(error)}",
                    RuntimeWarning,
                    stacklevel=4,
                )
            for leaf, value in zip(leaves_of(state), before, strict=True):
                leaf.copy_(value)
        return self._graphs.get(key)

    def _captured(self, state: Any, given: Any) -> _Graph:
        graph = _Graph(with_leaves(given, [x.clone() for x in leaves_of(given)]))

        def run() -> None:
            _, graph.result = self._in_place(state, graph.given)

        graph.replay = self._capture(run)
        return graph
