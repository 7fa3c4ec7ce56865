"""Parameter groups that frameworks make without names, given the names of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lr_gym.layers import embedding_tables, muon_matrices

__all__ = ["named_groups"]


def named_groups(groups: Iterable[Mapping[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Give the parameters of groups the names that they have in the model.

    By its names a PolicyOptimizer knows which parameters are one layer. Frameworks make groups
    without names, often with all biases in a group of their own.

    A group that does not say what Muon updates is split: `"muon": True` for the matrices that
    `muon_groups(model)` gives to Muon, and `"muon": False` for embeddings, the readout and vectors.
    Embeddings are a part of their own, with `"embedding": True`, which tells the unit of their
    learning rate. All parts keep the other options of the group.

    Args:
        groups: The groups, whose parameters may have names already.
        model: The model that holds the parameters.

    Returns:
        New groups of (name, parameter) pairs, for `PolicyOptimizer(groups, ...)`. Groups without a
        parameter are left out.

    Raises:
        ValueError: A parameter does not belong to the model.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> biases = {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0}
    >>> named_groups([biases], model)[0]["params"][1][0]
    '2.bias'
    """
    names: dict[Tensor, str] = {param: name for name, param in model.named_parameters()}
    matrices = muon_matrices(model)
    tables = embedding_tables(model)
    named: list[dict[str, Any]] = []
    for i, group in enumerate(groups):
        pairs = [_named(param, names, i) for param in group["params"]]
        if "muon" in group:
            named.append({**group, "params": pairs})
            continue
        parts: list[list[tuple[str, Tensor]]] = [[], [], []]
        for pair in pairs:
            parts[2 if pair[1] in matrices else int(pair[1] in tables)].append(pair)
        rest, embedded, hidden = parts
        named += [
            {**group, "muon": False, "params": rest},
            {**group, "muon": False, "embedding": True, "params": embedded},
            {**group, "muon": True, "params": hidden},
        ]
    for group in named:
        group.pop("param_names", None)  # a group of an optimizer has both; the pairs are enough
    return [group for group in named if group["params"]]


def _named(
    given: Tensor | tuple[str, Tensor], names: Mapping[Tensor, str], group: int
) -> tuple[str, Tensor]:
    param = given[1] if isinstance(given, tuple) else given
    if param not in names:
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} in group {group} does not belong to the "
            "model: pass the model whose parameters the groups hold"
        )
    return names[param], param
