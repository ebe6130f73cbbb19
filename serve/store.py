"""What the scan loop writes to Redis: one Lua call per scan, all of it or nothing.

Flow:    serve.loop -> [store: apply] -> Redis -> serve.view
Source:  live.md, section 1 (write, start position, fence); keys in serve.keys

A call compares the fence (who owns the partition), the chain (the scan before was applied) and the version (nothing
newer stands there), and then sets verdict, map, incidents, what the loop carries over a restart, and the position. So
the position never passes a scan that was not applied, and Redis looks as if each scan had been applied once.
Keys of incidents are made inside the script: one Redis node, no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from serve import keys
from serve.failpoints import is_armed, reach
from serve.records import AlarmRecord, VerdictRecord, dump

Answer = Literal["written", "stale", "moved", "fenced", "gap"]
"""written; stale: something newer stands there, only the position moved; moved: there was no verdict to write; fenced:
another consumer owns the partition, nothing was done; gap: the position is not where this scan follows on, nothing
was done."""
_APPLY = """
if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[1]) or '0') then return 'fenced' end
local inc = tonumber(redis.call('HGET', KEYS[2], 'incarnation') or '0')
local pos = tonumber(redis.call('HGET', KEYS[2], 'position') or '-1')
local my_inc, base, after = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local opens = ARGV[5] == '1'
if my_inc < inc then return 'fenced' end
if not opens and (my_inc ~= inc or pos < base) then return 'gap' end
local advances = my_inc > inc or after > pos
local answer = 'moved'
if ARGV[9] ~= '' then
  local kind, a, b = unpack(redis.call('HMGET', KEYS[4], 'kind', 'a', 'b'))
  local my_a, my_b = tonumber(ARGV[7]), tonumber(ARGV[8])
  if kind == ARGV[6] and (my_a < tonumber(a) or (my_a == tonumber(a) and my_b <= tonumber(b))) then
    answer = 'stale'
  else
    answer = 'written'
    redis.call('HSET', KEYS[4], 'kind', ARGV[6], 'a', ARGV[7], 'b', ARGV[8], 'json', ARGV[9], 'time_ms', ARGV[10])
    redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[17], '*', 'json', ARGV[9])
    redis.call('XADD', KEYS[8], 'MAXLEN', '~', ARGV[18], '*', 'kind', 'verdict', 'grid', ARGV[11], 'json', ARGV[9])
    if ARGV[12] ~= '' then redis.call('SET', KEYS[6], ARGV[12]) end
    if ARGV[14] ~= '' then redis.call('HSET', KEYS[9], ARGV[11], ARGV[14]) end
    local at = 22
    for _ = 1, tonumber(ARGV[21]) do
      local id, json, state, last = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
      local key = 'gg:alarm:' .. id
      redis.call('HSET', key, 'json', json, 'state', state)
      redis.call('EXPIRE', key, ARGV[20])
      redis.call('ZADD', KEYS[10], last, id)
      redis.call('XADD', KEYS[8], 'MAXLEN', '~', ARGV[18], '*', 'kind', 'alarm', 'grid', ARGV[11], 'json', json)
      at = at + 4
    end
    local over = redis.call('ZCARD', KEYS[10]) - tonumber(ARGV[19])
    if over > 0 then
      local gone = redis.call('ZPOPMIN', KEYS[10], over)
      for i = 1, #gone, 2 do redis.call('DEL', 'gg:alarm:' .. gone[i]) end
    end
  end
end
if advances then
  redis.call('HSET', KEYS[2], 'incarnation', ARGV[2], 'position', ARGV[4], 'ts', ARGV[15])
  if ARGV[13] ~= '' then redis.call('SET', KEYS[7], ARGV[13]) end
  if ARGV[16] ~= '' then redis.call('HSET', KEYS[3], ARGV[11], ARGV[16]) end
end
return answer
"""


class StoreDown(RuntimeError):
    """Redis does not answer, refuses writes or is full: wait and try again, nothing of this is the message's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a partition stands when it is taken over."""

    fence: int
    incarnation: int
    """0 where nothing is stored."""
    position: int
    """Next offset to apply, -1 where nothing is stored."""
    ts_ms: int
    """Broker time of the record before the position."""
    windows: dict[str, int]
    """Grid -> offset of the oldest scan of its window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One scan (or what stands for it: a dead letter, a shed one) as applied. Empty text means: nothing of that."""

    topic: str
    partition: int
    fence: int
    incarnation: int
    base: int
    """Where the position must have come for this one to follow."""
    after: int
    """Where the position stands then."""
    ts_ms: int
    opens: bool = False
    """The first write after a partition was taken over: it sets the chain."""
    grid: str = ""
    kind: Literal["feed", "log", ""] = ""
    version: tuple[int, int] = (0, 0)
    verdict: VerdictRecord | None = None
    map: str = ""
    state: str = ""
    about: str = ""
    """JSON of the grid for the index, when it is new or changed."""
    window_start: int | None = None
    alarms: Sequence[AlarmRecord] = field(default_factory=tuple)


