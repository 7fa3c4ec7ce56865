"""Functions of nested tuples of tensors, compiled by torch's inductor for the shapes of their first call.

The function is traced once into a graph of tensor operations, gradients included, and the graph becomes C++, on a GPU
Triton, in which neighbouring operations share one pass over memory. On a CPU the interpreter lock is free while it
runs, so threads run side by side. Calls of other shapes run the function as it stands; so does everything where no
compiler is found.
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

__all__ = ["LOCK", "Compiler", "Fixed"]

OPTIONS = {
    "cpu": {"cpp_wrapper": True}
}  # the whole graph is one call, made without the interpreter lock

LOCK = threading.RLock()  # tracing and compiling change process-wide state


def _copy(x: Tensor) -> Tensor:
    """The same values and strides in memory of its own.

    A tensor given twice would be traced as one.
    """
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def _layout(x: Tensor) -> Any:
    """Shape, and strides but those of dimensions of size 1, which mean nothing and come out as they like."""
    return x.shape, [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


class Compiler:
    """What compiles the functions of one training loop.

    After a failure it warns once and leaves them as they are.
    """

    def __init__(self) -> None:
        """Nothing has failed yet."""
        self.failed = False

    def fixed(self, function: Callable[..., Any]) -> Fixed:
        """`function`, to be compiled at its first call."""
        return Fixed(self, function)

    def compile(
        self, function: Callable[..., Any], inputs: Sequence[Tensor]
    ) -> Callable[[list[Tensor]], Sequence[Tensor]] | None:
        """Compile a function of flat tensors for shapes and strides like those of `inputs`.

        None where that fails.
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
                compiled(*map(_copy, inputs))  # what is still to be built is built now
        except Exception as error:  # whatever it is, training can go on without
            self.failed = True
            cause = str(error).strip().partition("\n")[0][:200]
            warnings.warn(
                f"nothing is compiled, training runs as it stands: {type(error).__name__}: {cause} "
                "(a C++ compiler such as g++ and Python's headers, on a GPU Triton, are needed; or "
                "compile=False)",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return compiled  # type: ignore[no-any-return]


class Fixed:
    """A function of nested tuples of tensors that is compiled for the shapes of its first call.

    It may change its inputs in place; what it returns must be new, and is contiguous. It sees no
    other tensors.
    """

    def __init__(self, compiler: Compiler, function: Callable[..., Any]) -> None:
        """`function`: to be compiled; `compiler`: by this."""
        self._compiler, self._function = compiler, function
        self._layout: list[Any] | None = None
        self._known: list[list[Any]] = []  # shapes and strides that are of this layout
        self._compiled: Callable[..., Sequence[Tensor]] | None = None
        self._like: Any = None  # structure of what is returned

    def __call__(self, *args: Any) -> Any:
        """Call the compiled form where shapes and strides are those of the first call, else the function itself."""
        inputs = leaves_of(args)
        if self._layout is None:
            self._compile(args, inputs)
        if self._compiled is None or not self._fits(inputs):
            return self._function(*args)
        with torch.no_grad():
            return with_leaves(self._like, list(self._compiled(*inputs)))

    def _fits(self, inputs: list[Tensor]) -> bool:
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
            if self._layout is None:
                self._compiled = self._compiler.compile(flat, inputs)
                self._layout = [_layout(x) for x in inputs]
