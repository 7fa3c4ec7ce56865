"""Tabular Q-learning against a loop, numpy's bins, and a chain whose optimum is known."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lr_gym.optim import QLearningController

EDGES = [[-0.5, 0.5], [0.0], [-0.9, 0.0, 0.9]]
ACTIONS = [[-1.0, 0.0], [0.0, 0.5], [1.0, 1.0]]


def controller(**options: Any) -> QLearningController:
    return QLearningController(EDGES, ACTIONS, **options)


def test_states_equal_numpy_bins() -> None:
    features = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 4 - 2
    bins = [
        np.digitize(features[:, i].numpy(), edges)
        for i, edges in enumerate(np.float32(e) for e in EDGES)
    ]
    expected = np.ravel_multi_index(bins, (3, 2, 4))
    assert controller().state_index(features).tolist() == expected.tolist()
    assert controller().num_states == 24
    assert set(expected) == set(range(24))


def test_absent_feature_counts_as_zero() -> None:
    table = controller()
    assert table.state_index(torch.full((1, 3), math.nan)).equal(
        table.state_index(torch.zeros(1, 3))
    )


def test_update_equals_watkins_row_by_row() -> None:
    table = controller(learning_rate=0.3, discount=0.8)
    table.q = torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    q, old = table.q.tolist(), table.q.clone()
    states, actions = torch.tensor([3, 7, 9]), torch.tensor([0, 2, 1])
    rewards, following = torch.tensor([1.0, -0.5, 0.2]), torch.tensor([7, 3, 9])
    ended = torch.tensor([False, True, False])
    errors = table.update(states, actions, rewards, following, ended)
    for i in range(3):
        s, a = int(states[i]), int(actions[i])
        value = 0.0 if ended[i] else max(old[following[i]].tolist())
        error = float(rewards[i]) + 0.8 * value - q[s][a]
        assert float(errors[i]) == pytest.approx(error, rel=1e-5)
        q[s][a] += 0.3 * error
    torch.testing.assert_close(table.q, torch.tensor(q))
    assert table.visits.sum() == 3


def test_rows_that_share_a_cell_move_it_by_their_mean_and_bad_rewards_are_left_out() -> None:
    table = controller(learning_rate=0.5)
    same = torch.zeros(4, dtype=torch.int64)
    errors = table.update(
        same, same, torch.tensor([1.0, 2.0, 6.0, math.nan]), same, torch.ones(4, dtype=torch.bool)
    )
    assert float(table.q[0, 0]) == pytest.approx(1.5)
    assert table.visits[0, 0] == 3
    assert errors[3].isnan()
    assert table.q.isfinite().all()


def test_learns_the_optimal_policy_of_a_chain() -> None:
    # five positions; left pays 0.02 and restarts, right moves on and pays 1 at the end: right is
    # optimal
    table = QLearningController(
        [[0.5, 1.5, 2.5, 3.5]],
        [[-1.0], [1.0]],
        epsilon=1.0,
        epsilon_decay=1.0,
        learning_rate=0.2,
        discount=0.9,
    )
    rows = 16
    position = torch.zeros(rows)
    for _ in range(800):
        states = table.state_index(position.unsqueeze(1))
        actions = table.act(states)
        done = (actions == 1) & (position == 4)
        rewards = torch.where(actions == 0, 0.02, torch.where(done, 1.0, 0.0))
        position = torch.where((actions == 0) | done, 0.0, position + 1)
        table.update(states, actions, rewards, table.state_index(position.unsqueeze(1)), done)
    right = [0.9**k for k in (4, 3, 2, 1, 0)]
    control, _ = table.predict(torch.arange(5.0).unsqueeze(1))
    assert control.flatten().tolist() == [1.0] * 5
    assert table.q[:, 1].tolist() == pytest.approx(right, abs=0.02)
    assert table.q[0, 0] == pytest.approx(0.02 + 0.9 * right[0], abs=0.02)


def test_exploration_decays_to_its_floor_and_is_seeded() -> None:
    table = controller(epsilon=1.0, epsilon_decay=0.5, min_epsilon=0.05, seed=4)
    table.q[:, 2] = 1.0
    states = torch.zeros(3000, dtype=torch.int64)
    drawn = table.act(states)
    assert torch.bincount(drawn).tolist() == pytest.approx([1000] * 3, abs=120)
    for _ in range(8):
        table.act(states[:1])
    assert table.epsilon == 0.05
    assert (table.act(states) == 2).float().mean() == pytest.approx(1 - 0.05 * 2 / 3, abs=0.015)
    assert torch.equal(controller(seed=4).act(states), controller(seed=4).act(states))
    assert not torch.equal(controller(seed=4).act(states), controller(seed=5).act(states))


def test_ties_are_broken_at_random_but_not_by_the_policy() -> None:
    table = controller(epsilon=0.0, min_epsilon=0.0)
    drawn = table.act(torch.zeros(3000, dtype=torch.int64))
    assert torch.bincount(drawn).tolist() == pytest.approx([1000] * 3, abs=120)
    control, _ = table.predict(torch.zeros(4, 3))
    assert control.tolist() == [[-1.0, 0.0]] * 4


def test_mix_prob_follows_the_movement_of_the_loss() -> None:
    table = controller(initial_mix_prob=0.8, mix_tolerance=0.1)
    assert table.mix_prob == 0.8
    for epoch, losses in enumerate([(1.2, 0.8), (0.5, math.nan), (0.5, 0.5)]):
        for loss in losses:
            table.update_mix_prob(loss, epoch)
    assert table.mix_prob == pytest.approx(0.8 * 0.5 / 0.6)  # epoch means 1.0 -> 0.5
    table.update_mix_prob(0.5, 3)
    assert table.mix_prob == 0.0  # 0.5 -> 0.5
    assert not table.draw_multiplicative(100).any()
    table.mix_prob = 1.0
    assert table.draw_multiplicative(100).all()


def go_on(table: QLearningController) -> tuple[Tensor, Tensor]:
    states = torch.arange(24)
    actions = table.act(states)
    table.update(states, actions, actions.float(), states)
    table.update_mix_prob(0.7, 9)
    return actions, table.q


def copies(table: QLearningController, tmp_path: Path) -> list[QLearningController]:
    table.save(tmp_path / "table.safetensors")
    file = io.BytesIO()
    torch.save(table.state_dict(), file)
    file.seek(0)
    loaded = QLearningController(EDGES, ACTIONS)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return [
        QLearningController.load(tmp_path / "table.safetensors"),
        loaded,
        copy.deepcopy(table),
        pickle.loads(pickle.dumps(table)),
    ]


def test_every_copy_goes_on_alike(tmp_path: Path) -> None:
    table = controller(epsilon=0.5, seed=3, learning_rate=0.37)
    table.update_mix_prob(1.0, 0)
    table.update_mix_prob(0.9, 1)
    go_on(table)
    others = copies(table, tmp_path)
    expected = go_on(table)
    for other in others:
        for a, b in zip(go_on(other), expected, strict=True):
            assert torch.equal(a, b)
        assert (other.mix_prob, other.epsilon) == (table.mix_prob, table.epsilon)
        assert torch.equal(other.visits, table.visits)


def test_border() -> None:
    with pytest.raises(ValueError, match="ascending"):
        QLearningController([[1.0, 0.0]], ACTIONS)
    with pytest.raises(ValueError, match="control values"):
        QLearningController(EDGES, [[2.0]])
    with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\]; got 1.5"):
        controller(discount=1.5)
    with pytest.raises(ValueError, match="mix_tolerance"):
        controller(mix_tolerance=0.0)
    with pytest.raises(ValueError, match=r"\(R, 3\)"):
        controller().state_index(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="bins and actions"):
        controller().load_state_dict({"q": torch.zeros(2, 2)})
