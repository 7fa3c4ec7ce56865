"""Streams: when they change, and what each kind shows, against slow loops in Python."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch
from tiny_streams import CLASSES, CONCEPTS, INPUTS, KINDS, OFTEN, POOL, batches, classes, values

from lr_gym.rng import Stream, integers, normal, uniform
from lr_gym.tasks.stream import Changes, DataStream, StreamPosition, advanced, moments_of
from lr_gym.tasks.stream_kinds import ClassStream, GroupStream, OrderedStream, PermutedStream

SEEDS = torch.arange(40)
STEPS = 60
FLOAT = torch.float64


@functools.cache
def draws(seed: int, stream: Stream, step: int, count: int) -> list[float]:
    return uniform(torch.tensor([seed]), stream, step, count, dtype=FLOAT)[0].tolist()


def drawn_integers(seed: int, stream: Stream, step: int, count: int, high: int) -> list[int]:
    return integers(torch.tensor([seed]), stream, step, count, high)[0].tolist()


def run_of(changes: Changes, concepts: int, seed: int) -> tuple[float, float, int, int, int]:
    """What a run draws for itself: hazard, width, distinct concepts, first one, stride."""
    often, kind, slow, back, some, _ = draws(seed, Stream.STREAM, 0, 6)
    between = lambda place, low, high: low * (high / low) ** place
    hazard = 0.0 if changes.between is None else 1.0 / between(often, *changes.between)
    width = between(slow, *changes.width) if kind < changes.gradual else 1.0
    distinct = min(concepts, 2 + int(4 * some)) if back < changes.recurring else concepts
    (first,) = drawn_integers(seed, Stream.STREAM, 1, 1, concepts)
    (stride,) = drawn_integers(seed, Stream.STREAM, 2, 1, max(1, concepts - 1))
    return hazard, width, distinct, first, 1 + stride


def slow_moments(changes: Changes, concepts: int, seed: int, steps: int) -> list[tuple]:
    """Segment, since, concept, previous and weight of each step."""
    hazard, width, distinct, first, stride = run_of(changes, concepts, seed)
    order = [(first + stride * i) % concepts for i in range(distinct)]
    rows, segment, since = [], 0, -1
    for step in range(steps):
        since += 1
        if step > 0 and draws(seed, Stream.CHANGE, step, 1)[0] < hazard:
            segment += 1
            since = 0
        concept = order[segment % distinct]
        previous = order[(segment - 1) % distinct] if segment else concept
        weight = min(1.0, (since + 1) / width) if segment else 1.0
        rows.append((segment, since, concept, previous, weight))
    return rows


def numbers(steps: int, runs: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + steps).unsqueeze(1).expand(steps, runs)


def start(seeds: torch.Tensor) -> StreamPosition:
    return values().start(seeds, FLOAT)


# When streams change


@pytest.mark.parametrize("concepts", [1, 2, 3, CONCEPTS])
@pytest.mark.parametrize("pieces", [[STEPS], [1] * STEPS, [7, 1, 30, 22]], ids=len)
def test_moments_equal_a_slow_loop_however_they_are_cut(pieces, concepts):
    stream = dataclasses.replace(values(), values=torch.zeros(concepts + 1, POOL, dtype=FLOAT))
    seeds = SEEDS[:16]
    position, found, first = start(seeds), [], 0
    for steps in pieces:
        batch, moments = stream.draw(seeds, position, numbers(steps, len(seeds), first), 2)
        made = torch.full_like(seeds, steps)
        position = advanced(position, batch, moments, made)
        torch.testing.assert_close(position.floor, batch.floor.mean(0))
        found.append(moments)
        first += steps
    for run, seed in enumerate(seeds.tolist()):
        expected = list(zip(*slow_moments(OFTEN, concepts, seed, STEPS), strict=True))
        for i, name in enumerate(found[0]._fields):
            mine = torch.cat([getattr(moments, name)[:, run] for moments in found])
            torch.testing.assert_close(mine, torch.tensor(expected[i], dtype=mine.dtype))
        assert position.segment[run] == expected[0][-1]
        assert position.since[run] == expected[1][-1]


def test_a_position_stops_where_each_run_stops():
    seeds = SEEDS[:4]
    batch, moments = batches(values(), seeds, 9)
    made = torch.tensor([0, 9, 4, 1])
    position = advanced(start(seeds), batch, moments, made)
    for run, steps in enumerate(made.tolist()):
        if not steps:
            assert (position.segment[run], position.since[run], position.floor[run]) == (0, -1, 0)
            continue
        assert position.segment[run] == moments.segment[steps - 1, run]
        assert position.since[run] == moments.since[steps - 1, run]
        torch.testing.assert_close(position.floor[run], batch.floor[:steps, run].mean())


def test_changes_are_as_frequent_as_each_run_has_drawn():
    changes = Changes(between=(20.0, 500.0))
    seeds, steps = torch.arange(400), 400
    moments = moments_of(changes, CONCEPTS, seeds, start(seeds), numbers(steps, len(seeds)))
    hazards = torch.tensor([run_of(changes, CONCEPTS, seed)[0] for seed in seeds.tolist()])
    expected = hazards * (steps - 1)
    for few in (hazards < 0.01, hazards >= 0.01):
        total, mean = moments.segment[-1][few].sum(), expected[few].sum()
        assert abs(total - mean) < 4.0 * mean.sqrt()
    logs = -hazards.log()
    assert logs.min() > math.log(20.0) - 1e-6
    assert logs.max() < math.log(500.0)
    assert abs(logs.mean() - 0.5 * math.log(20.0 * 500.0)) < 0.15
    assert (moments.segment[0] == 0).all()


def test_nothing_changes_at_the_first_step_even_if_all_others_do():
    always = Changes(between=(1.0, 1.0), gradual=0.0)
    moments = moments_of(always, CONCEPTS, SEEDS, start(SEEDS), numbers(5, len(SEEDS)))
    assert (moments.segment == torch.arange(5).unsqueeze(1)).all()


def test_steady_streams_never_change():
    steady = Changes(between=None)
    moments = moments_of(steady, CONCEPTS, SEEDS, start(SEEDS), numbers(STEPS, len(SEEDS)))
    assert (moments.segment == 0).all()
    assert (moments.weight == 1.0).all()
    assert (moments.since == numbers(STEPS, len(SEEDS))).all()
    assert (moments.concept == moments.concept[0]).all()


@pytest.mark.parametrize("concepts", [2, 3, 5, 127])
def test_a_change_is_one(concepts):
    """The concept before is another one, also where concepts come back in turn."""
    changes = dataclasses.replace(OFTEN, between=(1.0, 3.0))
    seeds = torch.arange(200)
    moments = moments_of(changes, concepts, seeds, start(seeds), numbers(300, len(seeds)))
    changed = moments.segment > 0
    assert changed[-1].all()
    assert (moments.concept != moments.previous)[changed].all()
    shown = torch.tensor([len(moments.concept[:, run].unique()) for run in range(len(seeds))])
    few = shown <= 5
    if concepts == 127:
        assert 0.35 < few.float().mean() < 0.65  # `recurring` is a half
        assert set(shown[few].tolist()) == {2, 3, 4, 5}
    else:
        assert shown.max() == concepts


def test_gradual_changes_take_their_width():
    changes = Changes(between=(50.0, 50.0), gradual=0.4, width=(10.0, 10.0))
    seeds = torch.arange(300)
    moments = moments_of(changes, CONCEPTS, seeds, start(seeds), numbers(200, len(seeds)))
    changed = moments.segment > 0
    slow = (changed & (moments.weight < 1.0)).any(0)
    some = changed.any(0)
    assert 0.3 < (slow & some).sum() / some.sum() < 0.5
    expected = ((moments.since + 1) / 10.0).clamp_max(1.0)
    picked = changed & slow
    torch.testing.assert_close(moments.weight[picked].float(), expected[picked])
    assert (moments.weight[:, ~slow] == 1.0).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("between", (0.5, 10.0)),
        ("between", (10.0, 5.0)),
        ("width", (0.0, 1.0)),
        ("gradual", 1.5),
        ("recurring", -0.1),
    ],
)
def test_wrong_changes_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        Changes(**{field: value})


# What each kind shows


def slow_rows(seed: int, step: int, batch_size: int, count: int) -> list[int]:
    return drawn_integers(seed, Stream.BATCH, step, batch_size, count)


def slow_concepts(seed: int, step: int, batch_size: int, moment: tuple) -> list[int]:
    """Concept of each example, in a change the new one or the one before."""
    _, _, concept, previous, weight = moment
    chances = draws(seed, Stream.MIXTURE, step, batch_size)
    return [concept if chance < weight else previous for chance in chances]


def slow_value(stream, seed, step, i, row, moment):
    _, _, concept, previous, weight = moment
    low, high = stream.share
    share = low + (high - low) * draws(seed, Stream.STREAM, 4, 1)[0]
    angle = 0.5 * math.pi * weight
    new, old = (float(stream.values[which, row]) for which in (concept, previous))
    changing = math.sin(angle) * new + math.cos(angle) * old
    staying = float(stream.values[-1, row])
    low, high = stream.noise
    level = low * (high / low) ** draws(seed, Stream.STREAM, 3, 1)[0]
    noise = level * float(normal(torch.tensor([seed]), Stream.LABEL, step, 6, dtype=FLOAT)[0, i])
    target = math.sqrt(share) * changing + math.sqrt(1.0 - share) * staying + noise
    return stream.inputs[row].tolist(), [target], noise**2


def slow_class(stream, seed, step, i, row, concept):
    low, high = stream.noise
    share = low * (high / low) ** draws(seed, Stream.STREAM, 3, 1)[0]
    chances = draws(seed, Stream.LABEL, step, 12)
    true = int(stream.classes[concept, row])
    if chances[i] >= share:
        return stream.inputs[row].tolist(), true, -math.log(1.0 - share)
    others = [(true + 1 + k) % CLASSES for k in range(CLASSES - 1)]
    wrong = others[int(chances[6 + i] * (CLASSES - 1))]
    return stream.inputs[row].tolist(), wrong, -math.log(share / (CLASSES - 1))


def slow_example(kind, stream, seed, step, i, moment):
    """Input, target and floor of the i-th of six examples."""
    if kind == "ordered":
        (first,) = drawn_integers(seed, Stream.STREAM, 4, 1, POOL)
        row = (first + 6 * step + i) % POOL
        return stream.inputs[row].tolist(), int(stream.targets[row]), 0.0
    row = slow_rows(seed, step, 6, stream.inputs.shape[-2])[i]
    if kind == "values":
        return slow_value(stream, seed, step, i, row, moment)
    concept = slow_concepts(seed, step, 6, moment)[i]
    if kind == "classes":
        return slow_class(stream, seed, step, i, row, concept)
    if kind == "groups":
        return stream.inputs[concept, row].tolist(), int(stream.targets[concept, row]), 0.0
    order = stream.orders[concept].tolist()
    return [float(stream.inputs[row, j]) for j in order], int(stream.targets[row]), 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_examples_equal_a_slow_loop(kind):
    stream, seeds = KINDS[kind](), SEEDS[:4]
    batch, _ = batches(stream, seeds, 25)
    for run, seed in enumerate(seeds.tolist()):
        moments = slow_moments(stream.changes, stream.concepts, seed, 25)
        for step in range(0, 25, 4):
            rows = [slow_example(kind, stream, seed, step, i, moments[step]) for i in range(6)]
            inputs, targets, floors = zip(*rows, strict=True)
            here = lambda x, step=step, run=run: x[step, run]
            torch.testing.assert_close(here(batch.inputs), torch.tensor(inputs, dtype=FLOAT))
            expected = torch.tensor(targets, dtype=batch.targets.dtype)
            torch.testing.assert_close(here(batch.targets), expected)
            assert float(here(batch.floor)) == pytest.approx(sum(floors) / 6)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_differ_and_seeds_decide(kind):
    stream = KINDS[kind]()
    first, again = (batches(stream, SEEDS[:8], 10)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    alone, _ = batches(stream, SEEDS[5:6], 10)
    for mine, theirs in zip(alone, first, strict=True):
        assert torch.equal(mine[:, 0], theirs[:, 5])
    runs = first.inputs.transpose(0, 1).flatten(1)
    assert len(runs.unique(dim=0)) >= 7  # two may begin at the same row of recorded data
    assert not torch.equal(first.inputs[0], first.inputs[1])


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_numbers_show_the_same_examples(kind):
    wide, narrow = KINDS[kind](), KINDS[kind]().to("cpu", torch.float32)
    number = numbers(12, 8)
    batch, _ = batches(wide, SEEDS[:8], 12)
    found, _ = narrow.draw(SEEDS[:8], narrow.start(SEEDS[:8], torch.float32), number, 6)
    assert isinstance(narrow, DataStream)
    assert found.inputs.dtype == found.floor.dtype == torch.float32
    torch.testing.assert_close(found.inputs.double(), batch.inputs, rtol=1e-5, atol=1e-6)
    if batch.targets.is_floating_point():
        torch.testing.assert_close(found.targets.double(), batch.targets, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(found.targets, batch.targets)
    torch.testing.assert_close(found.floor.double(), batch.floor, rtol=1e-4, atol=1e-6)


def test_noise_of_values_is_within_its_range_and_is_their_floor():
    clean = dataclasses.replace(values(), noise=(1e-12, 1e-12))
    noisy, quiet = (batches(stream, SEEDS, 40, 20)[0] for stream in (values(), clean))
    noise = (noisy.targets - quiet.targets).squeeze(-1)  # (K, B, b)
    torch.testing.assert_close(noise.square().mean(-1), noisy.floor)
    levels = noise.square().mean((0, 2)).sqrt()
    low, high = values().noise
    assert 0.9 * low < levels.min() < 2.0 * low
    assert 0.5 * high < levels.max() < 1.1 * high


def test_wrong_labels_are_within_their_range_and_their_entropy_is_the_floor():
    clean = dataclasses.replace(classes(), noise=None)
    noisy, quiet = (batches(stream, SEEDS, 50, 20)[0] for stream in (classes(), clean))
    assert (quiet.floor == 0.0).all()
    step = (noisy.targets - quiet.targets) % CLASSES
    shares = (step != 0).double().mean((0, 2))
    low, high = classes().noise
    assert 0.5 * low < shares.min()
    assert shares.max() < 1.15 * high
    assert shares.max() > 2.0 * shares.min()
    kinds = torch.bincount(step.flatten(), minlength=CLASSES)[1:].double()
    assert (kinds / kinds.sum() - 1.0 / (CLASSES - 1)).abs().max() < 0.03
    entropy = -(shares * (shares / (CLASSES - 1)).log() + (1.0 - shares) * (1.0 - shares).log())
    torch.testing.assert_close(noisy.floor.mean(0), entropy, rtol=0.05, atol=0.01)


SLOW = Changes(between=(40.0, 40.0), gradual=1.0, width=(20.0, 20.0))


def told_streams() -> dict[str, DataStream]:
    """Streams whose targets are the concept of each example."""
    concept = torch.arange(CONCEPTS)
    inputs = torch.zeros(POOL, INPUTS, dtype=FLOAT)
    table = concept.unsqueeze(1).expand(CONCEPTS, POOL)
    grouped = inputs.expand(CONCEPTS, POOL, INPUTS)
    return {
        "classes": ClassStream(inputs, table, CONCEPTS, changes=SLOW),
        "groups": GroupStream(grouped, table, changes=SLOW),
    }


@pytest.mark.parametrize("kind", ["classes", "groups"])
def test_examples_of_the_new_concept_become_more(kind):
    batch, moments = batches(told_streams()[kind], SEEDS, 80, 30)
    new = batch.targets == moments.concept.unsqueeze(-1)
    old = batch.targets == moments.previous.unsqueeze(-1)
    assert (new | old).all()
    changing = (moments.weight > 0.2) & (moments.weight < 0.8)
    assert changing.sum() > 300
    gap = new.double().mean(-1)[changing] - moments.weight[changing]
    assert abs(gap.mean()) < 4.0 * 0.5 / (30 * len(gap)) ** 0.5


def test_permuted_entries_are_in_the_order_of_the_concept():
    orders = torch.rand(CONCEPTS, INPUTS, generator=torch.Generator().manual_seed(1)).argsort(1)
    inputs = torch.arange(INPUTS, dtype=FLOAT).expand(POOL, INPUTS)
    changes = dataclasses.replace(OFTEN, gradual=0.0)
    stream = PermutedStream(inputs, torch.zeros(POOL, dtype=torch.int64), orders, changes=changes)
    batch, moments = batches(stream, SEEDS, 30)
    expected = orders[moments.concept].unsqueeze(2).expand_as(batch.inputs)
    assert torch.equal(batch.inputs.long(), expected)


def test_ordered_rows_follow_one_another_and_begin_again():
    row = torch.arange(POOL)
    stream = OrderedStream(row.double().unsqueeze(1), row)
    batch, _ = batches(stream, SEEDS, 20)
    seen = batch.targets.transpose(0, 1).flatten(1)  # (B, K * b)
    assert ((seen[:, 1:] - seen[:, :-1]) % POOL == 1).all()
    assert len(seen[:, 0].unique()) > 10
