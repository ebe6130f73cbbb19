"""ElexonDataPortal as a source: the unmodified package on today's data, through a shim at its two weak points.

Flow:    elexon.sources -> [portal] -> ElexonDataPortal -> shim -> elexon.insights
         archived XML -> [portal: read_legacy_xml] -> rows
Source:  ElexonDataPortal 2.0.16 (October 2022); docs/gb-data.md, the named package and the closed API

The API that the package asks, api.bmreports.com, was shut on 2024-05-31. Inside `carried` the package's `requests` is
an object that asks our client and writes legacy XML, and its table of settlement periods is ours. The package itself
is never edited, and both names are put back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from importlib.util import find_spec
from threading import RLock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gg_ray.elexon.errors import BadAnswer, BadRequest, ElexonError, NotCarried, RateLimited
from gg_ray.elexon.legacy_xml import LEGACY, envelope, items_of, rows_of
from gg_ray.elexon.parse import EVER, parse
from gg_ray.elexon.repair import OF_THE_ROWS
from gg_ray.elexon.settlement import LONDON
from gg_ray.elexon.source import STREAMS, Fetched, GridSource, Health, stream_of, utc_window
from gg_ray.elexon.times import DAY, utc_now

if TYPE_CHECKING:
    import pandas as pd

CLOSED = "decommissioned 2024-05-31: api.bmreports.com, which ElexonDataPortal asks, was shut"
PACKAGE = "ElexonDataPortal"
Fetch = Callable[[str, datetime, datetime], Fetched]

_STREAM_OF = {legacy.report: stream for stream, legacy in LEGACY.items()}
_INSIGHTS_PATHS = {
    "FUELINST": "/datasets/FUELINST", "SYSWARN": "/system/warnings", "PHYBMDATA": "/balancing/physical",
    "DERSYSDATA": "/balancing/settlement/system-prices", "INDOITSDO": "/demand/outturn",
    **{stream.name: stream.path for stream in STREAMS.values()},
}  # fmt: skip
_SWAPPED = RLock()
"""The two names are the process's, so one thread at a time carries."""


def not_carried(report: str) -> NotCarried:
    path = _INSIGHTS_PATHS.get(report, f"/datasets/{report}")
    return NotCarried(f"{report}: not carried by {PACKAGE}; ask the source `insights`, Insights API path {path}")


@contextmanager
def carried(fetch: Fetch) -> Iterator[Carrier]:
    """Inside, `ElexonDataPortal.api.Client` gives today's data, taken from fetch(stream, start, end).

    Raises:  NotCarried if the package is not installed. Errors of fetch reach the package as legacy error XML, so
             its methods raise its own RequestError; the first is kept in the carrier's `failure`.
    """
    raw, utils = _package()
    carrier = Carrier(fetch)
    with _SWAPPED:
        requests, numbering = raw.requests, utils.dt_rng_to_SPs
        raw.requests, utils.dt_rng_to_SPs = carrier, half_hour_table
        try:
            yield carrier
        finally:
            raw.requests, utils.dt_rng_to_SPs = requests, numbering


