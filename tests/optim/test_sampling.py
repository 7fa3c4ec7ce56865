"""Pieces of tensors, measured in batches, against `measure` of the whole tensors."""

from __future__ import annotations

import random

import pytest
import torch

from lr_gym.control.layer_stats import layer_statistics, measure
from lr_gym.layers import Layout
from lr_gym.optim import batching, sampling
from lr_gym.optim.sampling import (
    RUN,
    Piece,
    pieces_of,
    sampled_runs,
    square_sums,
    sums_of_pieces,
)
from lr_gym.types import LayerStats
from lr_gym.updates.rule import MomentMasses
from lr_gym.updates.rules import RULES, base_rule

SHAPES = [(4, 3), (4,), (40_000,), (3, 4), (4,), (12,), (300, 200), ()]
LAYER_OF = (0, 0, 1, 1, 2, 2, 0, 1)
NAMES = ("a", "b", "c")


def rules_of(base):
    return [base_rule(base).for_tensor(len(shape) > 1) for shape in SHAPES]


def tensors_of(base, dtype=torch.float64):
    """Parameter, gradient and moments of each shape, masses (1, n), momenta (1, L)."""
    generator = torch.Generator().manual_seed(0)
    slots = [
        tuple(
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for _ in range(4 if rule.family == "adam" else 3)
        )
        for shape, rule in zip(SHAPES, rules_of(base), strict=True)
    ]
    slots = [(*slot[:3], *(1.0 + second.square() for second in slot[3:])) for slot in slots]
    masses = torch.rand(2, 1, len(SHAPES), generator=generator, dtype=torch.float64)
    return slots, MomentMasses(*masses), torch.rand(1, 3, generator=generator, dtype=torch.float64)


def whole(base, slots, scale, momentum) -> LayerStats:
    layout = Layout(NAMES, LAYER_OF, tuple(slot[0].numel() for slot in slots))
    slots = [(*slot, None)[:4] for slot in slots]
    columns = [
        [t if t is None else t.double().unsqueeze(0) for t in column]
        for column in zip(*slots, strict=True)
    ]
    return measure(rules_of(base), layout, *columns, scale, momentum[:, list(LAYER_OF)])


def layout_of(slots) -> Layout:
    return Layout(NAMES, LAYER_OF, tuple(slot[0].numel() for slot in slots))


def measured(base: str, slots, pieces, scale, momentum) -> LayerStats:
    """Statistics of every layer from pieces of its tensors."""
    layout = layout_of(slots)
    sums = sums_of_pieces(rules_of(base), layout, pieces, scale, momentum)
    return layer_statistics(sums, torch.tensor(layout.layer_sizes()).to(sums))


def assert_close(got: LayerStats, expected: LayerStats, rtol: float) -> None:
    for name, a, b in zip(LayerStats._fields, got, expected, strict=True):
        torch.testing.assert_close(
            a, b, rtol=rtol, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("together", [1, 2, 64])
@pytest.mark.parametrize("base", RULES)
def test_pieces_in_any_order_equal_the_whole(base, together, monkeypatch):
    monkeypatch.setattr(batching, "MAX_BATCH", together)
    slots, scale, momentum = tensors_of(base)
    pieces = [piece for i, slot in enumerate(slots) for piece in pieces_of(slot, i, None, 50_000)]
    assert len(pieces) > len(slots)
    random.Random(0).shuffle(pieces)
    got = measured(base, slots, pieces, scale, momentum)
    assert_close(got, whole(base, slots, scale, momentum), 1e-9)


@pytest.mark.parametrize("base", RULES)
def test_a_sample_stands_for_the_whole(base):
    slots, scale, momentum = tensors_of(base)
    pieces = [piece for i, slot in enumerate(slots) for piece in pieces_of(slot, i, 4_000, 50_000)]
    assert sum(piece.size for piece in pieces) < 9_000
    assert sum(piece.size * piece.weight for piece in pieces) == sum(
        slot[0].numel() for slot in slots
    )
    got, expected = (
        measured(base, slots, pieces, scale, momentum),
        whole(base, slots, scale, momentum),
    )
    for a, b in zip(got[:-1], expected[:-1], strict=True):
        assert ((a / b - 1.0).abs() < 0.1).all()


def test_tensors_of_several_types_are_measured_in_the_widest():
    slots, scale, momentum = tensors_of("adam")
    slots = [
        tuple(t.to(torch.bfloat16) for t in slot) if i % 2 else slot for i, slot in enumerate(slots)
    ]
    pieces = [piece for i, slot in enumerate(slots) for piece in pieces_of(slot, i, None, 50_000)]
    got = measured("adam", slots, pieces, scale, momentum)
    assert_close(got, whole("adam", slots, scale, momentum), 1e-9)


def test_small_pieces_of_about_one_size_are_measured_together_and_large_ones_alone():
    sizes = [3, 100, 1024, 1025, batching.SMALL + 1, batching.SMALL + 1]
    pieces = [Piece((torch.zeros(size),) * 3, i, 1.0) for i, size in enumerate(sizes)]
    assert [len(group) for group in sampling._batches(pieces, [base_rule("sgd")] * 6)] == [
        3,
        1,
        1,
        1,
    ]
    assert [
        len(group) for group in sampling._batches(pieces, [base_rule("muon").for_tensor(True)] * 6)
    ] == [1] * 6
    rules = [base_rule("muon").for_tensor(hidden) for hidden in (True, False, True)]
    pieces = [Piece((torch.zeros(3),) * 3, i, 1.0) for i in (0, 1, 2)]
    assert [len(group) for group in sampling._batches(pieces, rules)] == [2, 1]


@pytest.mark.parametrize(
    ("elements", "sample"),
    [(40_000, 1_000), (36_864, 8_192), (2_359_296, 8_192), (1_000_003, 999), (2**24, 2**20)],
)
def test_a_sample_is_of_different_runs_of_the_whole_tensor(elements, sample):
    runs, count = sampled_runs(elements, sample, torch.device("cpu")), elements // RUN
    assert len(runs) == len(set(runs.tolist())) == sample // RUN
    assert runs.min() >= 0
    assert runs.max() < count
    assert torch.equal(runs, runs.sort().values)
    for columns in (
        3,
        4,
        9,
        12,
        16,
    ):  # runs of a row of a matrix: each column is looked at about as often
        seen = torch.bincount(runs % columns, minlength=columns) * columns / len(runs)
        assert float(seen.std()) < 4.0 * (columns / len(runs)) ** 0.5
    halves = (runs < count // 2).double().mean()
    assert abs(halves - 0.5) < 0.02


def test_what_is_small_is_measured_whole():
    cpu = torch.device("cpu")
    assert sampled_runs(4_000, 1_000, cpu) is None
    assert sampled_runs(40_000, None, cpu) is None
    assert sampled_runs(10, 1, cpu) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sample", [None, 1_000])
def test_the_gradient_alone_is_measured_as_with_the_rest(sample, dtype):
    slots, scale, momentum = tensors_of("adam", dtype)
    pieces = [piece for i, slot in enumerate(slots) for piece in pieces_of(slot, i, sample, 50_000)]
    expected = measured("adam", slots, pieces, scale, momentum)
    layout = layout_of(slots)
    grads = [slot[1] for slot in slots]
    squares = square_sums(layout, grads, sample, [1.0] * len(slots), momentum.dtype)
    count = torch.tensor(layout.layer_sizes())
    got = (squares / count).sqrt()
    torch.testing.assert_close(got, expected.grad_rms)
