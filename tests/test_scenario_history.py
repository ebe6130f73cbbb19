"""Repair of the half-hourly record: labels, gaps and bad publications, on made rows and on the real files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from elexon_rows import DATA, with_data
from hypothesis import given
from hypothesis import strategies as st
from scenario_sources import ns

from gg_ray.elexon.settlement import HALF_HOUR_NS, periods_in_day, settlement_label, settlement_start_ns
from gg_ray.scenario import history as hist
from gg_ray.scenario.history import HistoryError

FUELS = {"CCGT": 9_000, "NUCLEAR": 6_000, "BIOMASS": 2_000, "WIND": 5_000, "PS": -200, "INTFR": 1_000}
INDO = 22_200  # 600 MW of station load below the supply, as in the record


def row(start: datetime, *, late_label: bool = False, **values: object) -> dict[str, object]:
    """One line of the file's shape; late_label gives the known defect, a settlement date one day on."""
    day, period = settlement_label(int(start.timestamp()) * 10**9)
    label = day + timedelta(days=1) if late_label else day
    blank: dict[str, object] = dict.fromkeys(hist.COLUMNS, 0) | dict.fromkeys(hist.INTERCONNECTORS, "")
    start_utc = start.strftime("%Y-%m-%dT%H:%M:%SZ")
    names = {"settlement_date": label.isoformat(), "settlement_period": period, "period_start_utc": start_utc}
    return blank | names | {**FUELS, "INDO": INDO} | values


def day_rows(start: str, half_hours: int) -> Iterator[dict[str, object]]:
    first = datetime.fromisoformat(start).replace(tzinfo=UTC)
    return (row(first + timedelta(minutes=30 * i)) for i in range(half_hours))


def write(path: Path, rows: list[dict[str, object]], drop: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in hist.COLUMNS if name != drop]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("day", "periods"),
    [("2019-03-31", 46), ("2019-10-27", 50), ("2023-10-29", 50), ("2024-10-27", 50), ("2024-06-04", 48)],
)
def test_clock_change_days_have_46_or_50_periods_and_labels_round_trip(day: str, periods: int) -> None:
    local = date.fromisoformat(day)
    assert periods_in_day(local) == periods
    starts = [settlement_start_ns(local, p) for p in range(1, periods + 1)]
    assert all(start is not None for start in starts)
    assert [settlement_label(start) for start in starts if start] == [(local, p) for p in range(1, periods + 1)]
    assert settlement_start_ns(local, periods + 1) is None
    assert settlement_start_ns(local, 0) is None


