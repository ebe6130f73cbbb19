"""gg_ray.calibration.budget and adaptive: incidents counted like the metrics do, realised rates on unseen days."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from gg_ray.calibration.adaptive import AdaptiveLevel
from gg_ray.calibration.budget import Levels, at_most, dedup_scans, incident_levels, incidents_at, threshold_for
from gg_ray.calibration.conformal import CalibrationError
from gg_ray.calibration.incidents import Sighting, group
from gg_ray.evaluate import metrics
from gg_ray.grid.cases import load_case
from gg_ray.records import F64

MINUTES = 1_440
GAP = 15


def noisy_days(rng: np.random.Generator, count: int, *, rho: float = 0.95, level: float = 0.0) -> F64:
    """[count, 1440] standard normal scores with memory; level is the spread of a part that a whole day shares."""
    shocks = rng.normal(size=(count, MINUTES + 200)) * np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], shocks, axis=1)[:, 200:] + level * rng.normal(size=(count, 1))


def realised(days: F64, threshold: float) -> float:
    return metrics.false_incidents_per_day(list(days), threshold, scans_per_day=MINUTES)


@pytest.mark.parametrize(("rate", "gap"), [(1_440, 15), (288, 3), (48, 1)])
def test_neighbouring_scans_always_merge(rate: float, gap: int) -> None:
    assert dedup_scans(rate, 15) == gap


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.integers(1, 4))
def test_levels_are_where_the_count_of_incidents_first_reaches_each_number(scores: list[int], gap: int) -> None:
    """Against a count from scratch at every threshold, ties included."""
    day = np.repeat(np.array(scores, dtype=np.float64), 10)  # only the highest tenth of scans may be flagged
    day[np.arange(day.size) % 10 != 0] = -1.0
    found = incident_levels([day], 10 * gap, MINUTES).by_day[0]
    top = np.sort(day)[::-1][: int(0.1 * day.size)]
    most, expected = 0, []
    for value in np.unique(top)[::-1]:
        count = len(metrics.incidents(day >= value, 10 * gap))
        expected += [value] * max(0, count - most)
        most = max(most, count)
    assert found.tolist() == expected


def test_flags_of_neighbouring_buses_are_one_incident() -> None:
    """The same incidents as the grouping that operators see, on a grid, at every level."""
    case, rng = load_case("case14"), np.random.default_rng(0)
    edges = np.stack([case.f_bus, case.t_bus])
    day = rng.normal(size=(60, case.n_bus))
    levels = incident_levels([day], 2, MINUTES, edges).by_day[0]
    assert levels.size > 10
    for number in (1, 5, levels.size):
        flagged = day >= levels[number - 1]
        scans = [
            (Sighting(time_ns=int(t), onset_ns=int(t), verdict="implausible", type="S1", score=1.0, p_value=0.1,
                      places={int(i): float(day[t, i]) for i in np.flatnonzero(flagged[t])}), None)
            for t in np.flatnonzero(flagged.any(axis=1))
        ]  # fmt: skip
        assert len(group("case14", case.bus_names, edges, scans, gap_ns=2)) == number
        below = float(np.nextafter(levels[number - 1], -np.inf))
        assert incidents_at(day, below, 2, edges) == number


@pytest.mark.parametrize("budget", [1.0, 4.0])
def test_the_realised_rate_on_unseen_days_keeps_the_budget(budget: float) -> None:
    """60 calibration days; mean over seeds within 5 %, and .8 to 1.25 for nine in ten of them at four a day."""
    ratios = []
    for seed in range(12):
        rng = np.random.default_rng([seed, 1])
        levels = incident_levels(list(noisy_days(rng, 60)), GAP, MINUTES)
        found = threshold_for(levels, budget)
        ratios.append(realised(noisy_days(rng, 150), found.value) / budget)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.08)
    share = np.mean([0.8 <= ratio <= 1.25 for ratio in ratios])
    assert share >= (0.9 if budget == 4.0 else 0.75)


def test_independent_scans_would_promise_what_they_do_not_keep() -> None:
    """A threshold at budget / scans of all scans: merging makes a third of it, so detection is given away."""
    rng = np.random.default_rng(0)
    threshold = float(np.quantile(noisy_days(rng, 60), 1 - 4.0 / MINUTES))
    assert realised(noisy_days(rng, 150), threshold) < 0.6 * 4.0


def test_days_alike_inside_are_kept_below_the_budget_by_at_most() -> None:
    rates, aimed = [], []
    for seed in range(30):
        rng = np.random.default_rng([seed, 2])
        levels = incident_levels(list(noisy_days(rng, 20, level=0.5)), GAP, MINUTES)
        unseen = noisy_days(rng, 20, level=0.5)
        rates.append(realised(unseen, at_most(levels, 2.0)))
        aimed.append(realised(unseen, threshold_for(levels, 2.0).value))
    assert np.mean(rates) <= 2.0
    assert np.mean(rates) < np.mean(aimed)


def test_at_most_by_hand() -> None:
    """Ten days, budget 1, cap 10: (incidents so far + 10) / 11 <= 1 allows one incident on all days together."""
    levels = Levels(by_day=tuple(np.array([10.0 - day, 0.5]) for day in range(10)), days=10.0, scans_per_day=MINUTES)
    assert at_most(levels, 1.0) == 9.0
    with pytest.raises(CalibrationError, match="8 days cannot guarantee 1 incidents a day; give 9 days"):
        at_most(Levels(by_day=levels.by_day[:8], days=8.0, scans_per_day=MINUTES), 1.0)


def test_levels_survive_storage() -> None:
    levels = incident_levels(list(noisy_days(np.random.default_rng(5), 3)), GAP, MINUTES)
    back = Levels.from_json(json.loads(json.dumps(levels.as_json())))
    np.testing.assert_allclose(back.all, levels.all, atol=1e-6)
    assert (back.days, back.scans_per_day) == (3.0, MINUTES)
    with pytest.raises(CalibrationError, match="days"):
        Levels.from_json({"by_day": []})


def test_few_days_say_what_they_stand_on() -> None:
    rng = np.random.default_rng(3)
    levels = incident_levels(list(noisy_days(rng, 2)), GAP, MINUTES)
    rare = threshold_for(levels, 0.2)
    assert rare.relative_error == 1.0
    assert rare.source in ("tail", "top")
    flat = Levels(by_day=(np.array([3.0, 2.0, 1.0]),), days=1.0, scans_per_day=MINUTES)
    top = threshold_for(flat, 0.5)
    assert (top.value, top.source, top.expected) == (3.0, "top", 0.5)
    assert threshold_for(flat, 1.5).value == 2.5
    with pytest.raises(CalibrationError, match="at most 3 a day apart"):
        threshold_for(flat, 2.5)
    for budget in (0.0, -1.0, float("nan")):
        with pytest.raises(CalibrationError, match="above 0"):
            threshold_for(levels, budget)
    with pytest.raises(CalibrationError, match="0 benign days"):
        incident_levels([], GAP, MINUTES)
    with pytest.raises(CalibrationError, match="every score finite"):
        incident_levels([np.array([1.0, np.nan])], GAP, MINUTES)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0.01, 2.0)), min_size=1, max_size=80), st.floats(0.1, 5.0))
def test_the_rate_of_an_adaptive_level_is_bounded_whatever_happens(
    steps: list[tuple[int, float]], budget: float
) -> None:
    state = AdaptiveLevel(level=3.0, budget=budget)
    for incidents, days in steps:
        state = AdaptiveLevel(**state.as_json()).after(incidents, days)
        assert state.lower <= state.level <= state.upper
        if state.at_limit:
            return
    moved = sum(n for n, _ in steps) - budget * sum(d for _, d in steps)
    assert state.level - 3.0 == pytest.approx(state.gain * moved, abs=1e-9)


def test_an_adaptive_level_follows_a_drift_that_a_fixed_one_does_not() -> None:
    """Scores rise by half a sigma over 120 days; levels in -log10 p of the first days' law."""
    rng = np.random.default_rng(4)
    from scipy.stats import norm

    days = -np.log10(norm.sf(noisy_days(rng, 120) + np.linspace(0, 0.5, 120)[:, None]))
    calibration = -np.log10(norm.sf(noisy_days(rng, 60)))
    fixed = threshold_for(incident_levels(list(calibration), GAP, MINUTES), 4.0).value
    state, late = AdaptiveLevel(level=fixed, budget=4.0), 0
    for number, day in enumerate(days):
        found = incidents_at(day, state.level, GAP)
        assert found == len(metrics.incidents(day > state.level, GAP))
        state = state.after(found, 1.0)
        late += found if number >= 60 else 0
    assert realised(days[60:], fixed) > 1.5 * 4.0
    assert 0.8 <= late / 60 / 4.0 <= 1.25
    with pytest.raises(CalibrationError, match="must lie inside"):
        AdaptiveLevel(level=9.0, budget=1.0)
