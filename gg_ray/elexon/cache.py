"""A source that answers when the live one does not: a short cache, then a rolling week on disk, never silently.

Flow:    elexon.insights, or any other source -> [cache] -> data_commands (feed --source auto)
Source:  docs/gb-data.md, the named package and the closed API (auto)
Order:   live; the last answers of 5 minutes; a week of its own on disk. Whatever is not live says so: origin, stale_s
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Protocol

from gg_ray.elexon.errors import BadAnswer, ElexonError, NothingStored, RateLimited, Unavailable
from gg_ray.elexon.limits import Clock
from gg_ray.elexon.parse import merge, parse, to_json
from gg_ray.elexon.rows import Row
from gg_ray.elexon.source import Fetched, GridSource, Health, Stream, stream_of
from gg_ray.elexon.times import DAY, midnight, utc_now

log = logging.getLogger(__name__)

TTL_S = 300.0
KEEP_DAYS = 7
_FAILURES = (RateLimited, Unavailable, BadAnswer)
"""Failures of the service. A wrong question (BadRequest, NotCarried, UnknownStream) is not answered from memory."""


class Cache(Protocol):
    """Bytes under a key for a while. Never raises: a cache that is down holds nothing."""

    async def get(self, key: str) -> bytes | None: ...
    async def set(self, key: str, value: bytes, ttl_s: float) -> None: ...


class WeekStore(Protocol):
    """The part of elexon.store.DayStore that is needed here."""

    def read(self, stream: str, start: datetime, end: datetime) -> list[Row]: ...
    def days(self, stream: str) -> list[date]: ...
    def merge(self, stream: str, rows: Sequence[Row], fetched: datetime) -> int: ...
    def trim(self, keep_days: int, now: datetime) -> None: ...


class MemoryCache:
    """A cache inside the process.  Invariant: at most `most` keys, the oldest leave first; none is given expired."""

    def __init__(self, most: int = 256, *, clock: Clock = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._held: dict[str, tuple[float, bytes]] = {}

    async def get(self, key: str) -> bytes | None:
        until, value = self._held.get(key, (0.0, b""))
        return value if self._clock() < until else None

    async def set(self, key: str, value: bytes, ttl_s: float) -> None:
        self._held.pop(key, None)
        self._held[key] = (self._clock() + ttl_s, value)
        while len(self._held) > self._most:
            del self._held[next(iter(self._held))]


class CachedSource:
    """GridSource around another one.

    Invariant: rows of origin "live" were fetched by this very call; any others carry origin "cache" and their age.
    A store that cannot be written is logged and counted; it never costs the live answer.
    counts     live, from_cache, from_store, nothing, store_failed
    """

    def __init__(
        self,
        source: GridSource,
        *,
        cache: Cache | None = None,
        store: WeekStore | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.source, self.name, self.streams = source, source.name, source.streams
        self.cache = cache or MemoryCache()
        self.store = store
        self.counts: Counter[str] = Counter()
        self._now = now
        self._trimmed: date | None = None
        self._failing: set[str] = set()
        self._writing = asyncio.Lock()

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        """Rows in [start, end], live or else remembered.  Raises: NothingStored, and what a wrong question raises."""
        asked = stream_of(stream)
        await self._trim()
        try:
            fetched = await self.source.fetch(stream, start, end)
        except _FAILURES as error:
            return await self._fallback(asked, f"{start.isoformat()}/{end.isoformat()}", (start, end), error)
        await self._remember(asked, f"{start.isoformat()}/{end.isoformat()}", fetched)
        return fetched

    async def latest(self, stream: str) -> Fetched:
        """The newest rows there are: of the last overlap span live, else the newest span that is remembered."""
        asked = stream_of(stream)
        await self._trim()
        try:
            fetched = await self.source.latest(stream)
        except _FAILURES as error:
            return await self._fallback(asked, "latest", None, error)
        await self._remember(asked, "latest", fetched)
        return fetched

    async def health(self) -> Health:
        return await self.source.health()

    async def aclose(self) -> None:
        await self.source.aclose()

    async def _remember(self, stream: Stream, key: str, fetched: Fetched) -> None:
        if fetched.origin != "live":  # of a source that has its own fallback: what is old must not become new here
            return
        self.counts["live"] += 1
        if stream.name in self._failing:
            self._failing.discard(stream.name)
            log.warning("%s: live again from %s", stream.name, self.name)
        if not fetched.rows:
            return  # an empty answer must not replace rows that may be needed in a minute
        window = json.dumps([fetched.start.isoformat(), fetched.end.isoformat()]).encode()
        await self.cache.set(f"{stream.name}:{key}", window + b"\n" + to_json(stream, fetched.rows), TTL_S)
        oldest = self._now() - timedelta(days=KEEP_DAYS)
        recent = [row for row in fetched.rows if row.at >= oldest]
        store = self.store
        if store is not None and recent:
            try:
                async with self._writing:
                    await asyncio.to_thread(store.merge, stream.name, recent, self._now())
            except (OSError, ElexonError) as error:
                self.counts["store_failed"] += 1
                log.error("%s: the rolling week could not be written: %s", stream.name, error)

    async def _fallback(
        self, stream: Stream, key: str, window: tuple[datetime, datetime] | None, error: ElexonError
    ) -> Fetched:
        fetched = await self._from_cache(stream, key, window)
        if fetched is None and window is not None:
            fetched = await self._from_cache(stream, "latest", window)
        if fetched is None:
            fetched = await self._from_store(stream, window)
        if fetched is None:
            self.counts["nothing"] += 1
            raise NothingStored(
                f"{stream.name}: live failed ({error}) and neither cache nor store holds a row"
            ) from error
        newest = fetched.rows[-1].at
        fetched.stale_s = max(0.0, (self._now() - newest).total_seconds())
        if stream.name not in self._failing:  # one line when it begins, one when it ends
            self._failing.add(stream.name)
            log.warning("%s: served from memory, newest row %s, because live failed: %s", stream.name, newest, error)
        return fetched

    async def _from_cache(self, stream: Stream, key: str, window: tuple[datetime, datetime] | None) -> Fetched | None:
        held = await self.cache.get(f"{stream.name}:{key}")
        if held is None:
            return None
        try:
            head, _, body = held.partition(b"\n")
            start, end = window or [datetime.fromisoformat(text).astimezone(UTC) for text in json.loads(head)]
            fetched = parse(stream, body, start, end, origin="cache")
        except (ValueError, TypeError, BadAnswer) as error:  # another version of us wrote it
            log.warning("%s: cache entry %s is unreadable: %s", stream.name, key, error)
            return None
        if not fetched.rows:
            return None
        self.counts["from_cache"] += 1
        return fetched

    async def _from_store(self, stream: Stream, window: tuple[datetime, datetime] | None) -> Fetched | None:
        store = self.store
        if store is None:
            return None
        try:
            start, end, rows = await asyncio.to_thread(_stored, store, stream, window, self._now())
        except (OSError, ElexonError) as error:
            self.counts["store_failed"] += 1
            log.error("%s: the rolling week could not be read: %s", stream.name, error)
            return None
        if not rows:
            return None
        self.counts["from_store"] += 1
        held = Fetched(stream=stream.name, start=start, end=end, rows=rows)
        return merge(stream, start, end, [held], origin="cache")  # counts what is missing

    async def _trim(self) -> None:
        today = self._now().date()
        if self.store is None or self._trimmed == today:
            return
        self._trimmed = today
        try:
            await asyncio.to_thread(self.store.trim, KEEP_DAYS, self._now())
        except (OSError, ElexonError) as error:
            self.counts["store_failed"] += 1
            log.error("the rolling week could not be trimmed: %s", error)


def _stored(
    store: WeekStore, stream: Stream, window: tuple[datetime, datetime] | None, now: datetime
) -> tuple[datetime, datetime, list[Row]]:
    """Rows of the window; without one, of the newest overlap span that the store holds."""
    if window is not None:
        return *window, store.read(stream.name, *window)
    days = store.days(stream.name)
    if not days:
        return now, now, []
    begin = midnight(days[-1])
    newest = max((row.at for row in store.read(stream.name, begin, begin + DAY)), default=begin)
    start, end = stream.recent(newest)
    return start, end, store.read(stream.name, start, end)
