"""Histories: every form of the data folder with its defects, on the real files where they are there."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from elexon_rows import DATA, fuelhh_year, real, with_data
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.elexon.halfhours import REQUIRED
from gg_ray.elexon.history import HistoryError, read_any, sample
from gg_ray.elexon.scans import from_columns
from gg_ray.elexon.settlement import settlement_label
from gg_ray.elexon.tables import parse_date


def ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def long_file(path: Path, rows: Sequence[tuple[str, str, float | None, str | None]], source: str = "Elexon") -> Path:
    """The shape of fuelinst_*.parquet: (start, fuel, MW, published)."""
    stamp = pa.timestamp("us", tz="UTC")
    start, fuel, mw, published = zip(*rows, strict=True)
    when = [[None if t is None else datetime.fromisoformat(f"{t}+00:00") for t in part] for part in (start, published)]
    solar = [("Sheffield Solar PVLive" if code == "SOLAR" else source) for code in fuel]
    pq.write_table(
        pa.table(
            {
                "source": solar, "periodStartUTC": pa.array(when[0], stamp), "fuelType": list(fuel),
                "generationMW": pa.array(mw, pa.float64()), "publishTimeUTC": pa.array(when[1], stamp),
                "dataset": ["fuelinst"] * len(rows),
            }
        ),
        path,
    )  # fmt: skip
    return path


# --- yearly half-hours -----------------------------------------------------------------------------------------------


def test_shifted_label_moves_both_demands_and_leaves_the_fuels(tmp_path: Path) -> None:
    def line(day: str, period: int, start: str, wind: int, indo: int) -> str:
        values = dict.fromkeys(REQUIRED[3:], "0") | {"WIND": str(wind), "INDO": str(indo)}
        return ",".join([day, str(period), start, *values.values(), str(indo + 1500)])

    path = write(
        tmp_path / "fuelhh.csv", ",".join((*REQUIRED, "ITSDO")),
        line("2019-02-02", 47, "2019-02-02T23:00:00Z", 5, 22_000),
        line("2019-02-02", 48, "2019-02-01T23:30:00Z", 4, 23_000),
        line("2019-02-03", 48, "2019-02-02T23:30:00Z", 7, 24_000),
    )  # fmt: skip
    history = read_any(path)
    assert history.t0_ns.tolist() == [ns(f"2019-02-{t}") for t in ("01T23:30", "02T23:00", "02T23:30")]
    assert history.channel("WIND").tolist() == [4, 5, 7]
    np.testing.assert_array_equal(history.channel("INDO"), [np.nan, 22_000, 23_000])
    np.testing.assert_array_equal(history.channel("ITSDO"), [np.nan, 23_500, 24_500])
    assert history.counts == {"shifted_label": 2, "demand_without_row": 1, "blank_indo": 1}
    assert history.shifted.tolist() == [ns("2019-02-01T23:30"), ns("2019-02-02T23:30")]


@given(st.integers(0, 6), st.integers(0, 6))
def test_demands_survive_the_shifted_label(tmp_path_factory: pytest.TempPathFactory, late: int, right: int) -> None:
    """`late` last half-hours of a day with the next day's label and demand, then `right` ones as they should be."""
    if not late + right:
        return
    first = date(2019, 11, 4)
    lines = [",".join((*REQUIRED, "ITSDO"))]
    for i in range(late + right):
        shifted = i < late
        start = first + timedelta(days=i if shifted else i + 1)  # the row of the change-over is not there
        label = start + timedelta(days=shifted)
        values = dict.fromkeys(REQUIRED[3:], "0") | {"WIND": str(start.toordinal()), "INDO": str(label.toordinal())}
        lines.append(",".join([label.isoformat(), "48", f"{start}T23:30:00Z", *values.values(), "1"]))
    history = read_any(write(tmp_path_factory.mktemp("h") / "f.csv", *lines))
    wind, indo = history.channel("WIND"), history.channel("INDO")
    there = np.isfinite(indo)
    np.testing.assert_array_equal(indo[there], wind[there])
    assert there.sum() == max(0, late - 1) + right
    assert history.counts["shifted_label"] == late


