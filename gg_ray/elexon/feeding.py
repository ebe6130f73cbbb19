"""The feed of grid gb-balance: polled, pushed or replayed, it says each scan once, and again only when it changed.

Flow:    a GridSource -> [feeding] -> one message per scan -> data_commands (standard output)
Source:  docs/gb-data.md, the feed
Message: {"schema": 1, "grid": "gb-balance", "t0", "step_s", "origin", "values", "missing", "late"}
    t0       start of the scan, ISO UTC;  step_s  its length, s
    origin   live, cache, replay or simulated: the least live of its rows
    values   channel -> MW, or Hz for FREQ; only what was published for this scan
    missing  channels that were due in this scan and are not there
    late     channel -> s: how long after the scan's end it was published, or how old the last value of a missing one is
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from gg_ray.elexon.errors import ElexonError
from gg_ray.elexon.iris import IrisSource
from gg_ray.elexon.replay import ReplaySource
from gg_ray.elexon.rows import FUEL_TYPES, Row
from gg_ray.elexon.scans import CHANNEL_AT, NEVER, STEPS, Scans, scans_from
from gg_ray.elexon.source import Fetched, GridSource, Origin, Stream, stream_of
from gg_ray.elexon.store import latest_of
from gg_ray.elexon.times import SECOND_NS, iso, ns_of, z

SCHEMA = 1
GRID = "gb-balance"
HORIZON = timedelta(hours=7)
"""Rows kept while polling: more than the longest overlap, 6 h."""
JITTER_S = 10.0
"""Polls are up to so much later than due, so that many feeds do not ask in step."""
LATE_S = 60
TICK_S = 30.0
"""How often a pushed feed looks for scans that silence has made late."""
_WORST: tuple[Origin, ...] = ("live", "cache", "replay", "simulated")
_CHUNK = timedelta(days=1)
_CHANNELS_OF = {
    "FUELHH": FUEL_TYPES, "FUELINST": FUEL_TYPES, "DEMAND": ("INDO", "ITSDO"), "INDO": ("INDO",), "ITSDO": ("ITSDO",),
    "FREQ": ("FREQ",),
}  # fmt: skip
Emit = Callable[[dict[str, Any]], None]


def usual(carried: Sequence[str]) -> tuple[str, ...]:
    """The streams of a feed that names none: the finest there are of fuels, demands and frequency."""
    fuels = ("FUELINST",) if "FUELINST" in carried else ("FUELHH",)
    demands = ("DEMAND",) if "DEMAND" in carried else ("INDO", "ITSDO")
    return tuple(name for name in (*fuels, *demands, "FREQ") if name in carried)


def usual_step(streams: Sequence[str]) -> int:
    """The step of a feed that names none: that of its fuels, so that each scan has them; 300 s where it has none."""
    return 1800 if "FUELHH" in streams and "FUELINST" not in streams else 300


def fed(streams: Sequence[str]) -> list[Stream]:
    """The streams of a feed.  Raises: UnknownStream; ValueError for one that has no channel."""
    found = [stream_of(name) for name in streams]
    for stream in found:
        if stream.name not in _CHANNELS_OF:
            raise ValueError(f"{stream.name} has no channel in a scan; fed are {', '.join(_CHANNELS_OF)}")
    return found


def messages(scans: Scans, streams: Sequence[Stream], origin: Origin) -> Iterator[dict[str, Any]]:
    """One message per scan, in order; scans in which nothing at all was published have values {}."""
    step_s = scans.step_s
    for i, t0_ns in enumerate(scans.t0_ns.tolist()):
        end_ns = t0_ns + step_s * SECOND_NS
        values: dict[str, float] = {}
        missing: list[str] = []
        late: dict[str, int] = {}
        for stream in streams:
            period_s = int(stream.cadence.total_seconds())
            due = period_s <= step_s or end_ns % (period_s * SECOND_NS) == 0
            for name in _CHANNELS_OF[stream.name]:
                at = CHANNEL_AT[name]
                value, published = float(scans.value_SC[i, at]), int(scans.published_ns_SC[i, at])
                if math.isfinite(value):
                    values[name] = int(value) if value.is_integer() and name != "FREQ" else round(value, 4)
                    delay = (published - end_ns) // SECOND_NS
                    if published and delay > stream.lag.total_seconds() + LATE_S:
                        late[name] = delay
                elif due and name not in missing:
                    missing.append(name)
                    if scans.age_SC[i, at] != NEVER:
                        late[name] = int(scans.age_SC[i, at]) * step_s
        yield {
            "schema": SCHEMA, "grid": GRID, "t0": iso(t0_ns), "step_s": step_s, "origin": origin, "values": values,
            "missing": missing, "late": late,
        }  # fmt: skip


def as_line(message: dict[str, Any]) -> str:
    """Compact JSON on one line; the same message gives the same bytes."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False)


