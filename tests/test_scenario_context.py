"""Repair of the half-hourly record, the shipped statistics and the contexts cut from either."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.elexon.settlement import DAY_NS, HALF_HOUR_NS, periods_in_day, settlement_label, settlement_start_ns
from gg_ray.records import Context
from gg_ray.scenario import climatology as clim
from gg_ray.scenario import history as hist
from gg_ray.scenario.climatology import Climatology, ClimatologyError
from gg_ray.scenario.context import (
    RARE_EVERY,
    SPLITS,
    ClimatologySource,
    ContextError,
    ContextSource,
    HistorySource,
    context_source,
    split_of,
)
from gg_ray.scenario.history import HistoryError

DATA = Path(os.environ.get("GG_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
with_data = pytest.mark.skipif(not (DATA / hist.FOLDER).is_dir(), reason="no real data: set GG_DATA_DIR")

FUELS = {"CCGT": 9_000, "NUCLEAR": 6_000, "BIOMASS": 2_000, "WIND": 5_000, "PS": -200, "INTFR": 1_000}
INDO = 22_200  # 600 MW of station load below the supply, as in the record


def ns(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


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


@cache
def artificial() -> ClimatologySource:
    return ClimatologySource()


@cache
def real() -> HistorySource:
    return HistorySource(DATA)


SOURCES = [artificial, pytest.param(real, marks=with_data)]


# --- history ---------------------------------------------------------------------------------------------------------


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


# --- climatology -----------------------------------------------------------------------------------------------------


@with_data
def test_deriving_again_gives_the_shipped_file(tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    clim.main([str(DATA), "--out", str(out)])
    shipped_path = Path(clim.__file__).with_name(clim.FILE)
    again, shipped = (json.loads(p.read_text(encoding="utf-8")) for p in (out, shipped_path))
    assert shipped_path.stat().st_size < 300_000
    for name in ("format", "attribution", "command", "inputs_sha256", "half_hours"):
        assert again[name] == shipped[name]

    def same(a: object, b: object) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            assert a.keys() == b.keys()
            for key in a:
                same(a[key], b[key])
        else:
            # One unit of the last decimal: another BLAS may sum in another order.
            np.testing.assert_allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), atol=2e-6)

    for name in ("load", "wind", "shape", "extremes"):
        same(again[name], shipped[name])


def shipped() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(clim.__file__).with_name(clim.FILE).read_text(encoding="utf-8"))
    return record


def test_shipped_statistics_carry_their_attribution() -> None:
    record = shipped()
    assert record["attribution"] == (
        "Contains BMRS data © Elexon Limited copyright and database right 2019, 2021, 2023, 2024"
    )
    assert len(record["inputs_sha256"]) == 4
    assert all(len(str(v)) == 64 for v in record["inputs_sha256"].values())


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("load", "mean", [1.0]),
        ("load", "std", None),
        ("load", "own_lags", [0.9, 0.95, 0.5]),
        ("load", "own_lags", [float("nan"), 0.7, 0.5]),
        ("wind", "quantiles", [[0.9, *[0.5] * 8]] * 12),
        ("wind", "lag1", 1.5),
        ("shape", "std", "wide"),
    ],
)
def test_damaged_statistics_are_refused(part: str, name: str, value: object) -> None:
    record = shipped()
    record[part][name] = value
    with pytest.raises(ClimatologyError):
        Climatology.from_dict(record)


def test_foreign_or_partial_statistics_are_refused() -> None:
    with pytest.raises(ClimatologyError, match="format: 99"):
        Climatology.from_dict(shipped() | {"format": 99})
    with pytest.raises(ClimatologyError, match="wind: NoneType"):
        Climatology.from_dict({k: v for k, v in shipped().items() if k != "wind"})


def test_fitted_processes_have_the_correlations_they_were_given() -> None:
    share, slow, fast = clim.two_scale(0.99, 0.73, 0.64)
    assert share * slow + (1 - share) * fast == pytest.approx(0.99)
    assert share * slow**48 == pytest.approx(0.73)
    assert share * slow**96 == pytest.approx(0.64)
    a, b = clim.smooth_pair(0.9966, 0.4)
    rho = [1.0, a / (1 - b)]
    for _ in range(47):
        rho.append(a * rho[-1] + b * rho[-2])
    assert rho[1] == pytest.approx(0.9966, abs=1e-6)
    assert rho[48] == pytest.approx(0.4, abs=0.01)


def test_bank_holidays_and_day_types() -> None:
    assert date(2024, 3, 29) in clim.bank_holidays(2024)
    assert date(2024, 4, 1) in clim.bank_holidays(2024)
    assert {date(2021, 12, 27), date(2021, 12, 28)} <= clim.bank_holidays(2021)  # substitutes of a weekend Christmas
    assert date(2023, 1, 2) in clim.bank_holidays(2023)
    assert len(clim.bank_holidays(2019)) == 8
    week = [clim.day_type(date(2024, 6, 3) + timedelta(days=i)) for i in range(7)]
    assert week == [0, 0, 0, 0, 0, 1, 2]
    assert clim.day_type(date(2024, 5, 6)) == 2


def test_local_cells_follow_the_clock_on_change_days() -> None:
    def slots(start: str, half_hours: int) -> list[int]:
        t0 = ns(start) + np.arange(half_hours, dtype=np.int64) * HALF_HOUR_NS
        return [int(slot) for slot in clim.local_cells(t0)[2]]

    assert slots("2024-03-31T00:00", 46) == [0, 1, *range(4, 48)]
    assert slots("2024-10-26T23:00", 50) == [0, 1, 2, 3, 2, 3, *range(4, 48)]


def test_a_day_of_noise_depends_on_its_date_and_its_chain_only() -> None:
    model = Climatology.load()
    days = np.arange(12_000, 12_010, dtype=np.int64)
    restart = np.isin(np.arange(10), [0, 4])
    whole = model.generate(days, restart)
    part = model.generate(days[4:], restart[4:])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[4 * 48 :], b)


@with_data
def test_climatology_resembles_the_record() -> None:
    levels = (0.01, 0.1, 0.5, 0.9, 0.99)

    def sample(source: ContextSource, field: str) -> np.ndarray:
        return np.concatenate([getattr(source.day(i, 1_800.0, s), field) for s in SPLITS for i in range(250)])

    for field, tolerance in (("load_T", 0.06), ("wind_T", 0.08), ("shape_T", 0.08)):
        a, b = (np.quantile(sample(source, field), levels) for source in (real(), artificial()))
        np.testing.assert_allclose(a, b, atol=tolerance)
    for field in ("load_T", "wind_T"):  # half-hourly ramps: same spread within a quarter
        a, b = (
            np.std(np.diff([getattr(s.day(i, 1_800.0, "train"), field) for i in range(250)]))
            for s in (real(), artificial())
        )
        assert 0.75 < a / b < 1.34


# --- contexts --------------------------------------------------------------------------------------------------------


def check(context: Context, scans: int, split: str) -> None:
    for name in ("load_T", "wind_T", "shape_T"):
        values = getattr(context, name)
        assert values.shape == (scans,)
        assert np.all(np.isfinite(values))
    assert context.load_T.min() > 0.4
    assert context.load_T.max() < 1.8
    for values in (context.wind_T, context.shape_T):
        assert values.min() >= 0
        assert values.max() <= 1
    last = context.t0_ns + int((scans - 1) * context.step_s * 1e9)
    assert {split_of(t) for t in range(context.t0_ns, last + 1, HALF_HOUR_NS)} | {split_of(last)} == {split}


@pytest.mark.parametrize("make", SOURCES)
@settings(max_examples=60, deadline=None)
@given(
    context_id=st.integers(0, 2**63 - 1),
    split=st.sampled_from(SPLITS),
    scans=st.sampled_from([1, 16, 24, 48, 96]),
    step_s=st.sampled_from([4.0, 60.0, 300.0, 1_800.0]),
)
def test_windows_are_finite_plausible_and_stay_in_their_split(
    make: Callable[[], ContextSource], context_id: int, split: str, scans: int, step_s: float
) -> None:
    source = make()
    check(source.window(context_id, scans, step_s, split), scans, split)


@pytest.mark.parametrize("make", SOURCES)
def test_days_are_whole_distinct_and_stay_in_their_split(make: Callable[[], ContextSource]) -> None:
    source = make()
    starts: set[int] = set()
    for split in SPLITS:
        for index in range(0, source.days(split), 7):
            context = source.day(index, 60.0, split)
            check(context, 1_440, split)
            assert context.t0_ns % DAY_NS == 0
            assert context.t0_ns not in starts
            starts.add(context.t0_ns)


def test_calendar_rule() -> None:
    expected = {"2024-03-01": 2, "2024-12-31": 2, "2024-01-21": 0, "2024-01-22": 1, "2024-02-29": 1, "2024-07-01": 0}
    assert {day: SPLITS.index(split_of(ns(day))) for day in expected} == expected


@pytest.mark.parametrize("make", SOURCES)
def test_number_decides_the_window_whatever_was_asked_before(make: Callable[[], ContextSource]) -> None:
    used = make()
    fresh = HistorySource(DATA) if used.origin == "history" else ClimatologySource()
    for context_id in (0, 1, 2**40):
        used.window(7, 48, 300.0, "test")
        a, b = (s.window(context_id, 16, 60.0, "train") for s in (used, fresh))
        assert a.t0_ns == b.t0_ns
        assert a.context_id == context_id
        for name in ("load_T", "wind_T", "shape_T"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert len({used.window(i, 16, 60.0, "train").t0_ns for i in range(500)}) > 450


def stepped(gap: int | None = None) -> ContextSource:
    """Two January days whose load rises by 0.001 a half-hour."""
    t0 = ns("2024-01-02") + np.arange(96, dtype=np.int64) * HALF_HOUR_NS
    load = 0.9 + 0.001 * np.arange(96)
    keep = np.arange(96) != gap
    bounds = clim.Extremes(load_low=0.92, load_high=0.98, ramp_low=-0.002, ramp_high=0.002)
    flat = np.full(96, 0.5)
    return ContextSource(t0[keep], load[keep], flat[keep], flat[keep], bounds, origin="made")


def test_values_are_linear_between_half_hour_centres() -> None:
    source = stepped()
    for context_id in range(20):
        context = source.window(context_id, 16, 60.0, "train")
        centre = (context.t0_ns - ns("2024-01-02T00:15")) / HALF_HOUR_NS
        np.testing.assert_allclose(context.load_T, 0.9 + 0.001 * (centre + np.arange(16) / 30), atol=1e-12)


def test_day_edges_are_held_where_the_neighbour_is_missing() -> None:
    days = {source.t0_ns: source for source in (stepped().day(i, 900.0, "train") for i in range(2))}
    first, second = (days[t].load_T for t in sorted(days))
    assert first[0] == first[1] == 0.9
    assert second[0] == pytest.approx(0.9475)
    np.testing.assert_allclose(first[1:4], [0.9, 0.9005, 0.901])


def test_a_gap_is_never_bridged() -> None:
    source = stepped(gap=60)
    assert source.days("train") == 1
    inside = ns("2024-01-02T00:15") + 59 * HALF_HOUR_NS, ns("2024-01-02T00:15") + 61 * HALF_HOUR_NS
    for context_id in range(300):
        context = source.window(context_id, 48, 60.0, "train")
        assert context.t0_ns + 47 * 60 * 10**9 <= inside[0] or context.t0_ns >= inside[1]
    with pytest.raises(ContextError, match=r"longest unbroken train run of made has 29\.5 h"):
        source.window(0, 61, 1_800.0, "train")


def test_extremes_are_load_or_ramp_in_the_outer_percent() -> None:
    source = stepped()
    flags = {source.is_extreme(source.window(i, 16, 60.0, "train")) for i in range(50)}
    assert flags == {True, False}  # the ramp is normal, the load is low early and high late

    def context(load: list[float], step_s: float = 60.0) -> Context:
        values = np.array(load)
        return Context(
            context_id=0,
            t0_ns=0,
            step_s=step_s,
            load_T=values,
            wind_T=values,
            shape_T=values,
            split="train",
            origin="x",
        )

    assert not source.is_extreme(context([0.95, 0.95]))
    assert source.is_extreme(context([0.95, 0.951]))  # 0.03 per half-hour
    assert not source.is_extreme(context([0.95, 0.951], step_s=1_800.0))
    assert source.is_extreme(context([0.91]))


@pytest.mark.parametrize("make", SOURCES)
def test_few_but_some_contexts_are_extreme(make: Callable[[], ContextSource]) -> None:
    source = make()
    numbers = np.arange(1_600)
    flags = np.array([[source.is_extreme(source.window(i, 16, 60.0, s)) for i in numbers.tolist()] for s in SPLITS])
    rare = numbers % RARE_EVERY == RARE_EVERY - 1
    assert 0.005 < flags[:, ~rare].mean() < 0.06, "drawn evenly"
    assert flags[:, rare].mean() > 0.99, "every 16th number draws until it is extreme"


@pytest.mark.parametrize("make", SOURCES)
def test_rare_contexts_are_many_and_of_all_kinds(make: Callable[[], ContextSource]) -> None:
    source = make()
    found = [source.window(i, 16, 60.0, "train") for i in range(RARE_EVERY - 1, 100 * RARE_EVERY, RARE_EVERY)]
    assert len({context.t0_ns for context in found}) > 90
    load = np.array([context.load_T.mean() for context in found])
    assert load.min() < 0.7 < 1.3 < load.max()


def test_arguments_out_of_range_are_named() -> None:
    source = artificial()
    with pytest.raises(ContextError, match="split 'dev'"):
        source.window(0, 16, 60.0, "dev")
    with pytest.raises(ContextError, match="context_id -1"):
        source.window(-1, 16, 60.0, "train")
    with pytest.raises(ContextError, match="scans 0"):
        source.window(0, 0, 60.0, "train")
    with pytest.raises(ContextError, match="step_s nan"):
        source.window(0, 16, float("nan"), "train")
    with pytest.raises(ContextError, match=r"day_index 99999: climatology has whole test days 0 to \d+"):
        source.day(99_999, 60.0, "test")
    with pytest.raises(ContextError, match="step_s 0"):
        source.day(0, 0.0, "test")
    good = np.array([0.9])
    with pytest.raises(ContextError, match="not finite"):
        ContextSource(np.array([0]), good * np.nan, good, good, source.bounds, origin="made")
    with pytest.raises(ContextError, match="on the half-hour"):
        ContextSource(np.array([7]), good, good, good, source.bounds, origin="made")


def test_factory_takes_history_only_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert context_source(None).origin == "climatology"
    assert "packaged climatology" in caplog.text
    assert context_source(tmp_path).origin == "climatology"
    assert str(tmp_path) in caplog.text
    (tmp_path / hist.FOLDER).mkdir()
    with pytest.raises(HistoryError, match=r"fuelhh_2019\.csv"):
        context_source(str(tmp_path))


@with_data
def test_factory_reads_the_record() -> None:
    assert context_source(str(DATA)).origin == "history"
