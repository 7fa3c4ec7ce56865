"""Which parameter tensor belongs to which layer, and which matrices Muon updates, in what blocks.

A layer is a part of a model with hyperparameters of its own. By default each module that owns
parameters directly is one layer, so a weight and its bias share a learning rate. With
granularity="global" the whole model is one layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "GRANULARITIES",
    "Layout",
    "check_granularity",
    "embedding_tables",
    "hidden_matrices",
    "layout_of_named",
    "layout_of_tensors",
    "muon_groups",
    "muon_matrices",
    "row_blocks",
]

GRANULARITIES = ("per_layer", "global")
# Names that libraries give to a linear layer whose rows are queries, then keys, then values. Not
# among them is query_key_value (BLOOM, GPT-NeoX), whose rows go by heads, not by these three.
QKV_LAYERS = frozenset({"Wqkv", "c_attn", "in_proj", "qkv", "qkv_proj", "to_qkv"})


class Layout(NamedTuple):
    """The layers of a model, in the order of its parameters.

    Attributes:
        names: The names of the L layers.
        layer_of: The index of its layer, for each parameter tensor.
        sizes: The number of elements of each parameter tensor.
    """

    names: tuple[str, ...]
    layer_of: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """Number of layers L."""
        return len(self.names)

    def layer_sizes(self) -> list[int]:
        """Return the number of elements of each layer, at least 1 so that one can divide by it."""
        totals = [0] * self.num_layers
        for layer, size in zip(self.layer_of, self.sizes, strict=True):
            totals[layer] += size
        return [max(1, total) for total in totals]

    def pool(self, per_tensor: Tensor) -> Tensor:
        """Sum the values (..., n) of n tensors over the tensors of each layer.

        Returns:
            (..., L) sums, 0 for layers without a tensor.
        """
        sums: list[Tensor | None] = [None] * self.num_layers
        for layer, value in zip(self.layer_of, per_tensor.unbind(-1), strict=True):
            so_far = sums[layer]
            sums[layer] = value if so_far is None else so_far + value
        found = [torch.zeros_like(per_tensor[..., 0]) if s is None else s for s in sums]
        return torch.stack(found, dim=-1)


def check_granularity(granularity: str) -> str:
    """Return `granularity`, or raise a ValueError that lists the valid ones."""
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
    """Make a layer of each module that owns some of the named parameters.

    The name of the module is everything before the last dot of the parameter's name. Parameters
    without a dot belong to the model itself. They are one layer, which has the name `root`, or the
    name of the parameter if there is only one.

    Args:
        named: Names and parameters.
        granularity: One of GRANULARITIES.

    Raises:
        ValueError: There is no parameter, or the granularity is unknown.

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
    """Guess the layers of parameters without names.

    Each tensor of two or more dimensions begins a new layer; the tensors of fewer dimensions after
    it, such as a bias, belong to the same one.

    Args:
        tensors: The parameters in order.
        granularity: One of GRANULARITIES.

    Raises:
        ValueError: There is no parameter, or the granularity is unknown.

    >>> import torch
    >>> layout_of_tensors(torch.nn.Linear(2, 3).parameters()).layer_of
    (0, 0)
    """
    tensors = list(tensors)
    keys = []
    layer = 0
    for i, tensor in enumerate(tensors):
        layer += int(i > 0 and tensor.ndim >= 2)
        keys.append(f"layer{layer}")
    return _layout(keys, [p.numel() for p in tensors], granularity)


def _owned_by_embeddings(model: nn.Module) -> tuple[set[Tensor], set[Tensor]]:
    """The parameters of a model's embeddings, and those of its other modules."""
    owners: dict[bool, set[Tensor]] = {True: set(), False: set()}  # is an embedding -> parameters
    for module in model.modules():
        is_embedding = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        owners[is_embedding].update(module.parameters(recurse=False))
    return owners[True], owners[False]


def embedding_tables(model: nn.Module) -> set[Tensor]:
    """Return the parameters of a model that are only looked up.

    Weights that an embedding shares with another module, such as a readout, are not among them.
    """
    embedded, others = _owned_by_embeddings(model)
    return embedded - others


