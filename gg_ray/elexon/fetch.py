"""Histories from a source into the store: windows oldest first, resumed from what is there, gaps counted at the end.

Flow:    a GridSource -> [fetch] -> elexon.store; data_commands (fetch, sync)
Source:  docs/gb-data.md, commands
Units:   UTC days

Polite by construction: one request at a time, none for a day that is whole or will not change, and as few as the
stream's longest window allows. The rate limit itself is the source's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from gg_ray.elexon.errors import ElexonError
from gg_ray.elexon.source import GridSource, Stream, stream_of
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import DAY, INSTANT, midnight, utc_now

SETTLED = timedelta(days=3)
"""A day that was asked for so long after its end is not asked for again, whole or not: late bursts took hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One window done: which, how many of how many, and the rows it brought."""

    stream: str
    start: datetime
    end: datetime
    done: int
    total: int
    news: int


@dataclass(slots=True, kw_only=True)
class Summary:
    """What one call did.

    news     rows new or changed;  asked, skipped  days;  missing  periods that are not there, by day
    error    why it stopped before its end; what came before is stored, and the next call goes on from there
    """

    stream: str
    requests: int = 0
    news: int = 0
    asked: int = 0
    skipped: int = 0
    rejects: int = 0
    due: int = 0
    missing: dict[date, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    error: str | None = None

    def __str__(self) -> str:
        gone = sum(self.missing.values())
        where = ", ".join(f"{day} ({count})" for day, count in sorted(self.missing.items())[:5])
        more = f" and {len(self.missing) - 5} more" if len(self.missing) > 5 else ""
        parts = [
            f"{self.stream}: {self.news:,} rows new or changed",
            f"{self.requests} windows for {self.asked} days, {self.skipped} days already whole",
            f"{gone:,} of {self.due:,} periods missing: {where}{more}" if gone else f"no gap in {self.due:,} periods",
        ]
        if self.rejects:
            parts.append(f"{self.rejects} rows refused")
        if self.error:
            parts.append(f"stopped: {self.error}")
        return "; ".join(parts)


async def fetch_history(
    source: GridSource, stream: str, start: datetime, end: datetime, store: DayStore,
    progress: Callable[[Progress], None] | None = None, *, now: Callable[[], datetime] = utc_now,
) -> Summary:  # fmt: skip
    """Bring [start, end] of a stream into the store, whole UTC days, oldest first.

    Days that the store holds whole are skipped; incomplete and recent ones are asked again, until SETTLED.
    Returns: the summary; an ElexonError of the source ends the call and stands in summary.error.
    Raises:  UnknownStream; ValueError for an end before the start; OSError when the store cannot be written.
    """
    known = stream_of(stream)
    first, last = start.astimezone(UTC).date(), min(end, now()).astimezone(UTC).date()
    if end < start:
        raise ValueError(f"{known.name}: the window ends ({end}) before it starts ({start})")
    days = [first + timedelta(days=i) for i in range((last - first).days + 1)]
    todo = [day for day in days if not is_done(store, known, day, now())]
    summary = Summary(stream=known.name, skipped=len(days) - len(todo))
    windows = list(_windows(known, todo))
    for i, (begin, stop) in enumerate(windows):
        upto = min(midnight(stop) + DAY - INSTANT, now())
        try:
            fetched = await source.fetch(known.name, midnight(begin), upto)
        except ElexonError as error:
            summary.error = f"{begin} to {stop}: {error}"
            break
        summary.requests += 1
        summary.asked += (stop - begin).days + 1
        summary.rejects += len(fetched.rejects)
        summary.counts += fetched.counts
        # a window closed at both ends may bring the first row of the next day: it would look like a day begun
        rows = [row for row in fetched.rows if begin <= row.at.date() <= stop]
        at = now()
        news = store.merge(known.name, rows, at)
        got = {row.at.date() for row in rows}
        for day in (begin + timedelta(days=k) for k in range((stop - begin).days + 1)):
            if day not in got:  # remember that nothing was there to be had
                held = store.read(known.name, midnight(day), midnight(day) + DAY - INSTANT)
                store.write(known.name, day, held, at)
        summary.news += news
        if progress is not None:
            progress(
                Progress(
                    stream=known.name, start=midnight(begin), end=upto, done=i + 1, total=len(windows), news=news
                )
            )  # fmt: skip
    _count_gaps(summary, store, known, days, now())
    return summary


async def sync(
    source: GridSource, streams: Sequence[str], store: DayStore, now: datetime, days_back: int = 7,
    progress: Callable[[Progress], None] | None = None,
) -> list[Summary]:  # fmt: skip
    """Bring the last days of several streams up to date; made to run once a day. A stream that fails stops no other.

    Raises: UnknownStream; ValueError for days_back below 1.
    """
    if days_back < 1:
        raise ValueError(f"days_back {days_back}: at least 1")
    names = [stream_of(stream).name for stream in streams]
    start = now - timedelta(days=days_back)
    return [await fetch_history(source, name, start, now, store, progress, now=lambda: now) for name in names]


def slots_due(stream: Stream) -> int | None:
    """Periods of a UTC day; None for warnings, which come as they are issued."""
    return None if stream.name == "WARNINGS" else int(DAY / stream.cadence)


def is_done(store: DayStore, stream: Stream, day: date, now: datetime) -> bool:
    """Whether a day need not be asked for: over, and whole or settled when it was last fetched."""
    info = store.info(stream.name, day)
    over = midnight(day) + DAY
    if info is None or now < over or info.fetched < over:
        return False
    # a partial batch lacks codes, so that the rows are no multiple of the slots
    whole = info.slots == slots_due(stream) and info.rows % info.slots == 0
    return whole or info.fetched >= over + SETTLED


def _windows(stream: Stream, days: Sequence[date]) -> Iterator[tuple[date, date]]:
    """Runs of consecutive days, none longer than one request may be."""
    longest = max(1, stream.longest // DAY)
    begin = 0
    for i in range(1, len(days) + 1):
        if i == len(days) or i - begin == longest or days[i] - days[i - 1] != DAY:
            yield days[begin], days[i - 1]
            begin = i


def _count_gaps(summary: Summary, store: DayStore, stream: Stream, days: Sequence[date], now: datetime) -> None:
    """Periods that should be published by now and are not in the store."""
    a_day = slots_due(stream)
    if a_day is None:
        return
    for day in days:
        passed = (now - stream.lag - midnight(day)) // stream.cadence
        due = max(0, min(a_day, passed))
        info = store.info(stream.name, day)
        summary.due += due
        if (gone := due - (0 if info is None else info.slots)) > 0:
            summary.missing[day] = gone
