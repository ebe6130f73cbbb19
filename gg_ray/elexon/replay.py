"""Recorded hours as a source: files of the data folder or a store, at any speed, moved in time if asked.

Flow:    elexon.history, elexon.store -> [replay] -> data_commands (feed)
Source:  docs/gb-data.md, the feed
Units:   speed is recorded seconds per second; inf does not wait

Replayed rows say so (origin "replay") and raise no operator alarm. The same span gives the same rows, byte for byte.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from pathlib import Path

import numpy as np

from gg_ray.elexon.errors import NotCarried
from gg_ray.elexon.history import History, read_any, sample
from gg_ray.elexon.rows import FUEL_TYPES, DemandRow, FrequencyRow, FuelRow, PeriodRow, Row
from gg_ray.elexon.scans import SAMPLE_S
from gg_ray.elexon.settlement import settlement_label
from gg_ray.elexon.source import STREAMS, Fetched, Health, stream_of
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.tables import HistoryError
from gg_ray.elexon.times import DAY, at_ns, midnight, ns_of


class ReplaySource:
    """GridSource over recorded rows.

    Invariant: fetch() gives the recorded rows of its window moved by `shift`, whatever was asked before; `now()` runs
    from `start` at `speed`, and latest() never gives a row that begins after it.
    """

    name = "replay"

    def __init__(
        self, record: DayStore | Sequence[Path], *, speed: float = math.inf, start: datetime | None = None,
        shift: timedelta = timedelta(0), zone: str | None = None, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        """Args: start  where now() begins, in moved time; the first row when not given.

        Raises: ValueError for a speed that is not above 0; HistoryError for a file that cannot be replayed.
        """
        if not speed > 0:
            raise ValueError(f"speed {speed}: more than 0, inf for as fast as possible")
        self.shift, self.speed = shift, speed
        self._store = record if isinstance(record, DayStore) else None
        self._where = str(record.root) if isinstance(record, DayStore) else ", ".join(map(str, record))
        self._tables = {} if isinstance(record, DayStore) else _tables(record, zone)
        if isinstance(record, DayStore):
            self.streams = tuple(name for name in STREAMS if record.days(name))
        else:
            self.streams = tuple(name for name in STREAMS if name in self._tables)
        self._clock, self._sleep = clock, sleep
        self._began, self._at = clock(), start or self.span()[0]
        self._reached = self._at

    def span(self) -> tuple[datetime, datetime]:
        """First and last recorded time of all streams, moved; from midnight to midnight for a store.

        Raises: NotCarried when nothing is recorded.
        """
        if not self.streams:
            raise NotCarried(f"replay: nothing is recorded in {self._where}; gg-ray data fetch fills a store")
        first, last = [], []
        for name in self.streams:
            if self._store is not None:
                days = self._store.days(name)
                first.append(midnight(days[0]))
                last.append(midnight(days[-1]) + DAY)
            else:
                times = [table.t0_ns[i] for table in self._tables[name] for i in (0, -1)]
                first.append(at_ns(min(times)))
                last.append(at_ns(max(times)) + stream_of(name).cadence)
        return min(first) + self.shift, max(last) + self.shift

    def now(self) -> datetime:
        """Moved time of the replay. At speed inf it is as far as `wait_until` went."""
        if math.isinf(self.speed):
            return self._reached
        return self._at + timedelta(seconds=(self._clock() - self._began) * self.speed)

    async def wait_until(self, t: datetime) -> None:
        """Return when the replay has reached t; at once at speed inf."""
        self._reached = max(self._reached, t)
        while not math.isinf(self.speed) and (left := (t - self.now()).total_seconds()) > 0:
            await self._sleep(left / self.speed)

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        """Recorded rows of [start, end] in moved time, oldest first.  Raises: NotCarried, UnknownStream."""
        name = stream_of(stream).name
        if name not in self.streams:
            raise NotCarried(f"replay: {name} is not recorded there; recorded are {', '.join(self.streams) or 'none'}")
        window = (start - self.shift, end - self.shift)
        if self._store is not None:
            rows = self._store.read(name, *window)
        else:
            found = (row for table in self._tables[name] for row in rows_of(table, name, *window))
            rows = sorted(found, key=attrgetter("key"))
        if self.shift:
            rows = [_moved(row, self.shift) for row in rows]
        stale = max(0.0, (self.now() - rows[-1].at).total_seconds()) if rows else 0.0
        return Fetched(
            stream=name, start=start, end=end, rows=rows, origin="replay", stale_s=stale + self.shift.total_seconds()
        )

    async def latest(self, stream: str) -> Fetched:
        """Rows of the stream's overlap before now() whose period is over."""
        known, now = stream_of(stream), self.now()
        return await self.fetch(known.name, known.recent(now)[0], now - known.cadence)

    async def health(self) -> Health:
        if not self.streams:
            return Health(source=self.name, usable=False, detail=f"nothing is recorded in {self._where}")
        first, last = self.span()
        return Health(
            source=self.name,
            usable=True,
            detail=f"{', '.join(self.streams)}: {first.isoformat()} to {last.isoformat()}",
        )

    async def aclose(self) -> None:
        return None


