"""Rows in the shape that the Insights API sends them: real ones from the data folder where it is, made ones beside."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gg_ray.elexon.history import History, read_any
from gg_ray.elexon.rows import FUEL_TYPES
from gg_ray.elexon.settlement import HALF_HOUR_NS, midnight_ns, settlement_label

DATA = Path(os.environ.get("GG_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared" / "data")
with_data = pytest.mark.skipif(not (DATA / "elexon_fuelhh_indo").is_dir(), reason="no real data: set GG_DATA_DIR")
T0 = datetime(2026, 5, 6, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@cache
def real(name: str, zone: str | None = None) -> History:
    """A history of the data folder, read once for all tests: a large one takes most of a second."""
    return read_any(DATA / name, zone)


def fuelhh_year(year: int) -> History:
    return real(f"elexon_fuelhh_indo/fuelhh_{year}.csv")


def data_file(name: str) -> Path:
    """A file of the data folder; the test skips where the folder is not."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {name}: set GG_DATA_DIR to the data folder")
    return path


def z(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def label(start: datetime) -> dict[str, Any]:
    day, period = settlement_label(int(start.timestamp()) * 10**9)
    return {"settlementDate": day.isoformat(), "settlementPeriod": period}


def fuel(start: datetime, code: str, mw: float | None, *, minutes: int = 5, **other: Any) -> dict[str, Any]:
    """One row of FUELINST (minutes=5) or FUELHH (30), published at the end of its period."""
    row = {"dataset": "FUELINST" if minutes == 5 else "FUELHH", "publishTime": z(start + minutes * MINUTE),
           "startTime": z(start), **label(start), "fuelType": code, "generation": mw}  # fmt: skip
    return row | other


def batch(start: datetime, mw: int = 100, *, minutes: int = 5, **other: Any) -> list[dict[str, Any]]:
    """All twenty codes of one start."""
    return [fuel(start, code, mw + n, minutes=minutes, **other) for n, code in enumerate(FUEL_TYPES)]


def fuels(start: datetime, end: datetime, *, minutes: int = 5) -> list[dict[str, Any]]:
    """Batches of every start in [start, end], newest first as the service sends them."""
    times = [start + n * minutes * MINUTE for n in range(int((end - start) / (minutes * MINUTE)) + 1)]
    return [row for at in reversed(times) for row in batch(at, at.minute, minutes=minutes)]


def freq(start: datetime, values: Iterable[float]) -> list[dict[str, Any]]:
    """Samples 15 s apart, newest first."""
    rows = [
        {"dataset": "FREQ", "measurementTime": z(start + timedelta(seconds=15 * n)), "frequency": hz}
        for n, hz in enumerate(values)
    ]
    return rows[::-1]


def wobble(count: int) -> list[float]:
    """Frequencies with three decimals that do not repeat in runs, Hz."""
    return [round(50 + 0.001 * ((n * 37) % 101 - 50), 3) for n in range(count)]


def demand(start: datetime, indo: int | None = 25_000, itsdo: int | None = 26_000, **other: Any) -> dict[str, Any]:
    """One row of /demand/outturn."""
    row = {"publishTime": z(start + 45 * MINUTE), "startTime": z(start), **label(start), "initialDemandOutturn": indo,
           "initialTransmissionSystemDemandOutturn": itsdo}  # fmt: skip
    return row | other


def body(rows: Any) -> bytes:
    return json.dumps({"data": rows}).encode()


def half_hours(day: str) -> list[datetime]:
    """Starts of every settlement period of a London day."""
    first = midnight_ns(datetime.fromisoformat(day).date())
    stop = midnight_ns(datetime.fromisoformat(day).date() + timedelta(days=1))
    return [datetime.fromtimestamp(ns / 1e9, tz=UTC) for ns in range(first, stop, HALF_HOUR_NS)]


def fuelhh_rows(year: int, days: set[str]) -> list[dict[str, Any]]:
    """Rows of the data folder's FUELHH file whose label is one of the days, in file order, labels as filed."""
    rows = []
    with data_file(f"elexon_fuelhh_indo/fuelhh_{year}.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["settlement_date"] not in days:
                continue
            given = {"settlementDate": line["settlement_date"], "settlementPeriod": int(line["settlement_period"])}
            for code in FUEL_TYPES:
                if line[code]:
                    rows.append(fuel(utc(line["period_start_utc"]), code, int(line[code]), minutes=30, **given))
    return rows


def fuelinst_rows(month: str, start: str, end: str) -> list[dict[str, Any]]:
    """Rows of the data folder's FUELINST month with start in [start, end], in file order."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(data_file(f"elexon_fuelinst_5min/fuelinst_{month}.parquet"))
    at = table["periodStartUTC"]
    inside = table.filter(pc.and_(pc.greater_equal(at, utc(start)), pc.less_equal(at, utc(end))))
    return [
        fuel(row["periodStartUTC"], row["fuelType"], int(row["generationMW"]), publishTime=z(row["publishTimeUTC"]))
        for row in inside.to_pylist()
    ]
