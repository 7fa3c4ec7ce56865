"""Take and put rows (runs) of nested tuples of tensors, which is what all batched state is made of."""

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
    return type(like)(*children) if hasattr(like, "_fields") else tuple(children)


def take_rows(tree: Tree, rows: Tensor) -> Tree:
    """Copy the given rows (n,) of every tensor (B, ...) in a nested tuple; None stays None."""
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)  # type: ignore[return-value]
    if isinstance(tree, tuple):
        return _rebuild(tree, [take_rows(child, rows) for child in tree])  # type: ignore[no-any-return]
    return tree


def slice_rows(tree: Tree, rows: slice) -> Tree:
    """The given rows of every tensor (B, ...) in a nested tuple, views of them."""
    if isinstance(tree, Tensor):
        return tree[rows]  # type: ignore[return-value]
    if isinstance(tree, tuple):
        return _rebuild(tree, [slice_rows(child, rows) for child in tree])  # type: ignore[no-any-return]
    return tree


def put_rows(tree: Tree, rows: Tensor, values: Tree) -> Tree:
    """Replace the given rows (n,) of every tensor (B, ...) by those of `values` (n, ...), in place."""
    if isinstance(tree, Tensor):
        assert isinstance(values, Tensor)
        return tree.index_copy_(0, rows, values)  # type: ignore[return-value]
    if isinstance(tree, tuple):
        assert isinstance(values, tuple)
        pairs = zip(tree, values, strict=True)
        return _rebuild(tree, [put_rows(child, rows, value) for child, value in pairs])  # type: ignore[no-any-return]
    return tree


def flatten(tree: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested tuple under its path, for saving."""
    if isinstance(tree, Tensor):
        return {name: tree}
    leaves: dict[str, Tensor] = {}
    if isinstance(tree, tuple):
        keys = getattr(tree, "_fields", range(len(tree)))
        for key, child in zip(keys, tree, strict=True):
            leaves.update(flatten(child, f"{name}.{key}" if name else str(key)))
    return leaves


def unflatten(like: Tree, leaves: dict[str, Tensor], name: str = "") -> Tree:
    """Inverse of `flatten`: the tensors of `leaves` in the structure of `like`, on its devices."""
    if isinstance(like, Tensor):
        if name not in leaves:
            raise ValueError(
                f"{name} is not in what was saved, by another version it seems: start anew"
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
    """The tensors of a nested tuple, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for child in tree for leaf in leaves_of(child)] if isinstance(tree, tuple) else []


def with_leaves(like: Tree, leaves: list[Tensor]) -> Tree:
    """Inverse of `leaves_of`.

    The tensors of `leaves`, which is emptied from its front, in the structure of `like`.
    """
    if isinstance(like, Tensor):
        return leaves.pop(0)  # type: ignore[return-value]
    if isinstance(like, tuple):
        return _rebuild(like, [with_leaves(child, leaves) for child in like])  # type: ignore[no-any-return]
    return like