@with_data
@pytest.mark.parametrize(
    ("year", "rows", "shifted", "blank", "edges"),
    [
        (2019, 17_497, 363, 100, ("2018-12-31T23:30", "2019-12-31T23:00")),
        (2021, 17_494, 255, 250, ("2020-12-31T23:30", "2021-12-31T23:00")),
        (2023, 17_518, 0, 0, ("2023-01-01T00:00", "2023-12-31T23:30")),
        (2024, 17_568, 0, 0, ("2024-01-01T00:00", "2024-12-31T23:30")),
    ],
)
def test_real_years_as_their_provenance_says(
    year: int, rows: int, shifted: int, blank: int, edges: tuple[str, str]
) -> None:
    history = fuelhh_year(year)
    assert history.t0_ns.size == rows
    assert history.counts["shifted_label"] == history.shifted.size == shifted
    assert history.counts["blank_indo"] == np.isnan(history.channel("INDO")).sum() == blank
    assert (history.t0_ns[0], history.t0_ns[-1]) == (ns(edges[0]), ns(edges[1]))
    load = history.channel("ITSDO") - history.channel("INDO")
    assert np.nanpercentile(load, 0.1) >= 500  # station load, both demands moved together
    scans = from_columns([history], 1800, int(history.t0_ns[0]), int(history.t0_ns[-1]) + 1)
    assert len(scans) == (history.t0_ns[-1] - history.t0_ns[0]) // (1800 * 10**9) + 1
    there = np.isfinite(scans.channel("CCGT"))
    assert there.sum() == rows


# --- five-minute rows ------------------------------------------------------------------------------------------------


def test_long_form_in_any_order_with_repeats_strangers_and_misspelt_codes(tmp_path: Path) -> None:
    rows = [
        ("2021-09-10T00:05", "CCGT", 9100.0, "2021-09-10T00:10"),
        ("2021-09-10T00:00", "CCGT", 9000.0, "2021-09-10T00:05"),
        ("2021-09-10T00:00", "CCGT", 9001.0, "2021-09-10T03:05"),  # corrected later
        ("2021-09-10T00:05", "CCGT", 9100.0, "2021-09-10T00:10"),  # the row of the boundary twice
        ("2021-09-10T00:00", "INTELE", 400.0, "2021-09-10T00:05"),  # published for INTELEC in September 2021
        ("2021-09-10T00:00", "SOLAR", 10.0, None),
        ("2021-09-10T00:02", "CCGT", 1.0, "2021-09-10T00:07"),
        ("2021-09-10T00:05", "WIND", None, "2021-09-10T00:10"),
        ("2021-09-10T00:00", "PS", -500.0, "2021-09-10T00:05"),
    ]
    history = read_any(long_file(tmp_path / "x.parquet", rows))
    assert history.counts == {
        "foreign_row": 1, "unknown_fuel:INTELE": 1, "off_grid": 1, "superseded": 1, "duplicate": 1, "null": 1
    }  # fmt: skip
    assert history.channels == ("CCGT", "PS")
    np.testing.assert_array_equal(history.value_HC, [[9001, -500], [9100, np.nan]])
    assert history.published_ns_HC is not None
    assert history.published_ns_HC[0, 0] == ns("2021-09-10T03:05")


