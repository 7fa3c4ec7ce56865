"""The experiments on streams: exact resume, and the film of a run."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image

from experiments import stream_endurance, stream_picture, stream_rates_applied
from experiments.stream_endurance import StreamTraining, differences, endurance
from lr_gym.benchmark.contestants import Baseline, DeployedPolicy
from lr_gym.benchmark.run import Cell, run_cell
from lr_gym.tasks import find_task

TASK = "stream-values-4"


def test_a_resumed_training_ends_equal_to_the_bit(tmp_path, monkeypatch):
    """The chunks in which the stream is drawn do not fit the moments, and the data change."""
    monkeypatch.setattr(stream_endurance, "CHUNK", 17)
    found = endurance("builtin:stream", find_task(TASK), 400, 4, tmp_path / "middle.pt")
    assert found["differences"] == []
    assert [moment["step"] for moment in found["moments"]] == list(range(40, 401, 40))
    assert found["moments"][-1]["changes"] >= 1
    assert all(0.0 < m["lowest_lr"] <= m["highest_lr"] < 1.0 for m in found["moments"])
    assert all(m["memory_mib"] > 10.0 for m in found["moments"])
    with pytest.raises(ValueError, match="multiple of 10; got 401"):
        endurance("builtin:stream", find_task(TASK), 401, 4, tmp_path / "middle.pt")


def test_a_training_that_goes_on_elsewhere_is_told_apart():
    one = StreamTraining("builtin:stream", find_task(TASK), 0)
    other = StreamTraining("builtin:stream", find_task(TASK), 0)
    for training in (one, other):
        training.advance(30)
    state = copy.deepcopy(one.state_dict())
    assert differences(state, other.state_dict()) == []
    other.advance(1)
    assert "state.model.0.weight" in differences(state, other.state_dict())
    with pytest.raises(ValueError, match="'quadratic' is no stream"):
        StreamTraining("builtin:stream", find_task("quadratic"), 0)


def test_differences_are_of_bits():
    nan = torch.tensor([float("nan"), 0.0])
    assert differences({"a": nan, "b": [1]}, {"a": nan.clone(), "b": [1]}) == []
    assert differences({"a": nan}, {"a": -nan}) == ["state.a"]
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["state.a.1"]
    assert differences({"a": 1}, {"b": 1}) == ["state"]
    assert differences(1, 1.0) == ["state"]


def test_the_endurance_is_that_of_the_benchmark():
    """The same minibatches and weights, so the same losses above the floor."""
    steps = 60
    loss, _, _ = StreamTraining("builtin:stream", find_task(TASK), 1).advance(steps)
    cell = Cell(DeployedPolicy("builtin:stream"), 1e-3, TASK, 1, horizon=steps)
    assert run_cell(cell).selection_loss == pytest.approx(loss, rel=1e-5)


def test_a_film_shows_changes_when_they_come(tmp_path):
    view = stream_picture.view_of("builtin:stream", TASK, 3e-3, 4, horizon=400)
    assert view["changes"]
    film = stream_picture.Film(view)
    first = view["changes"][0]
    film.show(1)
    assert not any(line.get_visible() for line in film.changes)
    film.show(film.points)
    assert all(line.get_visible() for line in film.changes)
    assert film.changes[0].get_xdata()[0] == first
    (loss, rate), _ = film.lines
    assert list(loss.get_ydata()) == view["rows"][0]["loss"]
    assert list(rate.get_ydata()) == view["rows"][0]["lr"]
    for name in ("film.gif", "film.png"):
        film.save(tmp_path / name)
    with Image.open(tmp_path / "film.gif") as opened:
        assert opened.n_frames > film.points // stream_picture.POINTS_PER_FRAME
    with Image.open(tmp_path / "film.png") as opened:
        assert opened.size[0] > 400
    with pytest.raises(ValueError, match="'quadratic' is no stream"):
        stream_picture.view_of("builtin:stream", "quadratic", 3e-3, 0)


def test_a_table_counts_who_stands_still():
    cell = Cell(Baseline("trac"), 3e-3, TASK, 0, test=True, horizon=40)
    outcome = run_cell(cell)
    moved = outcome._replace(lr=[[0.1]], test_loss=1.0)
    still = outcome._replace(lr=[[0.0]], test_loss=3.0)
    lost = outcome._replace(lr=[], test_loss=float("inf"))
    line = stream_rates_applied.row("trac", TASK, [moved, still, lost])
    assert line == f"| `trac` | `{TASK}` | 2.000 | 0.1 | 1 | 1 |"
