"""Which parameter tensor belongs to which layer.

A layer is what one row of control acts on. By default it is one module that owns parameters
directly, so a weight and its bias share a row; with granularity="global" the whole model is one
layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "GRANULARITIES",
    "Layout",
    "check_granularity",
    "hidden_matrices",
    "layout_of_named",
    "layout_of_tensors",
    "muon_groups",
    "muon_matrices",
]

GRANULARITIES = ("per_layer", "global")


class Layout(NamedTuple):
    """The layers of a model, in the order of its parameters.

    Attributes:
        names: L layer names.
        layer_of: for each parameter tensor the index of its layer.
        sizes: for each parameter tensor its number of elements.
    """

    names: tuple[str, ...]
    layer_of: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.names)

    def layer_sizes(self) -> list[int]:
        """Number of elements of each layer, at least 1 so that it can divide."""
        totals = [0] * self.num_layers
        for layer, size in zip(self.layer_of, self.sizes, strict=True):
            totals[layer] += size
        return [max(1, total) for total in totals]

    def pool(self, per_tensor: Tensor) -> Tensor:
        """Sum (..., n) values of n tensors over the tensors of each layer: (..., L)."""
        sums: list[Tensor | None] = [None] * self.num_layers
        for layer, value in zip(self.layer_of, per_tensor.unbind(-1), strict=True):
            so_far = sums[layer]
            sums[layer] = value if so_far is None else so_far + value
        return torch.stack([value for value in sums if value is not None], dim=-1)


def check_granularity(granularity: str) -> str:
    """Return `granularity` or raise a ValueError that lists the valid ones."""
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"granularity must be one of {', '.join(GRANULARITIES)}; got {granularity!r}"
        )
    return granularity


def _layout(keys: Sequence[str], sizes: Sequence[int], granularity: str) -> Layout:
    if not keys:
        raise ValueError("there is no parameter to control: the list of parameters is empty")
    if check_granularity(granularity) == "global":
        return Layout(("model",), (0,) * len(keys), tuple(sizes))
    names = tuple(dict.fromkeys(keys))
    index = {name: i for i, name in enumerate(names)}
    return Layout(names, tuple(index[key] for key in keys), tuple(sizes))


def layout_of_named(named: Iterable[tuple[str, Tensor]], granularity: str = "per_layer") -> Layout:
    """Group named parameters by the module that owns them.

    Everything before the last dot of the name.

    Those that the model itself owns, without a dot, are one layer, `root`, if they are more than
    one.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> layout_of_named(model.named_parameters()).names
    ('0', '2')
    """
    named = list(named)
    own = [name for name, _ in named if "." not in name]
    root = "root" if len(own) > 1 else "".join(own)
    keys = [name.rpartition(".")[0] or root for name, _ in named]
    return _layout(keys, [p.numel() for _, p in named], granularity)


def layout_of_tensors(tensors: Iterable[Tensor], granularity: str = "per_layer") -> Layout:
    """Group nameless parameters.

    Each tensor of two or more dimensions opens a layer, smaller ones join the last.

    >>> import torch
    >>> layout_of_tensors(torch.nn.Linear(2, 3).parameters()).layer_of
    (0, 0)
    """
    tensors = list(tensors)
    keys, layer = [], 0
    for i, tensor in enumerate(tensors):
        layer += int(i > 0 and tensor.ndim >= 2)
        keys.append(f"layer{layer}")
    return _layout(keys, [p.numel() for p in tensors], granularity)


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Named parameters of a model in groups for `PolicyOptimizer`, in order, with embeddings left to AdamW.

    Where a readout shares its weights with an embedding, all other matrices are Muon's.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))
    >>> [group.get("muon") for group in muon_groups(model)]
    [False, None]
    """
    owners = (
        module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    )
    tables = {id(param) for module in owners for param in module.parameters(recurse=False)}
    others = (
        module
        for module in model.modules()
        if not isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    )
    tied = any(
        id(param) in tables for module in others for param in module.parameters(recurse=False)
    )
    runs = itertools.groupby(model.named_parameters(), key=lambda named: id(named[1]) in tables)
    said = {True: {"muon": False}, False: {"muon": True} if tied else {}}
    return [{"params": list(members), **said[table]} for table, members in runs]


def hidden_matrices(groups: Iterable[tuple[Sequence[Tensor], bool | None]]) -> set[Tensor]:
    """Which parameters Muon is for, of groups that want all their matrices in, none, or do not say (None).

    A tensor of two or more dimensions is a matrix, (rows, all others), if it has more than one row and column. Of the
    groups that do not say, the last tensor of two or more dimensions is taken for the readout and left out.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    >>> first, _, last, _ = params = list(model.parameters())
    >>> hidden_matrices([(params, None)]) == {first}, hidden_matrices([(params, True)]) == {first, last}
    (True, True)
    """
    wanted: list[Tensor] = []
    unsaid: list[Tensor] = []
    for params, said in groups:
        if said is not False:
            (wanted if said else unsaid).extend(param for param in params if param.ndim >= 2)
    return {param for param in (*wanted, *unsaid[:-1]) if 1 < len(param) < param.numel()}


def muon_matrices(model: nn.Module) -> set[Tensor]:
    """The parameters of a model that Muon is for: `hidden_matrices` of its `muon_groups`."""
    return hidden_matrices(
        ([param for _, param in group["params"]], group.get("muon")) for group in muon_groups(model)
    )
