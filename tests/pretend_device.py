"""A pretended device, for tests on machines without a GPU.

Its tensors lie in the host's memory and are computed there, but behave like a GPU's: they refuse to
be mixed with tensors of the host or to become arrays. Whatever would make the host wait for a GPU
is noted. So tests can show that a training stays on its device and does not wait.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_any, tree_leaves, tree_map_only

aten = torch.ops.aten
NAME = "meta"  # a device that torch knows and that autograd treats like the host


class Remote(torch.Tensor):
    """A tensor of the pretended device; `inner` is the tensor of the host that holds its values."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Remote:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=NAME,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"Remote({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a pretended device, outside of it")


class _Python(TorchFunctionMode):
    """Handles what does not reach the dispatcher: `torch.tensor(numbers)` and `tolist`."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        if func is torch.Tensor.tolist and isinstance(args[0], Remote):
            self.waits.append("tolist")
            return args[0].inner.tolist()
        return func(*args, **kwargs)


class PretendDevice(TorchDispatchMode):
    """While this mode is active, tensors can be made on NAME and moved there and back.

    `waits` lists what the host waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._python = _Python(self.waits)

    def __enter__(self) -> PretendDevice:
        self._python.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._python.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        remote = any(isinstance(x, Remote) for x in tensors)
        goes = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if packet is aten._to_copy and goes not in (None, tensors[0].device.type):
            self._moved(func, kwargs.get("non_blocking", False), back=goes == "cpu")
        elif packet is aten.copy_ and args[0].device != args[1].device:
            self._moved(
                func,
                bool(kwargs.get("non_blocking") or True in args[2:]),
                back=args[0].device.type == "cpu",
            )
        elif remote and any(x.ndim for x in tensors if not isinstance(x, Remote)):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        if remote and packet in (aten._local_scalar_dense, aten.nonzero, aten.equal):
            self.waits.append(str(func))
        if goes is not None:
            kwargs["device"] = torch.device("cpu")
        wrap = goes == NAME or (remote and goes is None)
        if packet is aten.copy_:
            wrap = isinstance(args[0], Remote)
        host = tree_map_only(Remote, lambda x: x.inner, (args, kwargs))
        out = func(*host[0], **host[1])
        if not wrap:
            return out
        out = tree_map_only(torch.Tensor, Remote, out)
        return (
            return_and_correct_aliasing(func, args, kwargs, out)
            if tree_any(torch.is_tensor, args)
            else out
        )

    def _moved(self, func, later: bool, *, back: bool) -> None:
        if back or not later:
            self.waits.append(f"{func} {'to' if back else 'from'} the host")
