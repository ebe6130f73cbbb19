"""Real scans as windows: masked where nothing came, laws over the half-hour at five minutes."""

from __future__ import annotations

import numpy as np
import pytest

from gg_ray.grid import balance as b
from gg_ray.scenario.balance_record import from_statistics
from gg_ray.scenario.balance_windows import readings, window_at, windows
from gg_ray.verifier.features import Featurizer


def streams(scans: int) -> np.ndarray:
    record = from_statistics()
    return record.stream_HC[200 : 200 + scans].copy()


def test_a_scan_without_publication_ends_no_window_and_ages_the_next() -> None:
    x = streams(40)
    x[30] = np.nan
    t0 = 1_800 * 10**9 * np.arange(40)
    z = readings(x, np.tile(b.usual(600.0, 40.0, 40.0, 80.0), (40, 1)), 1_800.0)
    found = {int(end): window for ends, chunk in windows(z, t0, 24, 0) for end, window in zip(ends, chunk, strict=True)}
    assert sorted(found) == [*range(23, 30), *range(31, 40)]
    late = found[31]
    assert np.isnan(late.z_TM[22, 1])
    assert late.age_TM[22, 1] == 1
    assert late.age_TM[23, 1] == 0
    Featurizer().prepare([late], b.balance_plan(0))


def test_a_record_with_too_little_in_it_gives_no_window() -> None:
    x = np.full((30, len(b.CHANNELS)), np.nan)
    x[29, :10] = 100.0
    z = readings(x, np.tile(b.usual(600.0, 40.0, 40.0, 80.0), (30, 1)), 1_800.0)
    assert list(windows(z, 1_800 * 10**9 * np.arange(30), 24, 0)) == []


def test_laws_at_five_minutes_compare_demand_with_six_supplies() -> None:
    x = np.repeat(streams(4), 6, axis=0)
    x[:, 1] += 30.0 * np.tile(np.arange(6), 4)  # CCGT rises within each half-hour
    between = np.arange(24) % 6 != 5
    x[np.ix_(between, [b.INDO, b.ITSDO])] = np.nan
    z = readings(x, np.tile(b.usual(600.0, 40.0, 40.0, 80.0), (24, 1)), 300.0)
    _, q = b.laws(streams(4))
    heard = np.isfinite(z[:, b.M_UNREPORTED])
    assert np.flatnonzero(heard).tolist() == [5, 11, 17, 23]
    np.testing.assert_allclose(-1_000 * z[heard, b.M_UNREPORTED], q + 75.0, atol=1e-6)


def test_nothing_heard_yet_has_no_age() -> None:
    z = np.full((24, b.balance_plan(3).size), np.nan)
    z[20:, b.M_FREQUENCY] = 1.0
    window = window_at(z, 0, 3)
    assert window.age_TM[19, b.M_FREQUENCY] == 255
    assert window.age_TM[20, b.M_FREQUENCY] == 0
    prepared = Featurizer().prepare([window], b.balance_plan(3))
    assert prepared.v_BTN.shape == (1, 24, 26)
    assert np.abs(np.abs(prepared.v_BTN) - 1).max() < 0.01


@pytest.mark.parametrize("plan_id", [0, 1, 2])
def test_clean_readings_leave_residuals_near_unit_size(plan_id: int) -> None:
    x = streams(48)
    x[:, b.FREQ] = 50.0
    record = from_statistics()
    z = readings(x, record.usual_HU[200:248], 1_800.0)
    prepared = Featurizer().prepare([window_at(z[:24], 0, plan_id)], b.balance_plan(plan_id))
    assert np.quantile(np.abs(prepared.r_BTM[..., [b.M_STATION, b.M_UNREPORTED]]), 0.9) < 6
