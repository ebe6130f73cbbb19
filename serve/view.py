"""The read side of the live path: what Redis holds, for HTTP and pages.

Flow:    serve.store -> Redis -> [view] -> serve.routes, serve.events
Source:  serve/keys.py (names), serve/records.py (shapes)

Records are text of our own writers; where nothing is added they are passed on unparsed.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from serve import keys
from serve.records import iso_ms

P = ParamSpec("P")
T = TypeVar("T")
KINDS = {"consumer": "consumers", "verifier": "verifiers", "feed": "feeds"}
"""Parts that publish a status, and their names in GET /v1/status."""
ANSWERS_S = 3.0
"""How long a read may take."""
START = "0-0"
"""Id before every event."""
_ALARMS = """
local out, ids = {}, redis.call('ZREVRANGE', KEYS[1], 0, -1)
local state, grid, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
for _, id in ipairs(ids) do
  local held = redis.call('HMGET', ARGV[4] .. id, 'json', 'state', 'ack', 'shelve')
  if held[1] and (state == 'all' or held[2] == state)
      and (grid == '' or cjson.decode(held[1]).grid == grid) then
    out[#out + 1] = {held[1], held[3], held[4]}
    if #out >= most then break end
  end
end
return out
"""
"""Incidents, newest first, with marks.  KEYS  index.  ARGV  open|closed|all, grid or '', most, prefix of the hashes."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of gg:events as pages get it."""

    id: str
    kind: str
    """verdict, alarm or operator."""
    grid: str
    json: str


class NotHere(LookupError):
    """No such grid, map or incident; the message is one line."""


def bounded(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """A read that ends after ANSWERS_S: a client's own retries hold a call on a dead Redis for many seconds."""

    @functools.wraps(call)
    async def within(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            async with asyncio.timeout(ANSWERS_S):
                return await call(*args, **kwargs)
        except TimeoutError:
            raise RedisTimeout(f"nothing within {ANSWERS_S:g} s") from None

    return within


class View:
    """Reads over a Redis client that the caller opens and closes. now_ms gives Unix milliseconds.

    Raises: NotHere for what is not there; redis.exceptions.RedisError when Redis does not answer.
    """

    def __init__(self, redis: Redis, now_ms: Callable[[], int] = lambda: time.time_ns() // 10**6) -> None:
        self._redis, self.now_ms = redis, now_ms
        self._alarms = redis.register_script(_ALARMS)

    @bounded
    async def grids(self) -> dict[str, dict[str, Any]]:
        """Grid -> {case, step_s, origin, since}, by name."""
        held = await self._redis.hgetall(keys.GRIDS)
        return {grid: json.loads(value) for grid, value in sorted((text(k), v) for k, v in held.items())}

    @bounded
    async def grid(self, grid: str) -> dict[str, Any]:
        """One of them."""
        held = await self._redis.hget(keys.GRIDS, grid)
        if held is None:
            raise NotHere(f"no grid {grid!r} has reported; GET /v1/grids lists those that have")
        found: dict[str, Any] = json.loads(held)
        return found

    @bounded
    async def newest(self, grids: Sequence[str]) -> list[str | None]:
        """JSON of the newest verdict of each grid."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for grid in grids:
                pipe.hget(keys.verdict(grid), "json")
            return [None if found is None else text(found) for found in await pipe.execute()]

    @bounded
    async def history(self, grid: str, limit: int, before: str | None = None) -> list[tuple[str, str]]:
        """(stream id, JSON) of up to `limit` verdicts of a grid, oldest first: the newest, or those before an id."""
        await self.grid(grid)
        found: Any = await self._redis.xrevrange(keys.verdicts(grid), f"({before}" if before else "+", "-", count=limit)
        return [(text(entry), _field(fields, "json")) for entry, fields in reversed(found)]

    @bounded
    async def map(self, grid: str) -> str:
        """JSON of the newest map of a grid."""
        await self.grid(grid)
        found = await self._redis.get(keys.map_of(grid))
        if found is None:
            raise NotHere(f"{grid} has no map yet: its first window is not full")
        return text(found)

    @bounded
    async def alarms(self, state: str = "all", grid: str = "", limit: int = keys.ALARM_CAP) -> list[dict[str, Any]]:
        """Incidents with their marks, newest first. state is open, closed or all."""
        found = await self._alarms(keys=[keys.ALARMS], args=[state, grid, limit, keys.alarm("")])
        return [self.marked(*one) for one in found]

    @bounded
    async def alarm(self, incident: str) -> dict[str, Any]:
        """One incident with its marks."""
        held = await self._redis.hmget(keys.alarm(incident), ["json", "ack", "shelve"])
        if held[0] is None:
            raise NotHere(f"no incident {incident!r}; it never was, or left after {keys.ALARM_TTL_S // 86_400} days")
        return self.marked(*held)

    def marked(self, record: Any, ack: Any, shelve: Any) -> dict[str, Any]:
        """An incident with its marks; a shelf that is over by now is none."""
        shelf = json.loads(shelve) if shelve else None
        if shelf is not None and shelf["until"] <= iso_ms(self.now_ms() * 10**6):
            shelf = None
        return {**json.loads(record), "ack": json.loads(ack) if ack else None, "shelve": shelf}

    @bounded
    async def statuses(self) -> dict[str, list[dict[str, Any]]]:
        """What the parts said of themselves in the last seconds, by kind of part."""
        out: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        prefix = keys.status("", "").rstrip(":") + ":"
        names = sorted([text(key) async for key in self._redis.scan_iter(match=f"{prefix}*", count=1000)])
        for key, held in zip(names, await self._redis.mget(names) if names else [], strict=True):
            kind, _, name = key.removeprefix(prefix).partition(":")
            if held is not None and kind in out:
                out[kind].append({"name": name, **json.loads(held)})
        return out

    @bounded
    async def position(self) -> str:
        """Id of the newest event that was ever added, START before the first one."""
        try:
            return text(_field(await self._redis.xinfo_stream(keys.EVENTS), "last-generated-id"))
        except ResponseError:  # no such key
            return START

    async def wait(self, after: str, block_ms: int) -> bool:
        """Whether an event follows an id, or does within the time."""
        return bool(await self._redis.xread({keys.EVENTS: after}, count=1, block=block_ms))

    @bounded
    async def events(self, after: str, limit: int) -> tuple[list[Event], bool]:
        """Up to `limit` events after an id, oldest first, and whether some between were lost.

        Reading and looking for what was trimmed happen in one transaction: nothing leaves between them. An id before
        the oldest entry counts as trimmed, although none may have been between: too much is read, nothing is missed.
        """
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xrange(keys.EVENTS, f"({after}", "+", count=limit)
            pipe.xinfo_stream(keys.EVENTS)
            found, info = await pipe.execute(raise_on_error=False)
        if isinstance(info, ResponseError):
            return [], after != START
        if isinstance(found, Exception):
            raise found
        first = _field(info, "first-entry")
        last = _field(info, "last-generated-id")
        if after == START:  # a stream below its cap was never trimmed
            trimmed = int(_field(info, "length")) >= keys.EVENT_CAP
        else:
            trimmed = _order(after) > _order(last) or (first is not None and _order(after) < _order(first[0]))
        return await self._with_marks([_event(entry, fields) for entry, fields in found]), trimmed

    async def _with_marks(self, events: list[Event]) -> list[Event]:
        """Events of incidents with the operators' marks of now."""
        ids = [json.loads(event.json)["id"] if event.kind == "alarm" else None for event in events]
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in filter(None, ids):
                pipe.hmget(keys.alarm(one), ["ack", "shelve"])
            marks = iter(await pipe.execute() if len(pipe) else [])
        return [
            event if one is None else Event(event.id, event.kind, event.grid, json.dumps(
                self.marked(event.json, *next(marks)), separators=(",", ":"), ensure_ascii=False))
            for event, one in zip(events, ids, strict=True)
        ]  # fmt: skip


def text(value: Any) -> str:
    """A reply as text, whether the client decodes or not."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _field(fields: Mapping[Any, Any], name: str) -> Any:
    value = fields.get(name, fields.get(name.encode()))
    return value.decode() if isinstance(value, bytes) else value


def _event(entry: Any, fields: Mapping[Any, Any]) -> Event:
    return Event(text(entry), _field(fields, "kind"), _field(fields, "grid"), _field(fields, "json"))


def _order(stream_id: Any) -> tuple[int, int]:
    milliseconds, _, number = text(stream_id).partition("-")
    return int(milliseconds), int(number or 0)