def muon_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters of a model as groups for `PolicyOptimizer` with Muon.

    The groups hold named parameters, in the order of the model. Those of embeddings have
    `"muon": False`, which leaves them to AdamW. If another module, such as a readout, shares the
    weights of an embedding, then all other groups have `"muon": True`: none of their matrices is
    the readout, so Muon updates all of them. Tables that are only looked up have
    `"embedding": True`, which tells the unit of their learning rate.

    Args:
        model: The model.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))
    >>> [group.get("muon") for group in muon_groups(model)]
    [False, None]
    """
    embedded, others = _owned_by_embeddings(model)
    tied = bool(embedded & others)

    def options(named: tuple[str, Tensor]) -> dict[str, bool]:
        if named[1] not in embedded:
            return {"muon": True} if tied else {}
        return {"muon": False} if named[1] in others else {"muon": False, "embedding": True}

    neighbours = itertools.groupby(model.named_parameters(), options)
    return [{"params": list(named), **shared} for shared, named in neighbours]


def hidden_matrices(groups: Iterable[tuple[Sequence[Tensor], bool | None]]) -> set[Tensor]:
    """Return the parameters that Muon updates; AdamW updates the others.

    Muon is for matrices, but not for the readout. A tensor of two or more dimensions counts as a
    matrix, whose columns are all dimensions but the first, if it has more than one row and more
    than one column. In groups that do not say what they want, the last tensor of two or more
    dimensions is taken for the readout and left out.

    Args:
        groups: Parameters of each group, and whether Muon updates its matrices: True for all of
            them, False for none, None if the group does not say.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    >>> parameters = list(model.parameters())
    >>> hidden_matrices([(parameters, None)]) == {model[0].weight}
    True
    >>> hidden_matrices([(parameters, True)]) == {model[0].weight, model[1].weight}
    True
    """
    wanted: list[Tensor] = []
    undecided: list[Tensor] = []
    for params, muon in groups:
        if muon is not False:
            tensors = [param for param in params if param.ndim >= 2]
            (wanted if muon else undecided).extend(tensors)
    chosen = (*wanted, *undecided[:-1])
    return {param for param in chosen if 1 < len(param) < param.numel()}


def muon_matrices(model: nn.Module) -> set[Tensor]:
    """Return the parameters of a model that Muon updates if its groups are `muon_groups`."""
    groups = muon_groups(model)
    return hidden_matrices(
        ([param for _, param in group["params"]], group.get("muon")) for group in groups
    )


def row_blocks(named: Iterable[tuple[str, Tensor]]) -> list[int]:
    """Tell how many maps of one size the rows of each parameter hold, 1 for most.

    Names and shapes tell it: those of torch's recurrent networks, whose rows are the gates, those
    of nn.MultiheadAttention, whose rows are queries, keys and values, and QKV_LAYERS.

    Args:
        named: The names and parameters of a whole model.

    Returns:
        One number for each parameter, which divides its number of rows.

    >>> import torch
    >>> row_blocks(torch.nn.LSTM(2, 3).named_parameters())
    [4, 4, 1, 1]
    >>> row_blocks([("attention.qkv.weight", torch.ones(12, 4))])
    [3]
    """
    named = list(named)
    tensors = dict(named)
    return [_row_blocks(name, param, tensors) for name, param in named]


def _row_blocks(name: str, param: Tensor, tensors: Mapping[str, Tensor]) -> int:
    if param.ndim < 2:
        return 1
    rows = len(param)
    columns = math.prod(param.shape[1:])
    path, _, own = name.rpartition(".")
    if own == "in_proj_weight" or (own == "weight" and path.rpartition(".")[2] in QKV_LAYERS):
        return 3 if rows == 3 * columns else 1  # fewer keys than queries are no equal blocks
    hidden = _hidden_units(name, tensors) if own.startswith(("weight_ih", "weight_hh")) else 0
    return rows // hidden if hidden and rows % hidden == 0 else 1


def _hidden_units(name: str, tensors: Mapping[str, Tensor]) -> int:
    """Hidden units of the recurrence that owns a weight_ih or weight_hh, 0 where unknown."""
    path, _, place = name.rpartition("_ih" if "weight_ih" in name else "_hh")
    # an LSTM that projects its state has one column for each hidden unit in weight_hr
    state = tensors.get(f"{path}_hr{place}", tensors.get(f"{path}_hh{place}"))
    return 0 if state is None or state.ndim != 2 else state.shape[1]
