"""The Insights API as a source: each stream asked the way it wants to be asked, checked, cut and joined.

Flow:    data_commands, elexon.cache -> [insights] -> elexon.http -> elexon.parse -> Fetched
Source:  https://data.elexon.co.uk/bmrs/api/v1, schema of June 2026; docs/gb-data.md
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

from gg_ray.elexon.errors import BadAnswer, ElexonError
from gg_ray.elexon.failed import FailedFolder
from gg_ray.elexon.http import HttpClient
from gg_ray.elexon.limits import HOSTS, Buckets
from gg_ray.elexon.parse import Asked, merge, read
from gg_ray.elexon.rows import WarningRow
from gg_ray.elexon.settlement import LONDON
from gg_ray.elexon.source import STREAMS, Fetched, Health, Stream, stream_of, utc_window
from gg_ray.elexon.times import DAY, utc_now, z

log = logging.getLogger(__name__)

BASE_URL = "https://data.elexon.co.uk/bmrs/api/v1"
LATEST_PUBLICATION = timedelta(hours=4)
"""How much later than usual a row may be published and still be found: the longest delay in our files is 3 h 12 min
(March 2022). Windows about publication are asked that much longer, then cut by the rows' own time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question: query parameters and the window that every returned row must keep to."""

    path: str
    params: Mapping[str, str]
    asked: Asked


def requests_of(stream: Stream, start: datetime, end: datetime) -> list[Request]:
    """The questions, oldest first, whose answers together hold every row with its own time in [start, end].

    Windows of one question never exceed stream.longest; neighbours share their boundary, as both ends are closed.
    Raises:  ValueError if the window is naive or ends before it starts.
    """
    start, end = utc_window(start, end)
    # asked in whole seconds, outwards: a row on the second must not lie outside a window with microseconds
    start, end = start.replace(microsecond=0), (end + timedelta(microseconds=999_999)).replace(microsecond=0)
    if stream.asks == "settlement":
        return list(_settlement(stream, start, end))
    names = {
        "publish": ("publishDateTimeFrom", "publishDateTimeTo"),
        "measurement": ("measurementDateTimeFrom", "measurementDateTimeTo"),
        "range": ("from", "to"),
    }[stream.asks]
    by_publish = stream.asks == "publish"
    until = end
    if by_publish and stream.row is not WarningRow:  # a warning's own time is its publication
        until = end + stream.cadence + LATEST_PUBLICATION
    slack = stream.cadence if stream.asks == "range" else timedelta(0)
    return [
        Request(
            path=stream.path,
            params={names[0]: z(low), names[1]: z(high), "format": "json"},
            asked=Asked(start=low, end=high, by_publish=by_publish, slack=slack),
        )
        for low, high in _pieces(start, until, stream.longest)
    ]


class InsightsSource:
    """GridSource over the Insights API: no key, no state but the connection and the folder of failed answers."""

    name = "insights"
    streams = tuple(STREAMS)

    def __init__(
        self,
        base_url: str = BASE_URL,
        *,
        http: HttpClient | None = None,
        buckets: Buckets = HOSTS,
        failed: Path | FailedFolder | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """failed: folder for answers that cannot be read; None keeps none."""
        self.http = http or HttpClient(base_url, buckets=buckets, now=now)
        self._failed = FailedFolder(failed) if isinstance(failed, Path) else failed
        self._now = now

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        """Rows with their own time in [start, end], both ends included.  Raises: ElexonError, ValueError."""
        asked = stream_of(stream)
        start, end = utc_window(start, end)
        parts = []
        for request in requests_of(asked, start, end):
            body = await self.http.get(request.path, request.params)
            try:
                parts.append(read(asked, body, request.asked))
            except BadAnswer as error:
                self._keep(asked, body, str(error))
                raise
            if parts[-1].rejects:
                self._keep(asked, body, f"{len(parts[-1].rejects)} rows: {parts[-1].rejects[0].reason}")
        return merge(asked, start, end, parts)

    async def latest(self, stream: str) -> Fetched:
        """Rows of the last overlap span (and one period more), up to now.  Raises: ElexonError."""
        return await self.fetch(stream, *stream_of(stream).recent(self._now()))

    async def health(self) -> Health:
        """Asks how many FREQ samples the service has; usable when it has any."""
        try:
            body = await self.http.get("/data-status/FREQ", {"format": "json"})
            rows = json.loads(body)["data"]
            newest = max(rows, key=lambda row: (row["settlementDate"], row["settlementPeriod"]))
            points, label = newest["dataPointCount"], f"{newest['settlementDate']} SP{newest['settlementPeriod']}"
            usable = type(points) is int and any(row["dataPointCount"] > 0 for row in rows)
        except ElexonError as error:
            return Health(source=self.name, usable=False, detail=str(error))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return Health(
                source=self.name, usable=False, detail=f"/data-status/FREQ: unreadable answer ({error!r:.200})"
            )
        return Health(source=self.name, usable=usable, detail=f"FREQ has {points} samples for {label}")

    async def aclose(self) -> None:
        await self.http.aclose()

    def _keep(self, stream: Stream, body: bytes, reason: str) -> None:
        if self._failed is not None:
            path = self._failed.keep(stream.name, body, reason, self._now())
            log.warning("%s: answer kept as %s: %s", stream.name, path, reason)


def _settlement(stream: Stream, start: datetime, end: datetime) -> Iterator[Request]:
    first, last = start.astimezone(LONDON).date(), end.astimezone(LONDON).date()
    while first <= last:
        stop = min(last, first + stream.longest - DAY)
        midnights = [datetime.combine(day, time(), LONDON).astimezone(UTC) for day in (first, stop + DAY)]
        yield Request(
            path=stream.path,
            params={"settlementDateFrom": first.isoformat(), "settlementDateTo": stop.isoformat(), "format": "json"},
            # a label may be one period off at either end of the day (2019, 2021)
            asked=Asked(start=midnights[0], end=midnights[1] - stream.cadence, slack=stream.cadence),
        )
        first = stop + DAY


def _pieces(start: datetime, end: datetime, longest: timedelta) -> Iterator[tuple[datetime, datetime]]:
    while True:
        stop = min(end, start + longest)
        yield start, stop
        if stop >= end:
            return
        start = stop