class Carrier:
    """Stands in for the module `requests` inside the package: one method, legacy XML for an answer."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self.failure: ElexonError | None = None

    def get(self, url: str, params: Mapping[str, str]) -> SimpleNamespace:
        """Legacy answer with .text and .status_code.  Raises: NotCarried for a report that has no stream here."""
        report = url.rstrip("/").split("/")[-2]
        stream = _STREAM_OF.get(report)
        if stream is None:
            error = not_carried(report)
            self.failure = self.failure or error
            raise error
        try:
            start, end = _window(stream, params)
            rows = self._fetch(stream, start, end).rows
        except ElexonError as refused:
            self.failure = self.failure or refused
            code = 429 if isinstance(refused, RateLimited) else 400 if isinstance(refused, BadRequest) else 500
            text = envelope([], code=code, error=type(refused).__name__, description=str(refused))
            return SimpleNamespace(text=text, status_code=200)  # the package reads the code in the body only
        return SimpleNamespace(text=envelope(items_of(stream, rows)), status_code=200)


def half_hour_table(start_date: Any, end_date: Any, freq: str = "30T", tz: str = "UTC") -> pd.DataFrame:
    """Local date and settlement period of every half-hour in [start_date, end_date]; for `dt_rng_to_SPs`.

    The original slices an aware index by naive times, which pandas refuses since version 2 (TypeError), and from
    version 3 on knows no "30T". Periods are half-hours elapsed since local midnight: 46 and 50 on clock days.
    Returns: columns date (text) and SP (whole number), index datetime_<tz>, aware.
    """
    import pandas as pd

    step = pd.Timedelta(freq.replace("T", "min"))
    ends = [pd.Timestamp(edge) for edge in (start_date, end_date)]
    first, last = (
        edge.tz_localize(tz, ambiguous=True, nonexistent="shift_forward") if edge.tz is None else edge.tz_convert(tz)
        for edge in ends
    )
    index = pd.date_range(first, last, freq=step)
    index.name = f"datetime_{tz.lower().replace('/', '_')}"
    periods = (index - index.normalize()) // step + 1
    return pd.DataFrame({"date": index.strftime("%Y-%m-%d"), "SP": periods.astype(int)}, index=index)


def read_legacy_xml(text: str, stream: str | None = None) -> Fetched:
    """Rows of an archived answer of the closed API, read by the package.

    Args:    stream  FUELHH, FREQ, DEMAND, ROLSYSDEM or INDOD; None takes it from the record type
    Returns: rows of origin "replay". The legacy feed wrote negative PS and interconnector values as 0, so a 0 there
             says nothing: it becomes None and counts as clipped.
    Raises:  BadAnswer if the text is no such answer; NotCarried for another report or without the package.
    """
    _, utils = _package()
    with carried(_nothing):
        frame = _frame(utils, text)
    records = _records(frame)
    report = str(records[0].get("recordType")) if records else "FUELHH"
    found = stream or {"INDO": "DEMAND", "ITSDO": "DEMAND"}.get(report) or _STREAM_OF.get(report)
    if found is None or stream_of(found).name not in LEGACY:
        raise not_carried(found or report)
    held = stream_of(found)
    rows = rows_of(held.name, records)
    clipped = [row for row in rows if row.get("generation") == 0 and row["fuelType"].startswith(("PS", "INT"))]
    for row in clipped:
        row["generation"] = None
    fetched = parse(held, json.dumps(rows).encode(), *EVER, origin="replay")
    if clipped:
        fetched.counts["clipped"] = len(clipped)
    if fetched.rows:
        fetched.start, fetched.end = fetched.rows[0].at, fetched.rows[-1].at
    return fetched


class ElexonDataPortalSource:
    """GridSource whose rows went through the unmodified package; without a base it can only say that it is closed.

    base is the source that really asks (our Insights client): limits, retries and cache are its own.
    """

    name = "elexondataportal"
    streams = tuple(LEGACY)

    def __init__(self, base: GridSource | None = None, *, now: Callable[[], datetime] = utc_now) -> None:
        self._base, self._now = base, now
        # its own thread: the package blocks while the base works, and must not take a thread that the base waits for
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="elexondataportal")

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        """Rows in [start, end] without publication times.  Raises: NotCarried, and what the base raises."""
        asked = stream_of(stream)
        if asked.name not in LEGACY:
            raise not_carried(asked.name)
        start, end = utc_window(start, end)
        base = self._base
        if base is None:
            raise NotCarried(f"{asked.name}: {CLOSED}; use the source `insights`, or give this one a base")
        loop = asyncio.get_running_loop()
        parts: list[Fetched] = []

        def ask(name: str, low: datetime, high: datetime) -> Fetched:
            parts.append(asyncio.run_coroutine_threadsafe(base.fetch(name, low, high), loop).result())
            return parts[-1]

        records = await loop.run_in_executor(self._thread, _through_the_package, asked.name, start, end, ask)
        body = json.dumps(rows_of(asked.name, records)).encode()
        fetched = parse(asked, body, start, end)
        for part in parts:  # what our client had to repair is no less true for having gone through the package
            fetched.counts.update({name: count for name, count in part.counts.items() if name not in OF_THE_ROWS})
            fetched.rejects.extend(part.rejects)
            if part.origin != "live":
                fetched.origin, fetched.stale_s = part.origin, max(fetched.stale_s, part.stale_s)
        return fetched

    async def latest(self, stream: str) -> Fetched:
        return await self.fetch(stream, *stream_of(stream).recent(self._now()))

    async def health(self) -> Health:
        if find_spec(PACKAGE) is None:
            return Health(source=self.name, usable=False, detail=f"{PACKAGE} is not installed; and it is {CLOSED}")
        if self._base is None:
            return Health(source=self.name, usable=False, detail=CLOSED)
        health = await self._base.health()
        detail = f"{health.detail}; {PACKAGE} carried by {health.source} (its own API is {CLOSED})"
        return Health(source=self.name, usable=health.usable, detail=detail)

    async def aclose(self) -> None:
        self._thread.shutdown(wait=False)
        if self._base is not None:
            await self._base.aclose()


def _through_the_package(stream: str, start: datetime, end: datetime, fetch: Fetch) -> list[dict[str, Any]]:
    with carried(fetch) as carrier:
        from ElexonDataPortal.api import Client

        client = Client("no key is needed", n_retry_attempts=1)  # its own three tries come without a pause
        legacy = LEGACY[stream]
        ask = getattr(client, f"get_{legacy.report}")
        zone, form = (LONDON, "%Y-%m-%d") if legacy.by_day else (UTC, "%Y-%m-%d %H:%M:%S")
        if not legacy.by_day and end.microsecond:
            end += timedelta(seconds=1)  # written in whole seconds, outwards
        try:
            frame = ask(*(edge.astimezone(zone).strftime(form) for edge in (start, end)))
        except Exception as error:
            if carrier.failure is not None:
                raise carrier.failure from error
            raise BadAnswer(f"{stream}: {PACKAGE} failed on the answer: {type(error).__name__}: {error}") from error
    return _records(frame)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in record.items()} for record in frame.to_dict("records")]


def _window(stream: str, params: Mapping[str, str]) -> tuple[datetime, datetime]:
    """The window that legacy parameters name, UTC: whole London days, or times (the clock may be missing)."""
    kind = "Date" if LEGACY[stream].by_day else "DateTime"
    try:
        low, high = params[f"From{kind}"], params[f"To{kind}"]
        if LEGACY[stream].by_day:
            stop = datetime.combine(date.fromisoformat(high) + DAY, time(), LONDON)
            start = datetime.combine(date.fromisoformat(low), time(), LONDON)
            return start.astimezone(UTC), stop.astimezone(UTC) - timedelta(seconds=1)
        start, end = datetime.fromisoformat(low), datetime.fromisoformat(high)
        if len(high.strip()) == len("2024-01-01"):
            end += timedelta(days=1, seconds=-1)
        return start.replace(tzinfo=UTC), end.replace(tzinfo=UTC)
    except (KeyError, ValueError, TypeError) as error:
        raise BadRequest(f"{stream}: legacy parameters {dict(params)!r:.200}: {error!r}") from error


def _package() -> tuple[Any, Any]:
    """Its modules raw and utils.  Raises: NotCarried naming the way to install it."""
    try:
        from ElexonDataPortal.dev import raw, utils
    except ImportError as error:
        raise NotCarried(
            f"{PACKAGE} cannot be imported ({error}); pip install 'ElexonDataPortal>=2.0.16,<3'"
        ) from error
    return raw, utils


def _frame(utils: Any, text: str) -> pd.DataFrame:
    from xml.parsers.expat import ExpatError

    from ElexonDataPortal.dev.orchestrator import if_possible_parse_local_datetime

    try:
        frame: pd.DataFrame = if_possible_parse_local_datetime(utils.parse_xml_response(SimpleNamespace(text=text)))
    except (ExpatError, KeyError, TypeError, ValueError, utils.RequestError) as error:
        raise BadAnswer(f"no legacy answer: {type(error).__name__}: {error}; it begins {text[:60]!r}") from error
    return frame


def _nothing(stream: str, start: datetime, end: datetime) -> Fetched:
    raise NotCarried(f"{stream}: archived XML is read, nothing is asked")
