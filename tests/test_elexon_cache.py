"""gg_ray.elexon.cache: what is not live says so, and a store that fails costs nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from elexon_fakes import FakeClock
from elexon_rows import HOUR, MINUTE, T0, body, freq, wobble

from gg_ray.elexon.cache import KEEP_DAYS, CachedSource, MemoryCache
from gg_ray.elexon.errors import BadAnswer, BadRequest, ElexonError, NothingStored, RateLimited, Unavailable
from gg_ray.elexon.parse import parse
from gg_ray.elexon.rows import Row
from gg_ray.elexon.source import STREAMS, Fetched, Health
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import DAY

ROWS = parse(STREAMS["FREQ"], body(freq(T0, wobble(4 * 60 * 12 + 1))), T0, T0 + 12 * HOUR).rows


class Source:
    """A live source that can be made to fail."""

    name, streams = "fake", tuple(STREAMS)

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.error: Exception | None = None
        self.rows: Sequence[Row] = ROWS

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        if self.error is not None:
            raise self.error
        rows = [row for row in self.rows if start <= row.at <= end]
        return Fetched(stream=stream, start=start, end=end, rows=rows)

    async def latest(self, stream: str) -> Fetched:
        return await self.fetch(stream, self.clock.now() - 10 * MINUTE, self.clock.now())

    async def health(self) -> Health:
        return Health(source=self.name, usable=self.error is None, detail="")

    async def aclose(self) -> None: ...


class Week:
    """A DayStore in memory."""

    def __init__(self) -> None:
        self.rows: dict[Any, Row] = {}
        self.trims: list[tuple[int, datetime]] = []
        self.broken = False

    def _check(self) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")

    def read(self, stream: str, start: datetime, end: datetime) -> list[Row]:
        self._check()
        return sorted((row for row in self.rows.values() if start <= row.at <= end), key=lambda row: row.at)

    def days(self, stream: str) -> list[date]:
        self._check()
        return sorted({row.at.date() for row in self.rows.values() if STREAMS[stream].row is type(row)})

    def merge(self, stream: str, rows: Sequence[Row], fetched: datetime) -> int:
        self._check()
        self.rows.update({row.key: row for row in rows})
        return len(rows)

    def trim(self, keep_days: int, now: datetime) -> None:
        self._check()
        self.trims.append((keep_days, now))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(T0 + 12 * HOUR)


@pytest.fixture
def live(clock: FakeClock) -> Source:
    return Source(clock)


@pytest.fixture
def week() -> Week:
    return Week()


@pytest.fixture
def cached(live: Source, week: Week, clock: FakeClock) -> CachedSource:
    return CachedSource(live, cache=MemoryCache(clock=clock), store=week, now=clock.now)


def latest(source: CachedSource) -> Fetched:
    return asyncio.run(source.latest("FREQ"))


def test_live_rows_are_live(cached: CachedSource, week: Week) -> None:
    fetched = latest(cached)
    assert (fetched.origin, fetched.stale_s) == ("live", 0.0)
    assert len(week.rows) == len(fetched.rows) == 41
    assert cached.counts == {"live": 1}


@pytest.mark.parametrize("error", [Unavailable("down"), RateLimited("429", 8.0), BadAnswer("HTML")])
def test_within_five_minutes_the_last_answer_is_served_with_its_age(
    cached: CachedSource, live: Source, clock: FakeClock, error: ElexonError
) -> None:
    first = latest(cached)
    live.error = error
    clock.seconds += 100
    fetched = latest(cached)
    assert fetched.rows == first.rows
    assert (fetched.origin, fetched.stale_s) == ("cache", 100.0)
    assert cached.counts["from_cache"] == 1


def test_later_the_week_on_disk_is_served(cached: CachedSource, live: Source, clock: FakeClock) -> None:
    first = latest(cached)
    live.error = Unavailable("down")
    clock.seconds += 5 * 3600
    fetched = latest(cached)
    assert fetched.rows == first.rows
    assert (fetched.origin, fetched.stale_s) == ("cache", 5 * 3600.0)
    assert cached.counts["from_store"] == 1


def test_a_window_is_served_from_its_own_answer_the_last_one_or_the_week(
    cached: CachedSource, live: Source, clock: FakeClock
) -> None:
    async def story() -> None:
        early = await cached.fetch("FREQ", T0, T0 + HOUR)
        await cached.latest("FREQ")
        live.error = Unavailable("down")
        assert (await cached.fetch("FREQ", T0, T0 + HOUR)).rows == early.rows
        near = await cached.fetch("FREQ", clock.now() - 2 * MINUTE, clock.now())
        assert [row.at for row in near.rows][:: len(near.rows) - 1] == [near.start, near.end]
        assert cached.counts["from_cache"] == 2
        part = await cached.fetch("FREQ", T0 + 30 * MINUTE, T0 + 2 * HOUR)
        assert part.rows == early.rows[120:]
        assert part.stale_s == 11 * 3600
        assert cached.counts["from_store"] == 1

    asyncio.run(story())


def test_missing_samples_of_a_stored_window_are_counted(cached: CachedSource, live: Source) -> None:
    live.rows = [row for n, row in enumerate(ROWS) if n % 10]
    latest(cached)
    cached.cache = MemoryCache()
    live.error = Unavailable("down")
    assert latest(cached).counts["missing"] > 0


def test_nothing_anywhere_is_a_typed_error_that_says_why(cached: CachedSource, live: Source) -> None:
    live.error = RateLimited("429 after 5 tries")
    with pytest.raises(NothingStored, match="429 after 5 tries"):
        latest(cached)
    assert cached.counts == {"nothing": 1}
    with pytest.raises(NothingStored):
        asyncio.run(CachedSource(live).fetch("FREQ", T0, T0 + HOUR))


@pytest.mark.parametrize("error", [BadRequest("400"), ValueError("naive")])
def test_a_wrong_question_is_not_answered_from_memory(cached: CachedSource, live: Source, error: Exception) -> None:
    latest(cached)
    live.error = error
    with pytest.raises(type(error)):
        latest(cached)


def test_falling_through_is_said_once_and_so_is_the_return(
    cached: CachedSource, live: Source, caplog: pytest.LogCaptureFixture
) -> None:
    latest(cached)
    with caplog.at_level(logging.WARNING):
        live.error = Unavailable("down")
        latest(cached)
        latest(cached)
        live.error = None
        latest(cached)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "FREQ: served from memory",
        "FREQ: live again from fake",
    ]


def test_each_stream_falls_through_for_itself_and_a_window_nobody_holds_is_an_error(
    cached: CachedSource, live: Source, caplog: pytest.LogCaptureFixture
) -> None:
    latest(cached)
    live.error = Unavailable("503")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            latest(cached)
        with pytest.raises(NothingStored, match="INDOD: live failed"):
            asyncio.run(cached.latest("INDOD"))
        with pytest.raises(NothingStored):
            asyncio.run(cached.fetch("FREQ", T0 - 30 * DAY, T0 - 30 * DAY))
    assert [record.message.partition(":")[0] for record in caplog.records] == ["FREQ"]


def test_the_week_is_a_day_store_and_no_other_is_trimmed(live: Source, clock: FakeClock, tmp_path: Path) -> None:
    history, week = DayStore(tmp_path), DayStore(tmp_path / "week")
    for store in (history, week):
        store.write("FREQ", (T0 - 30 * DAY).date(), [], T0)
    cached = CachedSource(live, cache=MemoryCache(clock=clock), store=week, now=clock.now)
    first = latest(cached)
    assert (history.days("FREQ"), week.days("FREQ")) == ([(T0 - 30 * DAY).date()], [T0.date()])
    live.error = Unavailable("503")
    again = asyncio.run(CachedSource(live, store=week, now=clock.now).latest("FREQ"))  # after a restart
    assert (again.rows, again.origin) == (first.rows, "cache")


def test_an_empty_live_answer_does_not_replace_what_is_remembered(live: Source, clock: FakeClock) -> None:
    cached = CachedSource(live, cache=MemoryCache(clock=clock), now=clock.now)
    first = latest(cached)
    live.rows = []
    assert latest(cached).origin == "live"
    live.error = Unavailable("down")
    assert latest(cached).rows == first.rows


def test_a_disk_that_fails_costs_no_live_answer(
    cached: CachedSource, live: Source, week: Week, caplog: pytest.LogCaptureFixture
) -> None:
    week.broken = True
    assert latest(cached).origin == "live"
    assert "No space left" in caplog.text
    cached.cache = MemoryCache()
    live.error = Unavailable("down")
    with pytest.raises(NothingStored):
        latest(cached)
    assert cached.counts["store_failed"] == 3


def test_the_week_is_trimmed_at_the_start_and_once_a_day(cached: CachedSource, week: Week, clock: FakeClock) -> None:
    for hours in (0, 1, 20, 1):
        clock.seconds += hours * 3600
        latest(cached)
    assert [keep for keep, _ in week.trims] == [KEEP_DAYS, KEEP_DAYS]


def test_a_history_that_is_fetched_does_not_fill_the_week(cached: CachedSource, week: Week, clock: FakeClock) -> None:
    clock.seconds += timedelta(days=KEEP_DAYS).total_seconds()
    asyncio.run(cached.fetch("FREQ", T0, T0 + 12 * HOUR))
    assert min(row.at for row in week.rows.values()) >= clock.now() - timedelta(days=KEEP_DAYS)


def test_what_the_source_itself_remembered_is_passed_on_and_not_remembered(cached: CachedSource, week: Week) -> None:
    outer = CachedSource(cached, store=week, now=cached._now)
    latest(outer)
    cached.source.error = Unavailable("down")  # type: ignore[attr-defined]
    assert latest(outer).origin == "cache"
    assert outer.counts == {"live": 1}


def test_an_unreadable_entry_is_no_entry(cached: CachedSource, live: Source) -> None:
    latest(cached)
    live.error = Unavailable("down")
    for entry in (b"", b"{", b"[1,2]\n{}", b'["2026-05-06T00:00:00Z","2026-05-06T00:00:00Z"]\nxx'):
        asyncio.run(cached.cache.set("FREQ:latest", entry, 300.0))
        assert latest(cached).origin == "cache"
    assert cached.counts["from_store"] == 4


def test_memory_cache_forgets_in_time_and_under_its_bound(clock: FakeClock) -> None:
    async def story() -> None:
        cache = MemoryCache(most=2, clock=clock)
        await cache.set("a", b"1", 300)
        clock.seconds += 299.9
        assert await cache.get("a") == b"1"
        clock.seconds += 0.1
        assert await cache.get("a") is None
        for key in "abc":
            await cache.set(key, key.encode(), 300)
        assert [await cache.get(key) for key in "abc"] == [None, b"b", b"c"]

    asyncio.run(story())
