"""Fakes for tests: a clock, a source of rows on demand with gaps, failures and a limiter of its own, a push queue."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

from gg_ray.elexon.errors import ElexonError, RateLimited
from gg_ray.elexon.rows import DailyDemandRow, DemandRow, FrequencyRow, FuelRow, OneDemandRow, Row, WarningRow
from gg_ray.elexon.settlement import midnight_ns, periods_in_day
from gg_ray.elexon.source import STREAMS, Fetched, Health, Stream, stream_of

T = TypeVar("T")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def lag_of(stream: Stream) -> timedelta:
    """Five-minute rows come at once, as in the files; the others as late as they usually are."""
    return min(stream.lag, timedelta(seconds=20)) if stream.by_fuel else stream.lag


def counter(seconds: int) -> int:
    """A value that tells the time of its row, Unix seconds."""
    return seconds // 300 % 1000


class FakeClock:
    """Monotonic seconds and UTC time that go together and move only when told, or when somebody sleeps on them."""

    def __init__(self, start: datetime = datetime(2026, 5, 6, 12, tzinfo=UTC)) -> None:
        self._start, self.seconds = start, 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.seconds - 1_000.0)

    @property
    def t(self) -> datetime:
        return self.now()

    @t.setter
    def t(self, t: datetime) -> None:
        self.seconds = 1_000.0 + (t - self._start).total_seconds()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


class FakeSource:
    """Rows of every stream at its cadence, published `lag` after their period, known only once published."""

    name = "fake"
    streams = tuple(STREAMS)

    def __init__(self, clock: FakeClock, codes: Iterable[str] = ("CCGT", "WIND")) -> None:
        self.clock, self.codes = clock, tuple(codes)
        self.asked: list[tuple[str, datetime, datetime]] = []
        self.fails: Callable[[str, datetime], ElexonError | None] = lambda _stream, _start: None
        self.never: set[tuple[str, datetime]] = set()
        """(stream, time) that was never published."""
        self.per_minute: int | None = None
        self.times: list[datetime] = []

    async def fetch(self, stream: str, start: datetime, end: datetime) -> Fetched:
        known = stream_of(stream)
        assert end - start <= known.longest, "wider than the service allows"
        self.asked.append((stream, start, end))
        now = self.clock.t
        recent = [at for at in self.times if now - at < timedelta(minutes=1)]
        if self.per_minute is not None and len(recent) >= self.per_minute:
            raise RateLimited("429: too many requests", 60.0)
        self.times.append(now)
        if error := self.fails(stream, start):
            raise error
        return Fetched(stream=stream, start=start, end=end, rows=list(self.rows(known, start, end)))

    def rows(self, stream: Stream, start: datetime, end: datetime) -> Iterable[Row]:
        step, now = stream.cadence, self.clock.t
        t = start if (start - EPOCH) % step == timedelta(0) else start + (step - (start - EPOCH) % step)
        while t <= end:
            if t + step + lag_of(stream) <= now and (stream.name, t) not in self.never:
                yield from self.row(stream, t)
            t += step

    def row(self, stream: Stream, t: datetime) -> Iterable[Row]:
        published, value = t + stream.cadence + lag_of(stream), counter(int((t - EPOCH).total_seconds()))
        if stream.row is FuelRow:
            yield from (
                FuelRow.model_construct(start=t, fuel=code, generation_mw=value + i, published=published)
                for i, code in enumerate(self.codes)
            )
        elif stream.row is FrequencyRow:
            yield FrequencyRow.model_construct(time=t, frequency_hz=50.0)
        elif stream.row is DemandRow:
            yield DemandRow(start=t, indo_mw=20_000 + value, itsdo_mw=21_000 + value, published=published)
        elif stream.row is OneDemandRow:
            yield OneDemandRow(start=t, demand_mw=20_000 + value, published=published)
        elif stream.row is DailyDemandRow:
            day = date(t.year, t.month, t.day)
            indo = [20_000 + counter(midnight_ns(day) // 10**9 + 1800 * i) for i in range(periods_in_day(day))]
            yield DailyDemandRow(settlement_date=day, demand_mwh=sum(indo) // 2, published=published)
        elif stream.row is WarningRow and t.day == 1:
            yield WarningRow(published=t, kind="TEST", text="first of the month")

    async def latest(self, stream: str) -> Fetched:
        known = stream_of(stream)
        start, now = known.recent(self.clock.t)
        return await self.fetch(stream, max(start, now - known.longest), now)

    async def health(self) -> Health:
        return Health(source=self.name, usable=True, detail="ok")

    async def aclose(self) -> None:
        return None


@dataclass
class FakeMessage:
    subject: str | None
    body: Any
    when: datetime | None = None


@dataclass
class FakeQueue:
    """A receiver of iris: delivers in order; what is abandoned comes back first; what happened is in `log`."""

    messages: deque[FakeMessage] = field(default_factory=deque)
    log: list[str] = field(default_factory=list)
    dead: list[tuple[FakeMessage, str]] = field(default_factory=list)
    breaks: Exception | None = None
    settle_fails: bool = False
    clock: FakeClock | None = None
    """Moved to the `when` of a message as it is delivered."""

    def push(self, subject: str | None, rows: Any, when: datetime | None = None) -> None:
        body = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
        self.messages.append(FakeMessage(subject, [body[:7], body[7:]], when))

    async def __aiter__(self) -> AsyncIterator[FakeMessage]:
        while self.messages:
            message = self.messages.popleft()
            if self.clock is not None and message.when is not None:
                self.clock.t = message.when
            yield message
        if self.breaks is not None:
            raise self.breaks

    async def complete_message(self, message: FakeMessage) -> None:
        if self.settle_fails:
            raise RuntimeError("lock lost")
        self.log.append("complete")

    async def abandon_message(self, message: FakeMessage) -> None:
        self.log.append("abandon")
        self.messages.appendleft(message)

    async def dead_letter_message(self, message: FakeMessage, *, reason: str, error_description: str) -> None:
        self.log.append(f"dead: {reason}")
        self.dead.append((message, error_description))