def rows_of(table: History, stream: str, start: datetime, end: datetime) -> Iterable[Row]:
    """Rows of a wide table whose time lies in [start, end], as the service would send them; blanks are left out.

    Settlement labels are derived from the start; publish times are those of the table, None where it has none.
    """
    low, high = np.searchsorted(table.t0_ns, ns_of(start)), np.searchsorted(table.t0_ns, ns_of(end), side="right")
    names = [name for name in _CHANNELS_OF[stream] if name in table.channels]
    at = [table.channels.index(name) for name in names]
    published = table.published_ns_HC
    for i in range(int(low), int(high)):
        t, values = at_ns(table.t0_ns[i]), table.value_HC[i, at].tolist()
        if stream == "FREQ":
            if math.isfinite(values[0]):
                yield FrequencyRow.model_construct(time=t, frequency_hz=values[0])
            continue
        day, period = settlement_label(int(table.t0_ns[i]))
        whole = [round(value) if math.isfinite(value) else None for value in values]
        if stream == "DEMAND":
            found = dict(zip(names, whole, strict=True))
            if any(value is not None for value in whole):
                yield DemandRow.model_construct(
                    start=t, indo_mw=found.get("INDO"), itsdo_mw=found.get("ITSDO"), settlement_date=day,
                    settlement_period=period,
                )  # fmt: skip
            continue
        for name, column, value in zip(names, at, whole, strict=True):
            if value is not None:
                when = 0 if published is None else int(published[i, column])
                yield FuelRow.model_construct(
                    start=t, fuel=name, generation_mw=value, published=at_ns(when) if when else None,
                    settlement_date=day, settlement_period=period,
                )  # fmt: skip


_CHANNELS_OF = {"FUELHH": FUEL_TYPES, "FUELINST": FUEL_TYPES, "DEMAND": ("INDO", "ITSDO"), "FREQ": ("FREQ",)}


def _tables(paths: Sequence[Path], zone: str | None) -> dict[str, list[History]]:
    out: dict[str, list[History]] = {}
    for path in paths:
        table = read_any(path, zone)
        if table.form == "fuelhh_year":
            names = ["FUELHH", "DEMAND"]
        elif table.form in ("fuel_long", "fuelinst_legacy"):
            names = ["FUELHH" if table.period_s == 1800 else "FUELINST"]
        elif table.form == "frequency":
            names = ["FREQ"]
            if table.period_s < SAMPLE_S:  # as the live feed shows it
                table = sample(table, SAMPLE_S)
        else:
            raise HistoryError(f"{path}: {table.form} is no stream; FUELHH, FUELINST, DEMAND and FREQ are replayed")
        for name in names if table.t0_ns.size else ():
            out.setdefault(name, []).append(table)
    return out


def _moved(row: Row, shift: timedelta) -> Row:
    """A row with every time of it moved and its settlement label derived anew."""
    times = {name: value + shift for name, value in row if isinstance(value, datetime)}
    out = row.model_copy(update=times)
    if isinstance(out, PeriodRow) and out.settlement_date is not None:
        day, period = settlement_label(ns_of(out.start))
        out = out.model_copy(update={"settlement_date": day, "settlement_period": period})
    return out