@with_data
def test_real_march_2022_has_its_gaps_dead_window_and_burst() -> None:
    history = read_any(DATA / "elexon_fuelinst_5min" / "fuelinst_2022-03.parquet")
    scans = from_columns([history], 300, ns("2022-03-01"), ns("2022-04-01"))
    missing = np.isnan(scans.value_SC).all(axis=1)
    day = scans.t0_ns.astype("datetime64[ns]").astype("datetime64[D]")
    assert (len(scans), missing.sum()) == (8_928, 173)
    assert [int(missing[day == np.datetime64(f"2022-03-{d}")].sum()) for d in (18, 19)] == [89, 59]
    dead = scans.t0_ns[scans.all_zero]
    assert (dead.size, dead[0], dead[-1]) == (15, ns("2022-03-17T10:35"), ns("2022-03-17T11:45"))
    assert np.nanmin(scans.channel("INTIFA2")) == -1_638
    assert not scans.without_dead().all_zero.any()
    # a live reader saw nothing for three hours, then 38 slots at once
    seen = scans.as_known(ns("2022-03-17T13:46"))
    newest = seen.t0_ns[np.isfinite(seen.value_SC).any(axis=1)][-1]
    burst = scans.as_known(ns("2022-03-17T13:48"))
    assert ns("2022-03-17T13:46") - newest > 3 * 3600 * 10**9
    assert np.isfinite(burst.channel("CCGT")).sum() - np.isfinite(seen.channel("CCGT")).sum() == 38


@with_data
def test_real_june_2024_is_whole_and_its_means_are_those_of_fuelhh() -> None:
    five = read_any(DATA / "elexon_fuelinst_5min" / "fuelinst_2024-06.parquet")
    assert (five.t0_ns.size, len(five.channels), dict(five.counts)) == (8_640, 19, {})
    scans = from_columns([five], 300, ns("2024-06-01"), ns("2024-07-01"))
    dead = scans.t0_ns[scans.all_zero]
    assert (dead.size, dead[0], dead[-1]) == (7, ns("2024-06-04T12:35"), ns("2024-06-04T13:05"))
    half, means = (
        from_columns([table], 1800, ns("2024-06-01"), ns("2024-07-01")) for table in (fuelhh_year(2024), five)
    )
    off = np.abs(half.channel("CCGT") - means.channel("CCGT"))
    assert np.median(off) <= 1
    assert np.percentile(off, 99) <= 88


@with_data
def test_legacy_form_is_unknown_where_it_was_clipped_and_starts_when_its_label_says() -> None:
    path = DATA / "elexon_fuelinst_5min" / "fuelinst_legacy_2019-07-01_03.csv"
    legacy = read_any(path)
    assert legacy.t0_ns[0] == ns("2019-06-30T23:55")
    assert legacy.counts["label_disagrees"] == 0
    assert np.nanmin(legacy.channel("PS")) > 0
    assert legacy.counts["clipped_unknown"] == 1_757
    assert np.all(legacy.channel("COAL") == 0)  # a fuel that was 0 is 0
    half = fuelhh_year(2019)
    means = from_columns([legacy], 1800, ns("2019-07-01"), ns("2019-07-02"))
    record = from_columns([half], 1800, ns("2019-07-01"), ns("2019-07-02"))
    off = np.abs(means.channel("CCGT") - record.channel("CCGT"))
    assert np.nanmedian(off) < 2  # five minutes off would be 38 MW, an hour 465


# --- frequency -------------------------------------------------------------------------------------------------------


def test_time_without_offset_is_refused_until_the_zone_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "dtm,f", "2019-10-27 00:59:59,50.0", "2019-10-27 01:00:00,50.1")
    with pytest.raises(HistoryError, match=r"f\.csv: column dtm carries no offset, .* say --zone UTC or"):
        read_any(path)
    assert read_any(path, zone="UTC").t0_ns[1] == ns("2019-10-27T01:00")
    assert read_any(path, zone="Europe/London").t0_ns[0] == ns("2019-10-26T23:59:59")


def test_the_hour_that_runs_twice_is_told_by_the_order_of_rows(tmp_path: Path) -> None:
    local = [f"2019-10-27 {t}" for t in ("00:30:00", "01:00:00", "01:30:00", "01:00:00", "01:30:00", "02:00:00")]
    path = write(tmp_path / "f.csv", "dtm,f", *(f"{t},50" for t in local))
    t0 = read_any(path, zone="Europe/London").t0_ns
    assert np.diff(t0).tolist() == [1800 * 10**9] * 5
    spring = write(tmp_path / "g.csv", "dtm,f", "2019-03-31 01:30:00,50")  # no such time in London
    with pytest.raises(HistoryError, match="is the zone 'Europe/London' right"):
        read_any(spring, zone="Europe/London")