class Store:
    """The writing side, for one consumer group."""

    def __init__(self, client: redis.Redis, group: str, event_cap: int = keys.EVENT_CAP) -> None:
        self.redis, self.group, self.event_cap = client, group, event_cap
        self._sha = ""

    @classmethod
    def connect(cls, url: str, group: str, timeout_s: float = 2.0) -> Store:
        """A store at an address; it is asked only when used."""
        once = Retry(NoBackoff(), 0)  # the loop waits and tries again by itself, and says so
        client = redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=once)
        return cls(client, group)

    def begin(self, topic: str, partition: int) -> Start:
        """Take a partition over: from now on writers with an older fence are refused.

        Raises: StoreDown
        """
        try:
            pipe = self.redis.pipeline(transaction=True)
            pipe.incr(keys.fence(self.group, topic, partition))
            pipe.hgetall(keys.offset(self.group, topic, partition))
            pipe.hgetall(keys.windows(self.group, topic, partition))
            fence, kept, windows = pipe.execute()
        except (RedisError, OSError) as error:
            raise StoreDown(str(error)) from error
        return Start(
            fence=int(fence), incarnation=int(kept.get(b"incarnation", 0)), position=int(kept.get(b"position", -1)),
            ts_ms=int(kept.get(b"ts", 0)), windows={name.decode(): int(at) for name, at in windows.items()},
        )  # fmt: skip

    def states(self, grids: Sequence[str]) -> dict[str, str]:
        """What the loop left behind of some grids.  Raises: StoreDown"""
        try:
            found: list[Any] = list(self.redis.mget([keys.state(self.group, g) for g in grids])) if grids else []
        except (RedisError, OSError) as error:
            raise StoreDown(str(error)) from error
        return {grid: kept.decode() for grid, kept in zip(grids, found, strict=True) if kept}

    def apply(self, writes: Sequence[Write]) -> list[Answer]:
        """Apply scans in order, in one pipeline.

        Returns: an answer for each of the first so many that were decided; all of them unless Redis failed in between
        Raises:  StoreDown when not even the first was decided
        """
        done: list[Answer] = []
        try:
            for attempt in range(2):
                if not self._sha or attempt:
                    self._sha = str(self.redis.script_load(_APPLY))
                rest = writes[len(done) :]
                if is_armed("half-pipeline") and len(rest) > 1:  # so that a test can die with half of it applied
                    self._send(rest[: len(rest) // 2])
                    reach("half-pipeline")
                for answer in self._send(rest):
                    if isinstance(answer, Exception):
                        if isinstance(answer, NoScriptError) and not attempt:
                            break  # Redis was restarted and has forgotten the script
                        raise answer
                    done.append(answer.decode())
                else:
                    break
        except (RedisError, OSError) as error:
            if not done:
                raise StoreDown(str(error) or type(error).__name__) from error
        return done

    def _send(self, writes: Sequence[Write]) -> list[Any]:
        pipe = self.redis.pipeline(transaction=False)
        for write in writes:
            pipe.evalsha(self._sha, 10, *self._keys(write), *self._args(write))
        return list(pipe.execute(raise_on_error=False))

    def say(self, kind: str, name: str, record: Any) -> None:
        """Publish what a part says of itself, for half a minute.  Raises: StoreDown"""
        try:
            self.redis.set(keys.status(kind, name), dump(record), ex=keys.STATUS_TTL_S)
        except (RedisError, OSError) as error:
            raise StoreDown(str(error)) from error

    def _keys(self, w: Write) -> list[str]:
        return [
            keys.fence(self.group, w.topic, w.partition), keys.offset(self.group, w.topic, w.partition),
            keys.windows(self.group, w.topic, w.partition), keys.verdict(w.grid), keys.verdicts(w.grid),
            keys.map_of(w.grid), keys.state(self.group, w.grid), keys.EVENTS, keys.GRIDS, keys.ALARMS,
        ]  # fmt: skip

    def _args(self, w: Write) -> list[Any]:
        alarms: list[Any] = []
        for alarm in w.alarms:
            alarms += [alarm["id"], dump(alarm), alarm["state"], alarm["last_ms"]]
        return [
            w.fence, w.incarnation, w.base, w.after, int(w.opens), w.kind, *w.version,
            "" if w.verdict is None else dump(w.verdict), "" if w.verdict is None else w.verdict["time_ms"], w.grid,
            w.map, w.state, w.about, w.ts_ms, "" if w.window_start is None else w.window_start, keys.VERDICT_CAP,
            self.event_cap, keys.ALARM_CAP, keys.ALARM_TTL_S, len(w.alarms), *alarms,
        ]  # fmt: skip
