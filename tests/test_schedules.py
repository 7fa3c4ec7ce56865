"""Base schedules: what is true of every row, and the formulas written out once more."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lr_gym.updates.schedules import SCHEDULES, base_schedule

PROGRESS = np.linspace(0, 1, 101)
FORMULAS = {
    "constant": lambda p: 1.0,
    "cosine": lambda p: math.cos(math.pi * p / 2) ** 2,
    "linear": lambda p: 1.0 - p,
    "wsd": lambda p: 1.0 if p < 0.8 else (1.0 - p) * 5,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_starts_at_one_and_never_rises(name):
    factors = base_schedule(name)(PROGRESS)
    assert factors.dtype == np.float64
    assert factors[0] == 1.0
    assert (np.diff(factors) <= 0).all()
    assert factors[-1] == (1.0 if name == "constant" else 0.0)


@pytest.mark.parametrize("name", FORMULAS)
def test_schedule_equals_its_formula(name):
    np.testing.assert_allclose(
        base_schedule(name)(PROGRESS), [FORMULAS[name](p) for p in PROGRESS], atol=1e-12
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_progress_outside_the_training_is_clamped(name):
    schedule = base_schedule(name)
    assert schedule(-0.5) == schedule(0.0)
    assert schedule(7.0) == schedule(1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_numbers_and_arrays_agree(name):
    schedule = base_schedule(name)
    grid = PROGRESS[:100].reshape(4, 25)
    assert schedule(grid).shape == grid.shape
    np.testing.assert_array_equal(
        schedule(grid).ravel(), [float(schedule(p)) for p in grid.ravel().tolist()]
    )


def test_unknown_schedule_lists_the_valid_ones():
    with pytest.raises(ValueError, match="schedule") as error:
        base_schedule("step")
    assert all(name in str(error.value) for name in SCHEDULES)
