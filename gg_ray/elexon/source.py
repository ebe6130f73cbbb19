"""What every source of GB data looks like, and the streams that there are.

Flow:    insights, iris, elexondataportal, replay -> [source] -> data_commands, elexon.feeding
Source:  Insights API schema of June 2026; cadences and ranges in docs/gb-data.md
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from gg_ray.elexon.errors import UnknownStream
from gg_ray.elexon.rows import DailyDemandRow, DemandRow, FrequencyRow, FuelRow, OneDemandRow, Row, WarningRow

Asks = Literal["publish", "settlement", "measurement", "range"]
Origin = Literal["live", "cache", "replay", "simulated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One stream: where it is asked for, how its window is named, how often it comes and what one row is.

    asks       publishDateTimeFrom/To, settlementDateFrom/To (whole London days), measurementDateTimeFrom/To, or from/to
    cadence    time between rows of one key;  longest  widest window of one request
    lag        usual time from the end of a row's period to its publication
    overlap    how far back each poll asks again, so that late rows are found
    """

    name: str
    path: str
    asks: Asks
    row: type[Row]
    cadence: timedelta
    longest: timedelta
    lag: timedelta
    poll: timedelta
    overlap: timedelta
    by_fuel: bool = False

    def recent(self, end: datetime) -> tuple[datetime, datetime]:
        """What a poll asks for: the overlap before end, and one period more."""
        return end - self.overlap - self.cadence, end


def _m(minutes: int) -> timedelta:
    return timedelta(minutes=minutes)


def _d(days: int) -> timedelta:
    return timedelta(days=days)


def _streams() -> dict[str, Stream]:
    rows = (
        Stream(name="FUELHH", path="/datasets/FUELHH", asks="settlement", row=FuelRow, cadence=_m(30), longest=_d(7),
               lag=_m(1), poll=_m(5), overlap=_m(360), by_fuel=True),
        Stream(name="FUELINST", path="/datasets/FUELINST", asks="publish", row=FuelRow, cadence=_m(5), longest=_d(1),
               lag=_m(1), poll=_m(5), overlap=_m(30), by_fuel=True),
        Stream(name="FREQ", path="/datasets/FREQ", asks="measurement", row=FrequencyRow, cadence=timedelta(seconds=15),
               longest=_d(1), lag=_m(2), poll=_m(2), overlap=_m(10)),
        Stream(name="DEMAND", path="/demand/outturn", asks="settlement", row=DemandRow, cadence=_m(30), longest=_d(28),
               lag=_m(15), poll=_m(5), overlap=_m(360)),
        Stream(name="INDO", path="/datasets/INDO", asks="publish", row=OneDemandRow, cadence=_m(30), longest=_d(1),
               lag=_m(15), poll=_m(5), overlap=_m(360)),
        Stream(name="ITSDO", path="/datasets/ITSDO", asks="publish", row=OneDemandRow, cadence=_m(30), longest=_d(1),
               lag=_m(15), poll=_m(5), overlap=_m(360)),
        Stream(name="INDOD", path="/datasets/INDOD", asks="publish", row=DailyDemandRow, cadence=_d(1), longest=_d(365),
               lag=_m(15), poll=_m(360), overlap=_d(3)),
        Stream(name="ROLSYSDEM", path="/generation/outturn", asks="range", row=OneDemandRow, cadence=_m(5),
               longest=_d(1), lag=_m(1), poll=_m(5), overlap=_m(30)),
        Stream(name="WARNINGS", path="/system/warnings", asks="publish", row=WarningRow, cadence=_d(1), longest=_d(7),
               lag=_m(1), poll=_m(5), overlap=_d(1)),
    )  # fmt: skip
    return {row.name: row for row in rows}


STREAMS: dict[str, Stream] = _streams()


def stream_of(name: str) -> Stream:
    """The stream of that name.  Raises: UnknownStream with the nearest names."""
    if name.upper() in STREAMS:
        return STREAMS[name.upper()]
    near = difflib.get_close_matches(name.upper(), STREAMS, n=2, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UnknownStream(f"unknown stream {name!r}{hint} Known: {', '.join(STREAMS)}")


def utc_window(start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The window in UTC.  Raises: ValueError if a side is naive (whose clock?) or it ends before it starts."""
    if start.tzinfo is None or end.tzinfo is None:
        raise ValueError(f"window {start} to {end} is naive; give aware times")
    if end < start:
        raise ValueError(f"window {start} to {end} ends before it starts")
    return start.astimezone(UTC), end.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that could not be read: what was wrong and the row as it came."""

    reason: str
    raw: Any


@dataclass(slots=True, kw_only=True)
class Fetched:
    """Rows of one stream and window, oldest first, one per key, with what was counted on the way.

    counts   duplicates, superseded, unknown_fuel, unlabelled ..: repairs by name
    """

    stream: str
    start: datetime
    end: datetime
    rows: Sequence[Row]
    origin: Origin = "live"
    stale_s: float = 0.0
    """Age of the newest row when it was served, for rows that are not live."""
    rejects: list[Reject] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether a source can be used now, and why not."""

    source: str
    usable: bool
    detail: str


class GridSource(Protocol):
    """A source of GB data. Windows are closed at both ends, aware UTC."""

    name: str
    streams: tuple[str, ...]

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        """All rows whose time lies in [start, end].  Raises: ElexonError."""
        ...

    async def latest(self, stream: str) -> Fetched:
        """The rows of the stream's last overlap span.  Raises: ElexonError."""
        ...

    async def health(self) -> Health: ...
    async def aclose(self) -> None: ...
