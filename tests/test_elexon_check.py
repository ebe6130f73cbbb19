"""Checks: their counts agree with what is known of the real files, and each defect is found in a small table."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from elexon_rows import DATA, fuelhh_year, real, with_data

from gg_ray.elexon.check import Quality, check, check_path, check_store, residual_outliers
from gg_ray.elexon.events import read_events
from gg_ray.elexon.history import History, HistoryError
from gg_ray.elexon.rows import FUEL_TYPES, FUELS, FuelRow
from gg_ray.elexon.store import DayStore

YEARS = (2019, 2021, 2023, 2024)


def ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


@cache
def year(number: int) -> Quality:
    return check(fuelhh_year(number))


def table(period_s: int = 1800, slots: int = 200, start: str = "2023-05-02", **channels: float) -> History:
    """A table in balance: 600 MW of station load, every code there."""
    values = dict.fromkeys(FUEL_TYPES, 100.0) | {"CCGT": 20_000.0, "INDO": 20_000 + 1_900 - 600} | channels
    t0 = ns(start) + np.arange(slots, dtype=np.int64) * period_s * 10**9
    return History(
        path=Path("made.csv"), form="fuelhh_year", unit="MW", period_s=period_s, channels=tuple(values), t0_ns=t0,
        value_HC=np.tile(np.array(list(values.values())), (slots, 1)), counts=Counter(), shifted=np.empty(0, np.int64),
    )  # fmt: skip


def put(history: History, name: str, slots: slice, value: float) -> None:
    history.value_HC[slots, history.channels.index(name)] = value


def without(history: History, *slots: int) -> History:
    import dataclasses

    keep = ~np.isin(np.arange(history.t0_ns.size), slots)
    return dataclasses.replace(history, t0_ns=history.t0_ns[keep], value_HC=history.value_HC[keep])


# --- the real files --------------------------------------------------------------------------------------------------


@with_data
def test_all_57_labelled_dead_half_hours_are_found_and_no_other() -> None:
    labelled = {event.first_ns for event in read_events(DATA / "events" / "fuelhh_bad_publication_periods.csv")}
    found = {
        t for number in YEARS for stretch in year(number).of("dead_generation")
        for t in range(stretch.first_ns, stretch.last_ns + 1, 1800 * 10**9)
    }  # fmt: skip
    assert len(labelled) == 57
    assert found == labelled
    assert [year(number).counts["dead_generation"] for number in YEARS] == [12, 7, 20, 18]
    assert sum(year(number).counts["short_generation"] for number in YEARS) == 33
    assert sum(year(number).counts["all_zero_slots"] for number in YEARS) == 30


@with_data
def test_real_years_labels_gaps_ratings_and_codes_that_pause() -> None:
    assert [year(number).counts["shifted_label"] for number in YEARS] == [363, 255, 0, 0]
    assert sum(year(number).counts["over_nominal_slots"] for number in YEARS) == 15
    gaps = read_events(DATA / "elexon_fuelhh_indo" / "known_gaps.csv")
    assert len(gaps) == 77
    for number in YEARS:
        listed = sum(event.size or 0 for event in gaps if event.detail.startswith(str(number)))
        assert year(number).counts["missing_slots"] == listed == sum(f.count for f in year(number).of("short_day"))
    assert [f.detail for f in year(2021).of("absent_code")] == ["INTELEC"]  # published as INTELE for four days


@with_data
def test_clock_days_by_start_time_are_whole_where_labels_count_49() -> None:
    # 49 rows carry the label of 2019-10-27 and 2021-10-31; by start time these days have all 50 periods, and the
    # half-hour that was never published is the last one of the day before
    for number, eve in ((2019, "2019-10-26"), (2021, "2021-10-30")):
        assert year(number).counts["days_of_50_periods"] == 1
        assert f"{eve}: 47 of 48 periods" in [f.detail for f in year(number).of("short_day")]
    for number in (2023, 2024):
        assert year(number).counts["days_of_46_periods"] == year(number).counts["days_of_50_periods"] == 1


@with_data
def test_residual_outliers_hold_every_labelled_half_hour() -> None:
    found = [year(number).counts["residual_outliers"] for number in YEARS]
    assert found == [162, 113, 76, 35]  # the 57 labelled ones and 329 more
    others = [f for number in YEARS for kind in ("residual", "short_generation") for f in year(number).of(kind)]
    days = {t // (86_400 * 10**9) for f in others for t in range(f.first_ns, f.last_ns + 1, 1800 * 10**9)}
    assert len(days) == 139


@with_data
def test_real_months_of_five_minute_rows() -> None:
    (march,) = check_path(DATA / "elexon_fuelinst_5min" / "fuelinst_2022-03.parquet")
    assert march.counts["missing_slots"] == 173
    assert march.counts["all_zero_slots"] == 15
    assert march.counts["late_slots"] == 68
    assert march.counts["longest_delay_s"] == 3 * 3600 + 7 * 60
    (burst,) = [f for f in march.of("burst") if f.count == 38]
    assert burst.detail == "published together at 2022-03-17T13:47:00Z"
    assert [f.detail for f in march.of("over_nominal")] == ["INTIFA2 -1,638 MW on 1,000", "INTIRL 702 MW on 500"]
    (june,) = check_path(DATA / "elexon_fuelinst_5min" / "fuelinst_2024-06.parquet")
    assert june.counts == {"all_zero_slots": 7}
    windows = read_events(DATA / "events" / "fuelinst_all_zero_windows.csv")
    dead = [(f.first_ns, f.last_ns, f.count) for f in (*march.of("all_zero"), *june.of("all_zero"))]
    assert dead == [(event.first_ns, event.last_ns, event.size) for event in windows]


@with_data
def test_real_frequency_days_and_the_event() -> None:
    (busy,) = check_path(DATA / "neso_frequency" / "system_frequency_1s_2026-06-22_to_23.parquet", zone="UTC")
    assert busy.counts["s_below_operational"] == 139 + 2_868
    below = busy.of("below_operational")
    assert (len(below), max(f.count for f in below)) == (16, 1_546)
    assert not busy.of("frozen_frequency")
    (event,) = check_path(DATA / "neso_frequency" / "neso-frequency-2019-08-09-event-window.csv")
    assert event.counts["impossible_frequency"] == 0
    moments = {e.kind: e.first_ns for e in read_events(DATA / "events" / "stability-2019-event.toml")}
    assert event.of("below_operational")[0].first_ns - moments["fault"] < 5 * 10**9
    losses = read_events(DATA / "events" / "gb-2019-08-09.toml")
    assert sum(e.size or 0 for e in losses) == 737 + 244 + 210 + 187 + 150 + 350 + 200
    assert losses[0].first_ns == moments["fault"]


@with_data
def test_every_history_of_the_folder_is_read_and_reported() -> None:
    for folder in ("neso_embedded", "lv"):
        for path in sorted((DATA / folder).iterdir()):
            found = check(real(f"{folder}/{path.name}", "UTC"))
            assert found.rows > 0
            json.dumps(found.as_json(), allow_nan=False)


# --- small tables ----------------------------------------------------------------------------------------------------


def test_a_good_table_has_no_finding() -> None:
    good = check(table())
    assert (good.counts, good.findings, good.rows) == ({}, [], 200)


def test_gaps_and_short_days_follow_the_calendar() -> None:
    spring = check(without(table(slots=200, start="2019-03-30"), 60))
    assert spring.counts == {"missing_slots": 1, "short_days": 1, "days_of_45_periods": 1}
    assert spring.of("short_day")[0].detail == "2019-03-31: 45 of 46 periods"
    autumn = check(table(slots=200, start="2024-10-25T23:00"))
    assert autumn.counts == {"days_of_50_periods": 1}


def test_dead_short_and_outlying_half_hours_are_told_apart() -> None:
    found = table()
    for name in FUELS:
        put(found, name, slice(120, 122), 0.0)
    put(found, "CCGT", slice(140, 141), 17_000.0)
    put(found, "CCGT", slice(150, 151), 21_500.0)
    out = check(found)
    assert (out.counts["all_zero_slots"], out.counts["dead_generation"], out.counts["short_generation"]) == (2, 2, 1)
    assert out.counts["residual_outliers"] == 4
    assert [f.first_ns for f in out.of("residual")] == [found.t0_ns[150]]


def test_partial_batch_is_named_and_a_code_that_begins_is_none() -> None:
    found = table()
    put(found, "WIND", slice(70, 71), np.nan)
    put(found, "PS", slice(70, 71), np.nan)
    put(found, "INTVKL", slice(0, 50), np.nan)  # begins to exist
    put(found, "INTELEC", slice(80, 180), np.nan)  # pauses for two days
    out = check(found)
    assert [f.detail for f in out.of("partial")] == ["without PS, WIND"]
    assert [(f.detail, f.count) for f in out.of("absent_code")] == [("INTELEC", 100)]
    assert out.counts["partial_slots"] == 1


def test_over_nominal_is_above_110_percent() -> None:
    found = table(INTNED=1_100.0)
    put(found, "INTNED", slice(5, 6), -1_101.0)
    assert [f.detail for f in check(found).of("over_nominal")] == ["INTNED -1,101 MW on 1,000"]


def frequency(hz: np.ndarray, period_s: int = 15) -> History:
    t0 = ns("2024-06-04") + np.arange(hz.size, dtype=np.int64) * period_s * 10**9
    return History(
        path=Path("f.csv"), form="frequency", unit="Hz", period_s=period_s, channels=("FREQ",), t0_ns=t0,
        value_HC=hz[:, None], counts=Counter(), shifted=np.empty(0, np.int64),
    )  # fmt: skip


def test_frozen_impossible_and_missing_frequency() -> None:
    hz = 50 + 0.01 * np.sin(np.arange(100))
    hz[20:30] = 50.004
    hz[40:44] = 50.001  # repeats, but not for a minute
    hz[60] = 0.0
    out = check(without(frequency(hz), 80))
    assert [(f.count, f.first_ns) for f in out.of("frozen_frequency")] == [(10, ns("2024-06-04T00:05"))]
    assert out.counts["impossible_frequency"] == 1
    assert out.counts["missing_slots"] == 1
    assert out.counts["s_below_operational"] == 15


def test_outliers_look_only_backwards() -> None:
    rng = np.random.default_rng(0)
    residual = 600 + 50 * rng.standard_normal(1_500)
    spoiled = residual.copy()
    spoiled[1_000:] += 5_000
    a, b = residual_outliers(residual), residual_outliers(spoiled)
    np.testing.assert_array_equal(a[:1_000], b[:1_000])
    assert b[1_000]
    assert not residual_outliers(np.full(40, np.nan)).any()


def test_a_store_is_checked_stream_by_stream_with_its_damage(tmp_path: Path) -> None:
    store = DayStore(tmp_path)
    start = datetime(2024, 6, 4, tzinfo=UTC)
    rows = [
        FuelRow(start=t, fuel=code, generation_mw=mw, published=t + timedelta(minutes=5))
        for t in (start + timedelta(minutes=5 * i) for i in range(288)) for code, mw in (("CCGT", 9_000), ("INTELE", 5))
    ]  # fmt: skip
    store.merge("FUELINST", rows, start)
    store.merge("FUELINST", [row.model_copy(update={"start": row.start + timedelta(days=1)}) for row in rows], start)
    store.path("FUELINST", date(2024, 6, 5)).write_bytes(b"torn")
    (found,) = check_path(tmp_path)
    assert found.counts == {"unknown_fuel:INTELE": 288, "damaged_file": 1}
    assert found.rows == 288
    assert check_store(store, "FREQ").rows == 0


def test_report_is_plain_json_and_unknown_files_are_named(tmp_path: Path) -> None:
    text = json.dumps(check(without(table(), 3)).as_json(), allow_nan=False)
    assert '"first": "2023-05-02T01:30:00Z"' in text
    with pytest.raises(HistoryError, match="no such file"):
        check_path(tmp_path / "none.csv")
    events = tmp_path / "gaps.csv"
    events.write_text("settlement_date,actual,expected,shortfall,note\n31-MAR-2019,45,46,1,x\n")
    (event,) = read_events(events)
    assert (event.detail, event.last_ns - event.first_ns) == ("2019-03-31", 45 * 1800 * 10**9)
    with pytest.raises(HistoryError, match="a list of events"):
        check_path(events)
    (tmp_path / "x.toml").write_text("a = 1")
    with pytest.raises(HistoryError, match="neither event times nor losses"):
        read_events(tmp_path / "x.toml")
