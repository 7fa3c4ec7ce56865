"""Copies and checkpoints of every optimizer, with torch.optim.Adam as the control."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from optimizer_contract import ROWS, Row, assert_same, clone, descend, make_params, params_of

pytestmark = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def through_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def without(tree: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(tree, dict):
        return {k: without(v, keys) for k, v in tree.items() if k not in keys}
    return [without(v, keys) for v in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_alike(row: Row, copier: Any) -> None:
    params = make_params()
    optimizer = row.make(params, lr=0.05)
    descend(optimizer, params, 7)
    twin = copier(optimizer)
    descend(optimizer, params, 8, start=7)
    descend(twin, params_of(twin), 8, start=7)
    assert_same(params, params_of(twin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_dict_round_trip_is_bit_exact(row: Row, dtype: torch.dtype) -> None:
    params = make_params(dtype)
    optimizer = row.make(params, lr=0.05)
    descend(optimizer, params, 7)
    saved = through_file(optimizer.state_dict())
    others = [p.detach().clone().requires_grad_() for p in params]
    resumed = row.make(others, lr=0.9)
    resumed.load_state_dict(saved)
    descend(optimizer, params, 20, start=7)
    descend(resumed, others, 20, start=7)
    assert_same(params, others)
    assert_same(clone(others), [p.to(dtype) for p in others])
    assert all(p.isfinite().all() for p in params)


def test_loads_an_older_checkpoint(row: Row) -> None:
    assert row.newer
    params = make_params()
    optimizer = row.make(params, lr=0.05)
    descend(optimizer, params, 7)
    old = without(optimizer.state_dict(), row.newer)
    resumed = row.make(params, lr=0.05)
    resumed.load_state_dict(through_file(old))
    descend(resumed, params, 12)
    assert all(p.isfinite().all() for p in params)
    distance = [sum((p - 1).square().sum().item() for p in ps) for ps in (make_params(), params)]
    assert distance[1] < distance[0]  # than at the very start: momentum swings through the optimum
