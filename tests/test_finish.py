"""How the end of a training is decided and reached: the phases, the rule of patience."""

from __future__ import annotations

import math

import pytest

from lr_gym.control.finish import Anneal, Finish
from lr_gym.control.patience import LossHistory, PatienceRule


@pytest.mark.parametrize("horizon", [None, 1000, 460])
@pytest.mark.parametrize("step", [1, 3, 100, 400, 459])
def test_the_rate_falls_linearly_to_zero_within_the_horizon(step, horizon):
    finish = Finish().decide(step, horizon)
    length = max(1, round(step / 4))
    if horizon is not None:
        length = min(max(length, horizon // 10), horizon - step)
    assert finish.end == step + length
    assert finish.end <= (horizon or math.inf)
    for made in range(step, step + length + 3):
        assert finish.factor(made) == pytest.approx(max(0.0, 1 - (made - step) / length))
        assert finish.phase(made) == ("anneal" if made < finish.end else "done")


def test_nothing_is_decided_at_first_and_once_only():
    assert [Finish().phase(0), Finish().factor(10**9), Finish().end] == ["run", 1.0, None]
    finish = Finish().decide(100, 1000)
    assert finish.decide(150, 1000) == finish


def test_an_end_after_the_horizon_is_reached_at_once():
    finish = Finish().decide(1000, 1000)
    assert (finish.phase(1000), finish.factor(1000)) == ("done", 0.0)


def decided(rule: PatienceRule, losses: list[float]) -> int | None:
    """After how many losses the rule ends the training."""
    history = LossHistory()
    for count, loss in enumerate(losses, start=1):
        history = rule.observe(history, loss)
        if rule.due(history):
            return count
    return None


def naive(losses: list[float], patience: int, first: int) -> int | None:
    """The same by a loop over numbers, for the default smoothing and improvement."""
    means = [losses[0]]
    for loss in losses[1:]:
        means.append(0.5 * means[-1] + 0.5 * loss)
    best = means[0]
    since = 0
    for count, mean in enumerate(means[1:], start=2):
        if mean < best * 0.995:
            best = mean
            since = 0
        elif best < means[0]:
            since += 1
        if since >= patience and count >= first:
            return count
    return None


@pytest.mark.parametrize("patience", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 5, 12])
def test_patience_equals_a_loop_over_numbers(patience, first):
    falls = [2.0 * 0.9**k + 0.02 * math.sin(9.0 * k) for k in range(12)]
    memorises = falls + [falls[-1] * 1.05**k for k in range(12)]
    rule = PatienceRule(patience, first_decisions=first)
    end = decided(rule, memorises)
    assert end == naive(memorises, patience, first)
    assert end is not None
    assert decided(rule, falls) == naive(falls, patience, first)


def test_a_training_that_stands_still_at_first_is_not_ended():
    rule = PatienceRule(patience=3)
    still = [2.3, 2.31, 2.29, 2.302, 2.3] * 6
    assert decided(rule, still) is None
    learns = still + [2.3 * 0.8**k for k in range(10)]
    assert decided(rule, learns) is None
    end = decided(rule, learns + [1.0] * 10)
    assert end is not None
    assert end > len(learns)


def test_losses_may_be_negative():
    rule = PatienceRule(patience=2, smoothing=1.0, first_decisions=0)
    assert decided(rule, [-1.0, -2.0, -3.0, -4.0]) is None
    assert decided(rule, [-1.0, -2.0, -2.001, -2.002]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be"),
        ({"patience": 2, "smoothing": 0.0}, "smoothing must be above 0"),
        ({"patience": 2, "smoothing": 1.5}, "smoothing must"),
        ({"patience": 2, "min_improvement": -0.1}, "min_improvement must"),
        ({"patience": 2, "first_decisions": -1}, "first_decisions must"),
    ],
)
def test_options_of_the_rule_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PatienceRule(**options)


def test_shares_of_an_anneal_out_of_range_are_named():
    with pytest.raises(ValueError, match="share_of_steps must"):
        Anneal(share_of_steps=2.0)