@given(st.integers(ns("2001-01-01") // HALF_HOUR_NS, ns("2030-01-01") // HALF_HOUR_NS))
def test_label_and_utc_round_trip(index: int) -> None:
    assert settlement_start_ns(*settlement_label(index * HALF_HOUR_NS)) == index * HALF_HOUR_NS


def test_summer_period_1_starts_at_23_utc_of_the_day_before() -> None:
    assert settlement_start_ns(date(2024, 7, 2), 1) == ns("2024-07-01T23:00")


def test_late_date_label_moves_indo_and_leaves_fuels(tmp_path: Path) -> None:
    # As filed: the fuels of 1 February 23:30 beside the INDO of 2 February 23:30, and so on.
    first, second = datetime(2019, 2, 1, 23, 30, tzinfo=UTC), datetime(2019, 2, 2, 23, 30, tzinfo=UTC)
    rows = [
        *day_rows("2019-02-01", 47),
        row(first, late_label=True, WIND=4_000, INDO=23_000),
        row(second, late_label=True, WIND=7_000, INDO=24_000),
    ]
    t0, load, fuel = hist.read_year(write(tmp_path / "f.csv", rows))
    wind = fuel[:, len(hist.SYNCHRONOUS)]
    at = {int(t): i for i, t in enumerate(t0)}
    assert wind[at[ns("2019-02-01T23:30")]] == 4_000
    assert wind[at[ns("2019-02-02T23:30")]] == 7_000
    assert load[at[ns("2019-02-02T23:30")]] == 23_000  # where its own label says
    assert np.isnan(load[at[ns("2019-02-01T23:30")]])  # no INDO carries that label
    assert np.all(load[:47] == INDO)


def test_unplaceable_labels_and_bad_publications_become_gaps(tmp_path: Path) -> None:
    rows = list(day_rows("2023-05-02", 48))
    rows[3] |= dict.fromkeys(FUELS, 0)  # dead generation, zeros as published
    rows[5] |= {"CCGT": 5_000}  # one dead five-minute record: 4 GW short
    rows[7] |= {"INDO": ""}
    rows[9] |= {"settlement_date": "2023-05-09"}  # no known defect: dropped, not guessed
    rows[11] |= {"settlement_period": 40}
    rows[13] |= {"CCGT": 7_500}  # a 1.5 GW residual happens in good data
    rows[15] |= {"WIND": ""}
    _, load, fuel = hist.read_year(write(tmp_path / "f.csv", rows))
    assert np.flatnonzero(~hist.balanced(load, fuel)).tolist() == [3, 5, 7, 9, 11, 15]


@pytest.mark.parametrize(
    ("change", "drop", "message"),
    [
        ({"CCGT": "n/a"}, "", "row 4, column CCGT: 'n/a'"),
        ({"INDO": "inf"}, "", "row 4, column INDO: 'inf'"),
        ({"period_start_utc": "2023-05-02T00:30:00Z"}, "", "row 4, period_start_utc: .* already stood in row 3"),
        ({"period_start_utc": "2023-05-02T01:00:00"}, "", "row 4, column period_start_utc: .* offset or Z"),
        ({"period_start_utc": "2023-05-02T01:07:00Z"}, "", "row 4, column period_start_utc: .* not on the half-hour"),
        ({"settlement_date": "02/05/2023"}, "", "row 4, settlement_date"),
        ({}, "NUCLEAR", "row 1: no column 'NUCLEAR'"),
    ],
)
def test_bad_file_names_file_row_and_column(tmp_path: Path, change: dict[str, object], drop: str, message: str) -> None:
    rows = list(day_rows("2023-05-02", 4))
    rows[2] |= change
    path = write(tmp_path / "fuelhh_2023.csv", rows, drop)
    with pytest.raises(HistoryError, match=message) as error:
        hist.read_year(path)
    assert "fuelhh_2023.csv" in str(error.value)


def test_missing_cut_off_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"fuelhh_2019\.csv: no such file"):
        hist.read_history(tmp_path)
    path = write(tmp_path / "f.csv", list(day_rows("2023-05-02", 4)))
    path.write_text(path.read_text(encoding="utf-8")[:-60], encoding="utf-8")
    with pytest.raises(HistoryError, match=r"row 5: .* cut off"):
        hist.read_year(path)
    with pytest.raises(HistoryError, match="no rows"):
        hist.read_year(write(tmp_path / "f.csv", []))


def test_same_label_twice_is_refused(tmp_path: Path) -> None:
    rows = [row(datetime(2021, 3, d, 23, 30, tzinfo=UTC), late_label=d == 1) for d in (1, 2)]
    with pytest.raises(HistoryError, match="row 3, settlement_date, settlement_period: same label as row 2"):
        hist.read_year(write(tmp_path / "f.csv", rows))


@with_data
@pytest.mark.parametrize(
    ("year", "late", "no_indo", "unbalanced"),
    [(2019, 363, 100, 21), (2021, 255, 250, 13), (2023, 0, 0, 42), (2024, 0, 0, 23)],
)
def test_real_files_repair_as_their_provenance_says(year: int, late: int, no_indo: int, unbalanced: int) -> None:
    path = DATA / hist.FOLDER / f"fuelhh_{year}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        wrong = [
            line
            for line in csv.DictReader(file)
            if settlement_label(ns(line["period_start_utc"][:-1]))[0].isoformat() != line["settlement_date"]
        ]
    assert len(wrong) == late
    t0, load, fuel = hist.read_year(path)
    residual = fuel.sum(axis=1) - load
    assert np.isnan(load).sum() == no_indo
    keep = hist.balanced(load, fuel)
    # 57 listed below -6 GW, 33 down to -2 GW, 6 more down to -1.4 GW, 3 above +3 GW (two of them change-over days).
    assert ((~keep) & np.isfinite(load)).sum() == unbalanced
    assert np.all(residual[keep] > -2_000)
    if late:  # 894 MW as filed, 49 MW repaired (2019)
        rows = np.isin(t0, [ns(line["period_start_utc"][:-1]) for line in wrong]) & keep
        middle = np.median(residual[rows])
        assert np.median(np.abs(residual[rows] - middle)) < 100


@with_data
def test_every_listed_bad_half_hour_is_gone() -> None:
    record = hist.read_history(DATA)
    with (DATA / "events" / "fuelhh_bad_publication_periods.csv").open(encoding="utf-8", newline="") as file:
        bad = [ns(line["period_start_utc"][:-1]) for line in csv.DictReader(file)]
    assert len(bad) == 57
    assert not np.isin(bad, record.t0_ns).any()
    assert np.all(np.diff(record.t0_ns) > 0)
    assert record.t0_ns.size + record.dropped == 70_077
    assert record.wind_cf.min() >= 0
    assert record.wind_cf.max() == 1
    assert 20_000 < record.load_mw.mean() < 35_000
