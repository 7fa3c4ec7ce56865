"""Each figure of the benchmark against a naive twin, and its promises on synthetic truth."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from experiments.interval_coverage import coverage, false_verdicts
from lr_gym.benchmark.above_optimum import BelowOptimumError, above_optimum
from lr_gym.benchmark.curves import area_under_curve, speed_up, steps_to_target
from lr_gym.benchmark.scores import (
    BOUND,
    iqm,
    iqm_interval,
    performance_profile,
    probability_of_improvement,
    relative_loss,
    scores,
)
from lr_gym.benchmark.significance import compare_all, holm, paired_test, smallest_shown, winner
from lr_gym.tasks import TASKS

INF = float("inf")


@pytest.fixture
def draw():
    return np.random.default_rng(0).normal(np.arange(4)[:, None], 1.0, (4, 6))


def test_scores_are_log_ratios_within_bounds():
    losses = [[1.0, 2.0, INF, 1.0, INF, 0.0]]
    reference = [[2.0, 1.0, 1.0, INF, INF, 1.0]]
    expected = []
    for mine, other in zip(losses[0], reference[0], strict=True):
        if math.isinf(mine) or math.isinf(other):
            expected.append(0.0 if mine == other else -BOUND if math.isinf(mine) else BOUND)
        else:
            expected.append(min(BOUND, max(-BOUND, math.log((other + 1e-8) / (mine + 1e-8)))))
    np.testing.assert_allclose(scores(losses, reference)[0], expected, rtol=1e-12)


@pytest.mark.parametrize(("mine", "other"), [(-0.1, 1.0), (1.0, -0.1)])
def test_a_loss_below_0_has_no_score(mine, other):
    with pytest.raises(ValueError, match=r"at least 0; got -0\.1"):
        scores([[1.0, mine]], [[1.0, other]])


def test_losses_are_scored_by_their_distance_to_the_optimum(monkeypatch):
    """A task whose loss is moved by a constant, and told so, has the same scores."""
    losses = np.array([[0.5, 1.0, INF], [0.2, 0.1, 0.4]])
    moved = dataclasses.replace(TASKS["quadratic"], name="moved", optimum=-3.0)
    monkeypatch.setitem(TASKS, "moved", moved)
    names = ["moved", "quadratic"]
    distances = above_optimum(losses - np.array([[3.0], [0.0]]), names)
    np.testing.assert_allclose(distances, losses, rtol=1e-12)
    assert above_optimum([[-3.0 - 1e-7]], ["moved"]) == 0.0  # rounding
    with pytest.raises(BelowOptimumError, match=r"'quadratic'.*-0\.2, below its optimum 0"):
        above_optimum([[1.0], [-0.2]], names)


def test_iqm_is_the_mean_of_the_middle_half(draw):
    ordered = sorted(value for row in draw.tolist() for value in row)
    middle = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
    assert iqm(draw) == pytest.approx(sum(middle) / len(middle))


def test_iqm_interval_against_a_loop(draw):
    generator = np.random.default_rng(5)
    tasks, seeds = draw.shape
    means = []
    for _ in range(4000):
        sample = sorted(
            draw[t, generator.integers(seeds)] for t in range(tasks) for _ in range(seeds)
        )
        middle = sample[6:18]
        means.append(sum(middle) / 12)
    found = iqm_interval(draw)
    stretch = math.sqrt(seeds / (seeds - 1))
    for bound, quantile in ((found.low, 0.025), (found.high, 0.975)):
        expected = found.mean + stretch * (np.quantile(means, quantile) - found.mean)
        assert bound == pytest.approx(expected, abs=0.03)


def test_intervals_without_spread_have_no_width():
    assert iqm_interval([[0.5] * 4] * 3) == (0.5, 0.5, 0.5)
    assert iqm_interval([[0.5], [0.7]]) == pytest.approx((0.6, 0.6, 0.6))


def test_intervals_stay_within_the_values():
    """Speed-ups need this: they are 0 where the other's loss is never reached, and never less."""
    values = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.5, 2.0, 3.0, 1.2]] * 2
    found = iqm_interval(values)
    assert found.low == 0.0
    assert found.mean < found.high <= 3.0


def test_relative_loss_against_a_naive_twin():
    generator = np.random.default_rng(1)
    losses, before = generator.lognormal(size=(3, 8)), generator.lognormal(size=(3, 5))
    logs = sorted(
        math.log(loss / np.median(row))
        for row, mine in zip(before, losses, strict=True)
        for loss in mine
    )
    assert relative_loss(losses, before) == pytest.approx(math.exp(np.mean(logs[6:-6])), rel=1e-6)


def test_probability_of_improvement_counts_pairs():
    mine, other = (
        np.array([[1.0, 2.0, 3.0], [1.0, INF, 0.0]]),
        np.array([[2.0, 2.0, 1.0], [5.0, INF, 1.0]]),
    )
    per_task = []
    for a, b in zip(mine, other, strict=True):
        per_task.append(
            sum(1.0 if x < y else 0.5 if x == y else 0.0 for x, y in zip(a, b, strict=True)) / 3
        )
    found = probability_of_improvement(mine, other)
    assert found.mean == pytest.approx(sum(per_task) / 2)
    ten = probability_of_improvement([[0.0] * 7 + [2.0] * 3], [[1.0] * 10])
    wilson = stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert ten == pytest.approx((0.7, wilson.low, wilson.high))
    assert probability_of_improvement([[0.0] * 10], [[1.0] * 10]).low < 0.75