@with_data
def test_real_event_window_skips_comments_and_its_nadir_depends_on_the_phase() -> None:
    trace = read_any(DATA / "neso_frequency" / "neso-frequency-2019-08-09-event-window.csv")
    assert (trace.period_s, trace.t0_ns.size, trace.t0_ns[0]) == (1, 540, ns("2019-08-09T15:51"))
    assert trace.channel("FREQ")[trace.t0_ns == ns("2019-08-09T15:53:49")] == 48.787
    nadirs = [sample(trace, 15, phase).channel("FREQ").min() for phase in range(15)]
    assert (min(nadirs), max(nadirs), nadirs[0]) == (48.787, 48.932, 48.892)
    scans = from_columns([trace], 300, ns("2019-08-09T15:50"), ns("2019-08-09T16:00"))
    assert scans.freq_min_S.min() == 48.787
    with pytest.raises(ValueError, match="phase 15"):
        sample(trace, 15, 15)


@with_data
def test_real_one_second_days_need_their_zone() -> None:
    path = DATA / "neso_frequency" / "system_frequency_1s_2026-06-22_to_23.parquet"
    with pytest.raises(HistoryError, match="no offset"):
        read_any(path)
    utc, bst = read_any(path, zone="UTC"), read_any(path, zone="Europe/London")
    assert utc.t0_ns.size == 172_800
    assert np.all(utc.t0_ns - bst.t0_ns == 3600 * 10**9)
    hz = utc.channel("FREQ")
    assert (hz.min(), hz.max(), (hz < 49.8).sum()) == (49.657, 50.208, 139 + 2_868)


# --- the other files -------------------------------------------------------------------------------------------------


@with_data
def test_real_embedded_year_has_right_clock_days() -> None:
    table = read_any(DATA / "neso_embedded" / "embedded_2019.csv")
    days = [settlement_label(int(t))[0] for t in table.t0_ns]
    assert (days.count(date(2019, 3, 31)), days.count(date(2019, 10, 27))) == (46, 50)
    assert table.counts == {}
    assert table.channel("embedded_solar_mw").max() > 9_000
    assert np.isnan(
        from_columns([table], 1800, ns("2019-01-01"), ns("2019-01-02")).value_SC
    ).all()  # no channel of ours


def test_byte_order_mark_dd_mon_yyyy_and_blanks_around_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "demand.csv", "SETTLEMENT_DATE,SETTLEMENT_PERIOD,ND,TSD,EMBEDDED_WIND_GENERATION",
        "31-MAR-2019,46, 23000 ,24000,", "01-Apr-2019,1,22000, 23000,12 ", encoding="utf-8-sig",
    )  # fmt: skip
    table = read_any(path)
    assert table.t0_ns.tolist() == [ns("2019-03-31T22:30"), ns("2019-03-31T23:00")]  # SP1 in summer time
    assert table.channel("ND").tolist() == [23_000, 22_000]
    assert np.isnan(table.channel("EMBEDDED_WIND_GENERATION")[0])
    write(path, "SETTLEMENT_DATE,SETTLEMENT_PERIOD,ND", "31-MAR-2019,47,1")
    with pytest.raises(HistoryError, match="row 2, column SETTLEMENT_PERIOD: 2019-03-31 has no period 47"):
        read_any(path)


@pytest.mark.parametrize("text", ["2019-03-31", "31-MAR-2019", "31-mar-2019", " 31-Mar-2019 "])
def test_two_styles_of_date(text: str) -> None:
    assert parse_date(text) == date(2019, 3, 31)


@pytest.mark.parametrize("text", ["31/03/2019", "31-MAR-19", "2019-3-31", "", "31-XYZ-2019"])
def test_other_dates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_date(text)


