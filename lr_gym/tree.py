"""Functions on trees: nested tuples of tensors, of which all batched state consists.

A row of a tree is one run: the part with the same index along the first dimension of every tensor.
A tree may also hold None and other values, which all functions leave as they are.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

__all__ = [
    "flatten",
    "leaves_of",
    "put_rows",
    "slice_rows",
    "take_rows",
    "unflatten",
    "with_leaves",
]

Tree = TypeVar("Tree")


def _rebuild(like: Any, children: list[Any]) -> Any:
    """Return a tuple of the same type as `like`, which may be a NamedTuple."""
    return type(like)(*children) if hasattr(like, "_fields") else tuple(children)


def take_rows(tree: Tree, rows: Tensor) -> Tree:
    """Copy the given rows (n,) of every tensor (B, ...)."""
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)  # type: ignore[return-value]
    if isinstance(tree, tuple):
        return _rebuild(tree, [take_rows(child, rows) for child in tree])  # type: ignore[no-any-return]
    return tree


def slice_rows(tree: Tree, rows: slice) -> Tree:
    """Return the given rows of every tensor (B, ...) as views."""
    if isinstance(tree, Tensor):
        return tree[rows]  # type: ignore[return-value]
    if isinstance(tree, tuple):
        return _rebuild(tree, [slice_rows(child, rows) for child in tree])  # type: ignore[no-any-return]
    return tree


def put_rows(tree: Tree, rows: Tensor, values: Tree) -> Tree:
    """Replace, in place, the given rows (n,) of every tensor (B, ...) by `values` (n, ...)."""
    if isinstance(tree, Tensor):
        assert isinstance(values, Tensor)
        return tree.index_copy_(0, rows, values)  # type: ignore[return-value]
    if isinstance(tree, tuple):
        assert isinstance(values, tuple)
        pairs = zip(tree, values, strict=True)
        return _rebuild(tree, [put_rows(child, rows, value) for child, value in pairs])  # type: ignore[no-any-return]
    return tree


def flatten(tree: Any, name: str = "") -> dict[str, Tensor]:
    """Return every tensor under its path, such as "state.params.0", for saving.

    Args:
        tree: The tree.
        name: The path of the tree itself, which begins the path of each tensor.
    """
    if isinstance(tree, Tensor):
        return {name: tree}
    leaves: dict[str, Tensor] = {}
    if isinstance(tree, tuple):
        keys = getattr(tree, "_fields", range(len(tree)))
        for key, child in zip(keys, tree, strict=True):
            leaves.update(flatten(child, f"{name}.{key}" if name else str(key)))
    return leaves


def unflatten(like: Tree, leaves: dict[str, Tensor], name: str = "") -> Tree:
    """Invert `flatten`.

    Args:
        like: A tree of the wanted structure, on the wanted devices.
        leaves: Tensors by path, as `flatten` returned them.
        name: The path of the tree itself.

    Raises:
        ValueError: A tensor is missing.
    """
    if isinstance(like, Tensor):
        if name not in leaves:
            raise ValueError(
                f"the saved state lacks {name}; another version seems to have saved it: start anew"
            )
        return leaves[name].to(like.device)  # type: ignore[return-value]
    if isinstance(like, tuple):
        keys = getattr(like, "_fields", range(len(like)))
        children = [
            unflatten(child, leaves, f"{name}.{key}" if name else str(key))
            for key, child in zip(keys, like, strict=True)
        ]
        return _rebuild(like, children)  # type: ignore[no-any-return]
    return like


def leaves_of(tree: Any) -> list[Tensor]:
    """Return the tensors of a tree in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for child in tree for leaf in leaves_of(child)] if isinstance(tree, tuple) else []


def with_leaves(like: Tree, leaves: list[Tensor]) -> Tree:
    """Invert `leaves_of`.

    Args:
        like: A tree of the wanted structure.
        leaves: Its tensors in order. They are removed from this list.
    """
    if isinstance(like, Tensor):
        return leaves.pop(0)  # type: ignore[return-value]
    if isinstance(like, tuple):
        return _rebuild(like, [with_leaves(child, leaves) for child in like])  # type: ignore[no-any-return]
    return like
