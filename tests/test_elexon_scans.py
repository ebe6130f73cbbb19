"""Scans: where each value stands on the clock, what is masked, and that the order of rows never matters."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.elexon.rows import FUEL_TYPES, FUELS, DemandRow, FrequencyRow, FuelRow, OneDemandRow, Row
from gg_ray.elexon.scans import CHANNELS, NEVER, Columns, Scans, ages, from_columns, pivot, scans_from

START = datetime(2024, 6, 4, 12, tzinfo=UTC)
MIN = timedelta(minutes=1)


def ns(t: datetime) -> int:
    return int(t.timestamp()) * 10**9


def fuel(minute: int, code: str, mw: int | None, delay: int = 5) -> FuelRow:
    start = START + minute * MIN
    return FuelRow(start=start, fuel=code, generation_mw=mw, published=start + delay * MIN)


def demand(minute: int, indo: int | None, itsdo: int | None = None) -> DemandRow:
    start = START + minute * MIN
    return DemandRow(start=start, indo_mw=indo, itsdo_mw=itsdo, published=start + 40 * MIN)


def same(a: Scans, b: Scans) -> None:
    for name in ("t0_ns", "value_SC", "age_SC", "published_ns_SC", "freq_min_S", "freq_max_S"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_channels_are_fuels_demands_and_frequency_in_this_order() -> None:
    assert CHANNELS[:20] == FUEL_TYPES
    assert CHANNELS[20:] == ("INDO", "ITSDO", "FREQ")


def test_missing_scans_are_rows_of_nan_on_a_regular_clock() -> None:
    scans = scans_from({"FUELINST": [fuel(0, "CCGT", 9000), fuel(10, "CCGT", 9100)]}, 300, START, START + 20 * MIN)
    assert np.diff(scans.t0_ns).tolist() == [300 * 10**9] * 3
    np.testing.assert_array_equal(scans.channel("CCGT"), [9000, np.nan, 9100, np.nan])
    assert scans.age_SC[:, CHANNELS.index("CCGT")].tolist() == [0, 1, 0, 1]
    assert np.all(scans.age_SC[:, CHANNELS.index("WIND")] == NEVER)


def test_half_hourly_demand_stands_in_the_last_scan_of_its_half_hour() -> None:
    rows = {"FUELINST": [fuel(5 * i, "WIND", i) for i in range(12)], "DEMAND": [demand(0, 30_000, 31_000)]}
    scans = scans_from(rows, 300, START, START + 60 * MIN)
    assert np.flatnonzero(np.isfinite(scans.channel("INDO"))).tolist() == [5]
    assert scans.age_SC[:, CHANNELS.index("ITSDO")].tolist() == [NEVER] * 5 + [0, 1, 2, 3, 4, 5, 6]
    assert scans.channel("WIND").tolist() == list(range(12))


def test_at_15_s_fuels_stand_where_their_five_minutes_end() -> None:
    samples = [FrequencyRow(time=START + timedelta(seconds=15 * i), frequency_hz=50 + i / 1000) for i in range(20)]
    scans = scans_from({"FREQ": samples, "FUELINST": [fuel(0, "CCGT", 9000)]}, 15, START, START + 5 * MIN)
    assert np.flatnonzero(np.isfinite(scans.channel("CCGT"))).tolist() == [19]
    np.testing.assert_allclose(scans.channel("FREQ"), 50 + np.arange(20) / 1000)


def test_frequency_is_mean_least_and_greatest_and_needs_half_its_samples() -> None:
    samples = [FrequencyRow(time=START + timedelta(seconds=15 * i), frequency_hz=50 - i / 100) for i in range(29)]
    scans = scans_from({"FREQ": samples}, 300, START, START + 15 * MIN)
    assert scans.channel("FREQ")[0] == pytest.approx(50 - 0.095)
    assert (scans.freq_min_S[0], scans.freq_max_S[0]) == (pytest.approx(49.81), 50.0)
    assert np.isnan(scans.channel("FREQ")[1])  # nine of twenty
    assert np.isnan(scans.freq_min_S[1:]).all()


def test_five_minute_means_make_a_half_hour_only_when_all_six_are_there() -> None:
    rows = [fuel(5 * i, "CCGT", 100 * i) for i in range(12) if i != 8]
    scans = scans_from({"FUELINST": rows}, 1800, START, START + 60 * MIN)
    np.testing.assert_array_equal(scans.channel("CCGT"), [250, np.nan])
    half_hourly = FuelRow(start=START, fuel="CCGT", generation_mw=7, published=START + 30 * MIN)
    both = scans_from({"FUELINST": rows, "FUELHH": [half_hourly]}, 1800, START, START + 60 * MIN)
    np.testing.assert_array_equal(both.channel("CCGT"), [7, np.nan])  # the stream of that step, whole: no mixture


def test_later_publication_wins_and_an_older_one_never_overwrites() -> None:
    rows = [fuel(0, "CCGT", 2, delay=9), fuel(0, "CCGT", 1, delay=5), fuel(0, "CCGT", 2, delay=9)]
    scans = scans_from({"FUELINST": rows}, 300, START, START + 5 * MIN)
    assert scans.channel("CCGT")[0] == 2
    assert scans.counts == {"superseded": 1, "duplicate": 1}
    early = scans_from({"FUELINST": rows}, 300, START, START + 5 * MIN, known_at_ns=ns(START + 6 * MIN))
    assert early.channel("CCGT")[0] == 1


def test_a_view_at_a_time_holds_nothing_published_later() -> None:
    rows = [fuel(5 * i, "CCGT", i, delay=5 if i < 2 else 60) for i in range(4)]
    scans = scans_from({"FUELINST": rows}, 300, START, START + 20 * MIN)
    seen = scans.as_known(ns(START + 17 * MIN))
    np.testing.assert_array_equal(seen.channel("CCGT"), [0, 1, np.nan, np.nan])
    assert seen.age_SC[:, CHANNELS.index("CCGT")].tolist() == [0, 0, 1, 2]
    assert len(scans.as_known(ns(START))) == 0
    same(scans.as_known(ns(START + 120 * MIN)), scans)


def test_without_publish_time_a_value_is_known_when_its_scan_ends() -> None:
    samples = [FrequencyRow(time=START + timedelta(seconds=15 * i), frequency_hz=50) for i in range(4)]
    seen = scans_from({"FREQ": samples}, 15, START, START + MIN).as_known(ns(START + timedelta(seconds=40)))
    np.testing.assert_array_equal(seen.channel("FREQ"), [50, 50, np.nan])
    np.testing.assert_array_equal(seen.freq_min_S, [50, 50, np.nan])


def test_dead_publication_is_flagged_kept_and_taken_out_on_request() -> None:
    rows: list[Row] = [fuel(0, code, 0) for code in FUELS]
    rows += [fuel(0, "INTNSL", 900), fuel(5, "CCGT", 0), fuel(5, "WIND", 4), fuel(10, "INTNSL", 0)]
    scans = scans_from({"FUELINST": rows}, 300, START, START + 20 * MIN)
    assert scans.all_zero.tolist() == [True, False, False, False]  # interconnectors alone say nothing about the fuels
    assert scans.channel("CCGT")[0] == 0
    believable = scans.without_dead()
    assert np.isnan(believable.value_SC[0]).all()
    assert believable.age_SC[0, CHANNELS.index("CCGT")] == NEVER
    assert believable.channel("WIND")[1] == 4


def test_unknown_codes_nulls_and_off_grid_rows_are_counted_and_never_crash() -> None:
    rows = [fuel(0, "INTELE", 500), fuel(0, "CCGT", None), fuel(2, "CCGT", 9), fuel(5, "PS", -700)]
    scans = scans_from({"FUELINST": rows}, 300, START, START + 10 * MIN)
    assert scans.counts == {"unknown_fuel:INTELE": 1, "null": 1, "off_grid": 1}
    np.testing.assert_array_equal(scans.channel("PS"), [np.nan, -700])
    assert np.isnan(scans.channel("CCGT")).all()


def test_one_demand_streams_fill_their_channel_and_others_have_none() -> None:
    row = OneDemandRow(start=START, demand_mw=30_000, published=START + 40 * MIN)
    scans = scans_from({"INDO": [row], "ROLSYSDEM": [row]}, 1800, START, START + 30 * MIN)
    assert scans.channel("INDO").tolist() == [30_000]
    assert np.isfinite(scans.value_SC).sum() == 1


@pytest.mark.parametrize(
    ("step", "start", "end", "message"),
    [
        (60, START, START + MIN, "step 60 s"),
        (300, START, START, "ends"),
        (300, START.replace(tzinfo=None), START, "without zone"),
    ],
)
def test_bad_clocks_are_refused(step: int, start: datetime, end: datetime, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scans_from({"FUELINST": []}, step, start, end)


def test_span_is_rounded_outwards_and_slices_keep_ages() -> None:
    scans = from_columns([], 300, START + 2 * MIN, START + 11 * MIN)
    assert len(scans) == 3
    assert scans.t0_ns[0] == ns(START)
    full = scans_from({"FUELINST": [fuel(0, "CCGT", 1)]}, 300, START, START + 20 * MIN)
    assert full[2:].age_SC[:, CHANNELS.index("CCGT")].tolist() == [2, 3]
    with pytest.raises(ValueError, match="step 2"):
        full[::2]


def test_age_stops_at_254() -> None:
    value = np.full((300, 1), np.nan)
    value[1] = 1.0
    assert ages(value)[:, 0].tolist() == [NEVER, *range(254), *[254] * 45]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 11), st.sampled_from(["CCGT", "WIND", "PS", "INTFR", "INTELE"]),
            st.one_of(st.none(), st.integers(-5, 5)), st.integers(5, 9),
        ),
        max_size=40,
    ),
    st.randoms(use_true_random=False),
    st.sampled_from([300, 1800]),
)  # fmt: skip
def test_order_of_rows_does_not_matter(
    found: list[tuple[int, str, int | None, int]], rng: random.Random, step: int
) -> None:
    rows = [fuel(5 * slot, code, mw, delay) for slot, code, mw, delay in found]
    mixed = rng.sample(rows, len(rows))
    a, b = (scans_from({"FUELINST": given_rows}, step, START, START + 60 * MIN) for given_rows in (rows, mixed))
    same(a, b)
    assert a.counts == b.counts


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_slot_that_was_not_published_stays_nan(there: list[bool]) -> None:
    t0 = ns(START) + np.flatnonzero(there) * 300 * 10**9
    table = Columns(period_s=300, channels=("WIND",), t0_ns=t0, value_HC=np.ones((t0.size, 1)))
    scans = from_columns([table], 300, START, START + len(there) * 5 * MIN)
    np.testing.assert_array_equal(np.isfinite(scans.channel("WIND")), there)
    assert np.isfinite(scans.value_SC).sum() == sum(there)


def test_pivot_prefers_the_number_among_equal_publications() -> None:
    t, zero = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    table, counts = pivot(t, zero, np.array([np.nan, 3.0]), zero, ("CCGT",), 300)
    assert table.value_HC.tolist() == [[3.0]]
    assert counts == {"duplicate": 1}
