"""gg_ray.calibration.drift: drift is found, ordinary days are not, and every finding has a value and a limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.calibration.conformal import CalibrationError
from gg_ray.calibration.drift import PageHinkley, ScoreDrift, StaleMonitor, TopologyMonitor, as_json, ks, psi


def test_psi_by_hand_and_of_equal_samples() -> None:
    reference = np.arange(1_000.0)
    assert psi(reference, reference) == pytest.approx(0.0, abs=1e-12)
    upper = np.arange(500.0, 1_000.0)
    by_hand = 5 * (0.1 * np.log(0.2 / 0.1)) + 5 * (1e-4 - 0.1) * np.log(1e-4 / 0.1)
    assert psi(reference, upper) == pytest.approx(by_hand, rel=0.02)
    assert ks(reference, upper) == pytest.approx(0.5, abs=0.01)


def days(rng: np.random.Generator, count: int, shift: float = 0.0) -> list[np.ndarray]:
    """Days that differ among themselves, as real ones do."""
    return [rng.normal(loc=0.2 * rng.normal() + shift, size=480) for _ in range(count)]


def test_days_like_those_of_the_calibration_are_seldom_found_and_others_are() -> None:
    rng = np.random.default_rng(0)
    monitor = ScoreDrift.of(days(rng, 20))
    calm = [bool(monitor.check(day, "grid")) for day in days(rng, 200)]
    assert np.mean(calm) <= 0.15, "two limits, each passed by about one day in 21"
    moved = [bool(monitor.check(day, "grid")) for day in days(rng, 50, shift=1.5)]
    assert np.mean(moved) > 0.95
    found = monitor.check(days(rng, 1, shift=3.0)[0], "case14, working day night")
    assert [finding.name for finding in found] == ["score-psi", "score-ks"]
    assert all(finding.value > finding.limit > 0 for finding in found)
    assert "case14, working day night" in as_json(found)[0]["detail"]
    with pytest.raises(CalibrationError, match="2 calibration days"):
        ScoreDrift.of(days(rng, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_page_hinkley_is_the_sum_it_is_defined_as(values: list[float]) -> None:
    """Against the definition from scratch, with running means."""
    state = PageHinkley(slack=0.1, limit=2.0, least=1)
    for value in values:
        state = state.after(value)
    terms = [value - np.mean(values[: i + 1]) - 0.1 for i, value in enumerate(values)]
    sums = np.r_[0.0, np.cumsum(terms)]
    assert state.total - state.lowest == pytest.approx(sums[-1] - sums.min(), abs=1e-9)
    assert (state.finding is not None) == (state.total - state.lowest > 2.0)


def test_page_hinkley_finds_a_rise_and_lets_noise_pass() -> None:
    rng = np.random.default_rng(1)
    state = PageHinkley(slack=0.2, limit=8.0)
    for value in rng.normal(size=300):
        state = state.after(value)
        assert state.finding is None
    for _ in range(40):
        state = state.after(1.0 + rng.normal())
    assert state.finding is not None
    assert state.finding.name == "page-hinkley"
    assert state.finding.value > state.finding.limit
    with pytest.raises(CalibrationError, match="leave out hours without scores"):
        state.after(float("nan"))


def test_a_frozen_meter_is_found_and_a_slow_one_is_not() -> None:
    rng = np.random.default_rng(2)
    fast, slow, gaps = rng.normal(size=200), np.repeat(rng.normal(size=40), 5), rng.normal(size=200)
    gaps[::3] = np.nan
    benign = np.stack([fast, slow, gaps], axis=1)
    usual = StaleMonitor.usual(benign)
    assert usual.tolist() == [0, 4, 0]
    monitor = StaleMonitor(usual, ("v of 1", "p of 2", "q of 3"))
    assert [finding for row in benign for finding in monitor.update(row)] == []
    frozen = benign.copy()
    frozen[50:, 0] = frozen[50, 0]
    frozen[100:, 1] = frozen[100, 1]
    monitor = StaleMonitor(usual, ("v of 1", "p of 2", "q of 3"))
    found = {t: monitor.update(row) for t, row in enumerate(frozen)}
    hit = {t: [f.detail for f in findings] for t, findings in found.items() if findings}
    assert list(hit) == [54, 105], "one past the longest usual run, once each"
    assert hit[54][0].startswith("v of 1 repeats")
    assert monitor.stale_M.tolist() == [True, True, False]


def test_a_new_topology_is_told_once() -> None:
    known = np.ones((10, 3), dtype=np.uint8)
    known[5:7, 1] = 0
    monitor = TopologyMonitor(known, ("1-2", "2-3", "1-3"))
    assert monitor.update(np.array([1, 1, 1], dtype=np.uint8)) is None
    assert monitor.update(np.array([1, 0, 1], dtype=np.uint8)) is None, "an outage of the calibration days"
    found = monitor.update(np.array([0, 1, 0], dtype=np.uint8))
    assert found is not None
    assert (found.name, found.value, found.limit) == ("topology", 2.0, 0.0)
    assert found.detail.endswith("1-2, 1-3")
    assert monitor.update(np.array([0, 1, 0], dtype=np.uint8)) is None
