"""Functions of nested tuples of tensors, compiled by torch's inductor for the shapes of one call.

A function is traced once into a graph of tensor operations, gradients included. The graph becomes
C++, or Triton on a GPU, in which neighbouring operations share one pass over memory. On a CPU a
compiled function holds no interpreter lock while it runs, so threads run side by side. Calls with
other shapes run the Python function itself, and so does everything where no compiler is found.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lr_gym.tree import leaves_of, with_leaves

__all__ = ["LOCK", "CompiledFunction", "Compiler"]

# With cpp_wrapper the whole graph is one C++ call, made without the interpreter lock.
OPTIONS = {"cpu": {"cpp_wrapper": True}}

# Tracing, compiling and capturing change state of the whole process, so one thread at a time does.
LOCK = threading.RLock()


def _copy(x: Tensor) -> Tensor:
    """The same values and strides in memory of its own; a tensor given twice is traced as one."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def _layout(x: Tensor) -> Any:
    """Shape and strides of a tensor, without the strides of dimensions of size 1.

    Those mean nothing, and torch sets them differently from operation to operation.
    """
    return x.shape, [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


class Compiler:
    """Compiles the functions of one executor. After a failure it warns once and gives up.

    Attributes:
        failed: whether a function could not be compiled.
    """

    def __init__(self) -> None:
        """Start without a failure."""
        self.failed = False

    def compile(
        self, function: Callable[..., Any], inputs: Sequence[Tensor]
    ) -> Callable[[list[Tensor]], Sequence[Tensor]] | None:
        """Compile a function of flat tensors for shapes and strides like those of `inputs`.

        Returns:
            The compiled function, or None where that fails.
        """
        if self.failed:
            return None
        try:
            with torch.no_grad():
                graph = make_fx(function, tracing_mode="fake")(*map(_copy, inputs))
                options = OPTIONS.get(inputs[0].device.type, {})
                compiled = torch._inductor.compile(
                    graph, [_copy(x) for x in inputs], options=options
                )
                compiled(*map(_copy, inputs))  # inductor builds some parts at the first call only
        except Exception as error:  # whatever went wrong, training can go on without
            self.failed = True
            cause = str(error).strip().partition("\n")[0][:200]
            warnings.warn(
                f"compiling failed, so training runs eagerly: {type(error).__name__}: {cause} (it "
                "needs a C++ compiler such as g++ and Python's headers, on a GPU Triton; or pass "
                "compile=False)",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return compiled  # type: ignore[no-any-return]


class CompiledFunction:
    """A function of nested tuples of tensors that is compiled for the shapes of its first call.

    It may change its inputs in place. What it returns must be new tensors, and comes out
    contiguous. It must look at no tensors but its arguments, since tracing would freeze them.
    """

    def __init__(self, compiler: Compiler, function: Callable[..., Any]) -> None:
        """Wrap a function; it is compiled at its first call.

        Args:
            compiler: compiles it.
            function: takes and returns nested tuples of tensors.
        """
        self._compiler = compiler
        self._function = function
        self._layout: list[Any] | None = None  # of each input; None before the first call
        self._known: list[list[Any]] = []  # shapes and strides that were found to have this layout
        self._compiled: Callable[..., Sequence[Tensor]] | None = None
        self._like: Any = None  # an example of what the function returns, for its structure

    def __call__(self, *args: Any) -> Any:
        """Call the compiled form if the arguments have the layout of the first call's."""
        inputs = leaves_of(args)
        if self._layout is None:
            self._compile(args, inputs)
        if self._compiled is None or not self._fits(inputs):
            return self._function(*args)
        with torch.no_grad():
            return with_leaves(self._like, list(self._compiled(*inputs)))

    def _fits(self, inputs: list[Tensor]) -> bool:
        # Layouts take time to compare, so shapes and strides that have passed are remembered.
        seen = [(x.shape, x.stride()) for x in inputs]
        if seen in self._known:
            return True
        fits = [_layout(x) for x in inputs] == self._layout
        if fits:
            self._known.append(seen)
        return fits

    def _compile(self, args: Any, inputs: list[Tensor]) -> None:
        def flat(*leaves: Tensor) -> list[Tensor]:
            result = self._function(*with_leaves(args, list(leaves)))
            self._like = result
            return [leaf.contiguous() for leaf in leaves_of(result)]

        with LOCK:
            if self._layout is None:  # another thread may have compiled it meanwhile
                self._compiled = self._compiler.compile(flat, inputs)
                self._layout = [_layout(x) for x in inputs]
