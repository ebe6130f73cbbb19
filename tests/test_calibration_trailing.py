"""Thresholds from the year before each day."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.calibration.trailing import LEAST_DAYS, WINDOW_DAYS, trailing_thresholds

HALF_HOUR_NS = 1_800_000_000_000
MONTHLY = 12 / 365.25


def times(days: int, first: str = "2023-01-01") -> np.ndarray:
    return int(np.datetime64(first, "ns").astype(np.int64)) + HALF_HOUR_NS * np.arange(48 * days)


def by_hand(score: np.ndarray, benign: np.ndarray, day: int, per_day: float) -> float:
    """The threshold of one day with sorted() and nothing else."""
    highest = []
    for d in range(max(0, day - WINDOW_DAYS), day):
        rows = [
            s for s, ok in zip(score[48 * d : 48 * d + 48], benign[48 * d : 48 * d + 48], strict=True) if ok and s == s
        ]
        if rows:
            highest.append(max(rows))
    if len(highest) < LEAST_DAYS:
        return float("inf")
    return sorted(highest, reverse=True)[int(per_day * len(highest))]


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([181, 400]), st.floats(0.01, 0.3))
def test_equals_sorting_by_hand(seed: int, days: int, per_day: float) -> None:
    rng = np.random.default_rng(seed)
    score = rng.standard_exponential(48 * days)
    score[rng.random(score.size) < 0.2] = np.nan
    score[: 48 * int(rng.integers(0, 5))] = np.nan  # whole days without a score
    benign = rng.random(score.size) < 0.9
    found = trailing_thresholds(score, benign, times(days), per_day)
    for day in (0, 100, LEAST_DAYS, days - 1):
        assert found[48 * day] == by_hand(score, benign, day, per_day)
        assert (found[48 * day : 48 * day + 48] == found[48 * day]).all()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_comes_later_changes_nothing_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, benign = rng.standard_normal(48 * 300), np.ones(48 * 300, dtype=bool)
    at = 48 * int(rng.integers(LEAST_DAYS, 299))
    before = trailing_thresholds(score, benign, times(300), MONTHLY)
    score[at:] += 100.0
    after = trailing_thresholds(score, benign, times(300), MONTHLY)
    assert (before[: at + 48] == after[: at + 48]).all()  # the day under way included


def test_it_follows_a_drift_that_a_fixed_threshold_does_not() -> None:
    """Daily maxima that grow by half in a year: the share of days above stays near the budget."""
    rng = np.random.default_rng(5)
    days, per_day = 4 * 365, 0.05
    score = np.full(48 * days, -1.0)
    score[::48] = rng.standard_exponential(days) * np.linspace(1.0, 2.5, days)
    benign = np.ones(score.size, dtype=bool)
    found = trailing_thresholds(score, benign, times(days), per_day)
    later = slice(48 * 365, None)
    fixed = np.quantile(score[: 48 * 365 : 48], 1 - per_day)
    assert per_day < (score[later] > found[later])[::48].mean() < 2 * per_day  # it lags by half a year
    assert (score[later] > fixed)[::48].mean() > 3 * per_day


def test_known_defects_do_not_raise_it() -> None:
    rng = np.random.default_rng(1)
    score = rng.random(48 * 400)
    benign = np.ones(score.size, dtype=bool)
    calm = trailing_thresholds(score, benign, times(400), MONTHLY)
    score[48 * 200 : 48 * 260], benign[48 * 200 : 48 * 260] = 1e6, False
    assert trailing_thresholds(score, benign, times(400), MONTHLY)[-1] <= calm[-1]


def test_a_short_record_gives_no_threshold() -> None:
    found = trailing_thresholds(np.zeros(48 * LEAST_DAYS), np.ones(48 * LEAST_DAYS, dtype=bool), times(LEAST_DAYS), 0.1)
    assert np.isinf(found).all()


@pytest.mark.parametrize("budget", [0.0, 1.0, -1.0, float("nan")])
def test_a_budget_that_daily_maxima_cannot_keep_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="incidents_per_day"):
        trailing_thresholds(np.zeros(48), np.ones(48, dtype=bool), times(1), budget)