async def replay(
    source: ReplaySource, streams: Sequence[str], step_s: int, emit: Emit, start: datetime | None = None,
    end: datetime | None = None, once: bool = False,
) -> int:  # fmt: skip
    """Say every scan of [start, end) at the replay's speed; the whole record when not given.

    Returns: how many were said. Raises: NotCarried, UnknownStream; ValueError for a step that is none.
    """
    found = fed(streams)
    first, last = source.span()
    start, end = _floor(start or first, step_s), end or last
    said = 0
    while start < end:
        stop = min(end, start + _CHUNK)
        # the rows of some hours before give every channel its age
        rows = {s.name: (await source.fetch(s.name, start - HORIZON, stop)).rows for s in found}
        scans = scans_from(rows, step_s, start - HORIZON, stop)
        scans = scans[int(np.searchsorted(scans.t0_ns, ns_of(start))) :]
        for message in messages(scans, found, "replay"):
            await source.wait_until(datetime.fromisoformat(message["t0"]) + timedelta(seconds=step_s))
            emit(message)
            said += 1
            if once:
                return said
        start = stop
    return said


class Feed:
    """What polling has seen: rows of the last hours, and what was said of each scan.

    Invariant: from the first scan with a value of a stream that comes in each scan, every scan is said: when it is over
    and has a value, or when all of it is late; and again only when its content changed. Nothing older than HORIZON is
    held.
    """

    def __init__(self, streams: Sequence[str], step_s: int) -> None:
        if step_s not in STEPS:
            raise ValueError(f"step {step_s} s; scans run on {', '.join(map(str, STEPS))} s")
        self.streams, self.step_s = fed(streams), step_s
        self._held: dict[str, dict[tuple[Any, ...], Row]] = {stream.name: {} for stream in self.streams}
        self._origin: dict[str, Origin] = {}
        self._said: dict[str, str] = {}
        fast = [stream for stream in self.streams if stream.cadence.total_seconds() <= step_s] or self.streams
        self._fast = {name for stream in fast for name in _CHANNELS_OF[stream.name]}
        # an empty scan is no news before the next poll had its chance to fill it
        self._patience = timedelta(seconds=step_s + LATE_S) + max(stream.lag + stream.poll for stream in fast)
        self._since: str | None = None

    def take(self, fetched: Fetched) -> None:
        """Keep the rows of one answer; an older publication never replaces a newer one."""
        held = self._held[fetched.stream]
        for row in fetched.rows:
            key = row.key
            held[key] = row if key not in held else latest_of((held[key], row))[key]
        self._origin[fetched.stream] = fetched.origin

    def news(self, now: datetime) -> list[dict[str, Any]]:
        """Messages of the scans that are over by now and are new or changed, oldest first."""
        oldest = now - HORIZON
        for held in self._held.values():
            for key in [key for key, row in held.items() if row.at < oldest]:
                del held[key]
        if not self._origin:
            return []
        scans = scans_from({name: list(held.values()) for name, held in self._held.items()}, self.step_s, oldest, now)
        # the last scan is not over; the first half-hour lacks rows that were dropped, which is no news
        over = int(np.searchsorted(scans.t0_ns + self.step_s * SECOND_NS, ns_of(now), side="right"))
        begin = 1800 // self.step_s + 1
        origin = max(self._origin.values(), key=_WORST.index)
        out = []
        for message in messages(scans[begin:over], self.streams, origin):
            # the age of what is missing grows by itself: no news
            content = json.dumps([message["values"], message["missing"]])
            if self._since is None and self._fast & message["values"].keys():
                self._since = message["t0"]
            if self._since is None or message["t0"] < self._since or self._said.get(message["t0"]) == content:
                continue
            if message["values"] or datetime.fromisoformat(message["t0"]) + self._patience <= now:
                self._said[message["t0"]] = content
                out.append(message)
        floor = z(oldest)
        for t0 in [t0 for t0 in self._said if t0 < floor]:
            del self._said[t0]
        return out