def test_profile_counts(draw):
    thresholds = [-1.0, 0.0, 2.0, 10.0]
    expected = [sum(v >= at for row in draw for v in row) / draw.size for at in thresholds]
    np.testing.assert_allclose(performance_profile(draw, thresholds), expected)


def test_paired_test_is_the_t_test_on_one_task(draw):
    assert paired_test(draw[0] - draw[1]) == pytest.approx(stats.ttest_rel(draw[0], draw[1]).pvalue)


def test_paired_test_over_tasks_against_welch(draw):
    # two strata: the mean difference over both is a Welch test of one stratum against the other's
    # negative
    first, second = draw[1], draw[2] * 0.3
    expected = stats.ttest_ind(first, -second, equal_var=False).pvalue
    assert paired_test([first, second]) == pytest.approx(expected)


def test_paired_test_of_one_seed_or_no_spread():
    assert paired_test([[3.0], [4.0]]) == 1.0
    assert paired_test([[0.0, 0.0]]) == 1.0
    assert paired_test([[1.0] * 10]) == pytest.approx(stats.binomtest(10, 10).pvalue)


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_smallest_difference_shown_is_where_the_test_turns(draw, tasks):
    spread = draw[:tasks] - draw[:tasks].mean(1, keepdims=True)
    smallest = smallest_shown(draw[:tasks], 6)
    assert 6 * paired_test(spread + smallest) == pytest.approx(0.05)
    assert smallest_shown([[3.0], [4.0]], 6) is None
    assert smallest_shown([[1.0] * 10], 6) is None


def test_holm_by_its_definition():
    p = [0.01, 0.04, 0.03, 0.005, 0.6]
    for alpha in (0.02, 0.05, 0.1, 0.5):
        rejected = set()
        for rank, index in enumerate(sorted(range(5), key=lambda i: p[i])):
            if p[index] > alpha / (5 - rank):
                break
            rejected.add(index)
        assert {i for i, value in enumerate(holm(p)) if value <= alpha} == rejected
    assert all(value <= 1.0 for value in holm(p))


def test_a_winner_beats_every_other():
    noise = np.random.default_rng(0).normal(0.0, 0.1, (3, 4, 10))

    def compared(**scores):
        return compare_all(list(scores), lambda first, second: scores[first] - scores[second])

    rows = compared(a=noise[0] + 1.0, b=noise[1], c=noise[2])
    assert winner(rows) == "a"
    assert [(r.first, r.second) for r in rows] == list(combinations("abc", 2))
    assert rows[0].better == "a"
    assert rows[0].difference == pytest.approx(float((noise[0] + 1.0 - noise[1]).mean()))
    assert winner(compared(a=noise[0] + 1.0, b=noise[1] + 1.0, c=noise[2])) is None


def test_area_is_the_mean_along_the_training():
    steps, losses = [0, 10, 20, 40], [4.0, 2.0, 1.0, 1.0]
    fine = np.interp(np.linspace(0, 40, 40_001), steps, losses)
    assert area_under_curve(steps, losses) == pytest.approx(fine.mean(), abs=1e-3)
    assert area_under_curve(steps, losses[:2]) == INF
    assert area_under_curve(steps, [4.0, 2.0, 1.0, INF]) == INF


@pytest.mark.parametrize(
    ("mine", "other", "expected"),
    [
        ([4.0, 3.0, 2.0, 1.0], [4.0, 3.5, 3.2, 3.0], 3.0),  # at 10 of 30
        ([4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0], 1.0),
        ([4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 0.5], 0.0),
        ([4.0, 1.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.5], 3.0),  # what comes after does not matter
        ([4.0, 3.9, 3.8, 3.7], [4.0, 9.0, 9.0, 9.0], 3.0),  # the other ended above its start
        ([4.0, 3.9, 3.8, 3.7], [4.0, 9.0], 3.0),  # it diverged
        ([4.0, 3.9, 3.8, 3.7], [4.0, 9.0, 9.0, INF], 3.0),
        ([], [4.0, 3.0, 2.0, 1.0], 0.0),
    ],
)
def test_speed_up(mine, other, expected):
    assert speed_up([0, 10, 20, 30][: len(mine)], mine, other) == expected


def test_steps_to_target():
    assert steps_to_target([0, 5, 10], [3.0, 2.0, 1.0], 2.0) == 5.0
    assert steps_to_target([0, 5, 10], [3.0, 2.0, 1.0], 0.5) == INF
    assert steps_to_target([0, 5, 10], [3.0], 2.0) == INF


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_hold_the_truth(shape):
    assert coverage(shape, draws=150, tasks=8, seeds=10, resamples=400) >= 0.90


def test_equals_have_no_winner():
    corrected, alone = false_verdicts("normal", draws=200, tasks=8, seeds=10)
    assert corrected <= 0.08
    assert alone >= 0.4  # so the correction is what does it
