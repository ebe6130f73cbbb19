"""Elexon benchmark: answers to scans, a year re-read from the store, and memory over a week of polling.

Flow:    cli bench elexon -> [bench.elexon] -> one dict of numbers
Source:  FUELINST in shape and size: 20 codes, 288 slots a day; values are random walks.
         One thread, CPU time
Targets: 50,000 rows/s; a year in 5 s; no growth over a week
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from gg_ray.elexon.feeding import Feed
from gg_ray.elexon.parse import parse
from gg_ray.elexon.rows import FUEL_TYPES, FrequencyRow, FuelRow, Row
from gg_ray.elexon.scans import from_columns, scans_from
from gg_ray.elexon.source import Fetched, stream_of
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import DAY

START = datetime(2023, 1, 1, tzinfo=UTC)
SLOTS = 288
REPEATS = 7
_SLOT = timedelta(minutes=5)


def run(seed: int = 0, days: int = 365, week_polls: int = 7 * SLOTS) -> dict[str, Any]:
    """Rates and times.

    Args:    days  of the year that is written and re-read;  week_polls  five minutes apart
    Returns: rows_per_s (parse, check, repair and make scans, per CPU second),
             year_cache_s (CPU; wall in wall_year_cache_s), year_rows, year_mib, year_write_s,
             week_rss_growth_mib (resident memory after the last day less after the first), week_messages.
    """
    # the week before the year: memory that the year gave back would hide a growth
    return {**_parsing(seed), **_week(week_polls), **_year(seed, days), "days": days, "repeats": REPEATS}


def day_rows(day: datetime, rng: np.random.Generator) -> list[Row]:
    """5,760 rows of one day; not validated, since they are made here."""
    mw = (5_000 + np.cumsum(rng.integers(-50, 51, (SLOTS, len(FUEL_TYPES))), axis=0)).tolist()
    return [
        FuelRow.model_construct(
            start=day + i * _SLOT, fuel=fuel, generation_mw=value, published=day + (i + 1) * _SLOT,
            settlement_date=day.date(), settlement_period=i // 6 + 1,
        )
        for i in range(SLOTS) for fuel, value in zip(FUEL_TYPES, mw[i], strict=True)
    ]  # fmt: skip


def _parsing(seed: int) -> dict[str, Any]:
    rows = day_rows(START, np.random.default_rng(seed))
    body = json.dumps({"data": [json.loads(row.model_dump_json(by_alias=True)) for row in rows]}).encode()
    took = []
    for _ in range(REPEATS):
        begun = time.process_time()
        found = parse(stream_of("FUELINST"), body, START, START + DAY)
        scans = scans_from({"FUELINST": found.rows}, 300, START, START + DAY)
        took.append(time.process_time() - begun)
    if len(found.rows) != len(rows) or not np.isfinite(scans.channel("WIND")).all():
        raise RuntimeError(f"{len(rows)} rows went in, {len(found.rows)} came out")
    return {"rows_per_s": len(rows) / float(np.median(took)), "answer_mib": len(body) / 2**20}


def _year(seed: int, days: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        store = DayStore(folder)
        writing = 0.0
        for i in range(days):
            day = START + i * DAY
            rows = day_rows(day, rng)
            begun = time.process_time()
            store.write("FUELINST", day.date(), rows, day + DAY)
            writing += time.process_time() - begun
        end = START + days * DAY
        cpu, wall = time.process_time(), time.perf_counter()
        table = store.read_columns("FUELINST", START, end)
        scans = from_columns([table], 300, START, end)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    if not np.isfinite(scans.channel("WIND")).all():
        raise RuntimeError("the store lost rows")
    return {
        "year_cache_s": cpu, "wall_year_cache_s": wall, "year_rows": days * SLOTS * len(FUEL_TYPES),
        "year_mib": size / 2**20, "year_write_s": writing,
    }  # fmt: skip


def _week(polls: int) -> dict[str, Any]:
    """A feed polled each five minutes of a simulated week; memory is compared once the first day has filled it."""
    feed = Feed(("FUELINST", "FREQ"), 300)
    after_first = said = 0
    for i in range(1, polls + 1):
        mark = START + i * _SLOT
        for fetched in _answers(mark):
            feed.take(fetched)
        said += len(feed.news(mark + timedelta(seconds=30)))
        if i == SLOTS:
            after_first = _rss_bytes()
    growth = (_rss_bytes() - after_first) / 2**20 if after_first else 0.0
    return {"week_rss_growth_mib": growth, "week_messages": said}


def _answers(mark: datetime) -> Iterator[Fetched]:
    """The overlap of each stream, as a poll brings it: six slots of fuels, ten minutes of frequency."""
    slots = [mark - k * _SLOT for k in range(6, 0, -1)]
    fuels: list[Row] = [
        FuelRow.model_construct(start=t, fuel=fuel, generation_mw=1_000 + t.hour * 60 + t.minute, published=t + _SLOT)
        for t in slots for fuel in FUEL_TYPES
    ]  # fmt: skip
    yield Fetched(stream="FUELINST", start=slots[0], end=mark, rows=fuels)
    times = [mark - timedelta(seconds=15 * k) for k in range(40, 0, -1)]
    samples: list[Row] = [
        FrequencyRow.model_construct(time=t, frequency_hz=50 + 0.1 * np.sin(t.timestamp() / 60).item()) for t in times
    ]
    yield Fetched(stream="FREQ", start=times[0], end=mark, rows=samples)


def _rss_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmRSS:")), "VmRSS: 0 kB")
    return int(line.split()[1]) * 1024