async def poll(
    source: GridSource, feed: Feed, emit: Emit, *, once: bool = False, now: Callable[[], datetime],
    sleep: Callable[[float], Awaitable[object]], rng: random.Random, failed: Callable[[str, Exception], None],
    until: datetime | None = None,
) -> int:  # fmt: skip
    """Ask each stream when it is due, with jitter, and say the news; for ever, unless once or until.

    An ElexonError of a stream goes to `failed` and the next poll tries again.
    Returns: how many scans were said.
    """
    due = {stream.name: now() for stream in feed.streams}
    said = 0
    while True:
        for stream in feed.streams:
            if due[stream.name] > now():
                continue
            try:
                feed.take(await source.latest(stream.name))
            except ElexonError as error:
                failed(stream.name, error)
            due[stream.name] = next_poll(stream, now(), rng)
        for message in feed.news(now()):
            emit(message)
            said += 1
        if once or (until is not None and now() >= until):
            return said
        await sleep(max(0.0, (min(due.values()) - now()).total_seconds()))


async def push(
    source: IrisSource, feed: Feed, emit: Emit, *, once: bool = False, now: Callable[[], datetime],
    until: datetime | None = None, tick_s: float = TICK_S,
) -> int:  # fmt: skip
    """Say the news that a queue brings, and each tick what silence makes news; until the queue ends, once or until.

    A message is settled when every scan that its rows lie in was said; until then a crash gives it back.
    Returns: how many scans were said.  Raises: Unavailable when the queue breaks off; NotCarried.
    """
    for stream in feed.streams:
        source.carried(stream.name)
    messages, said = source.messages(), 0

    def say() -> datetime:
        nonlocal said
        t = now()
        for message in feed.news(t):
            emit(message)
            said += 1
        return _floor(t, feed.step_s)

    async def produce(fetched: Fetched) -> datetime:
        if stream_of(fetched.stream) in feed.streams:
            feed.take(fetched)
        return say()

    taking = asyncio.ensure_future(source.take(messages, produce))
    try:
        while True:
            await asyncio.wait({taking}, timeout=tick_s)
            settled = taking.done()
            if settled and not taking.result():
                return said
            say()
            if (once and said and settled) or (until is not None and now() >= until):
                return said
            if settled:
                taking = asyncio.ensure_future(source.take(messages, produce))
    finally:
        taking.cancel()
        await asyncio.wait({taking})


def next_poll(stream: Stream, now: datetime, rng: random.Random) -> datetime:
    """When to ask next: the next mark of the stream's poll interval, its lag and a jitter later.

    FUELINST and the half-hourly streams come on marks, so they are asked soon after one and not at random.
    """
    every = stream.poll.total_seconds()
    mark = (math.floor(now.timestamp() / every) + 1) * every
    wait = min(stream.lag.total_seconds(), 30.0) + rng.uniform(0.0, JITTER_S)
    return datetime.fromtimestamp(mark + wait, tz=UTC)


def _floor(t: datetime, step_s: int) -> datetime:
    return datetime.fromtimestamp(t.timestamp() // step_s * step_s, tz=UTC)