def test_ids_keep_their_leading_zeros(tmp_path: Path) -> None:
    path = write(
        tmp_path / "feeders.csv", "dataset_id,data_collection_log_timestamp,total_consumption_active_import",
        "040,2025-10-18T01:00:00Z,3496", "005,2025-10-18T01:00:00Z,", encoding="utf-8-sig",
    )  # fmt: skip
    feeders = read_any(path)
    assert feeders.channels == ("005", "040")
    np.testing.assert_array_equal(feeders.value_HC, [[np.nan, 3496]])


@with_data
def test_real_low_voltage_files() -> None:
    path = DATA / "lv" / "LCL_block_62_3households_2013-2014.csv"
    with pytest.raises(HistoryError, match="2013-03-31 01:30:00"):
        read_any(path, zone="Europe/London")  # a time that London's clocks skip: the meters ran on GMT all year
    homes = real(f"lv/{path.name}", "UTC")
    assert (len(homes.channels), homes.t0_ns.size, homes.unit) == (3, 20_305, "kWh")
    assert np.nanmax(homes.value_HC) == pytest.approx(4.19, abs=0.01)
    feeders = real("lv/ssen_lv_feeder_sample_2025-10-18.csv", "UTC")
    assert (len(feeders.channels), feeders.t0_ns.size) == (30, 1)


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_unknown_missing_torn_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"none\.csv: no such file"):
        read_any(tmp_path / "none.csv")
    with pytest.raises(HistoryError, match=r"a\.csv: columns a, b are no known form. Known by: .*fuelType"):
        read_any(write(tmp_path / "a.csv", "a,b", "1,2"))
    with pytest.raises(HistoryError, match="a list of events"):
        read_any(write(tmp_path / "e.csv", "first_utc,last_utc,n_5min_records"))
    with pytest.raises(HistoryError, match=r"row 3: 1 values for 2 columns"):
        read_any(write(tmp_path / "f.csv", "utc_time,frequency_hz", "2019-08-09T15:51:00Z,50", "2019-08"))
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(HistoryError, match="not UTF-8"):
        read_any(tmp_path / "x.csv")
    whole = long_file(tmp_path / "w.parquet", [("2024-06-01T00:00", "CCGT", 1.0, "2024-06-01T00:05")])
    (tmp_path / "torn.parquet").write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(HistoryError, match=r"torn\.parquet: no readable Parquet"):
        read_any(tmp_path / "torn.parquet")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("2019-08-09T15:51:00,50",), "row 4, column utc_time: .* no time with an offset or Z"),
        (("2019-08-09T15:51:00Z,fifty",), "row 4, column frequency_hz: 'fifty' is no number"),
        (("2019-08-09T15:51:00Z,nan",), "row 4, column frequency_hz: 'nan' is not finite"),
        (("2019-08-09T15:51:00Z,50", "2019-08-09T16:51:00+01:00,51"), "row 5: a second row of the same time"),
    ],
)
def test_errors_name_file_row_and_column_as_an_editor_counts(
    tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    path = write(tmp_path / "f.csv", "# one", "# two", "utc_time,frequency_hz", *lines)
    with pytest.raises(HistoryError, match=message) as error:
        read_any(path)
    assert str(path) in str(error.value)


@with_data
def test_known_gaps_file_lists_77_short_days() -> None:
    with (DATA / "elexon_fuelhh_indo" / "known_gaps.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 77
    assert all(int(row["expected"]) - int(row["actual"]) == int(row["shortfall"]) for row in rows)


def test_repeated_equal_rows_are_counted(tmp_path: Path) -> None:
    stamp = (datetime(2019, 8, 9, tzinfo=UTC) + timedelta(seconds=1)).isoformat()
    history = read_any(write(tmp_path / "f.csv", "utc_time,frequency_hz", f"{stamp},50", f"{stamp},50"))
    assert (history.t0_ns.size, history.counts) == (1, {"duplicate": 1})
