"""What people do with incidents: acknowledge, shelve for a while, and take both back; each is written to the audit log.

Flow:    POST /v1/alarms/{id}/… -> [operators] -> gg:alarm:{id} (marks), gg:events, gg:audit
Source:  live.md, section 5 (audit log); ISA-18.2 names of the actions

An incident's own record (field json, state) is the scan loop's and is never touched here. A repeated request changes
nothing and is told once: see _MARK.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from serve import keys
from serve.records import OperatorMark, dump, iso_ms
from serve.trace import TRACEPARENT
from serve.view import NotHere, View

FIELDS = {"ack": "ack", "unack": "ack", "shelve": "shelve", "unshelve": "shelve"}
"""Action -> field of the incident's hash."""
LONGEST_NOTE = 500
LONGEST_SHELF_MIN = 7 * 24 * 60
SAME_MS = 10_000
"""A person who shelves again with the same words within this time sent the same request twice."""
_MARK = """
local record = redis.call('HGET', KEYS[1], 'json')
if not record then return false end
local field, mark, adds = ARGV[1], ARGV[2], ARGV[3] == '1'
local new, held = cjson.decode(mark), redis.call('HGET', KEYS[1], field)
local old = held and cjson.decode(held)
if old and old['until'] ~= cjson.null and old['until'] <= new.at then
  redis.call('HDEL', KEYS[1], field)
  old = false
end
local same = not old and not adds
if old and adds then
  same = old.note == new.note and (field == 'ack' or (old.by == new.by and old.at > ARGV[4]))
end
if not same then
  if adds then redis.call('HSET', KEYS[1], field, mark) else redis.call('HDEL', KEYS[1], field) end
  local entry = {'MAXLEN', '~', ARGV[5], '*', 'kind', 'operator', 'grid', new.grid, 'json', mark}
  redis.call('XADD', KEYS[2], unpack(entry))
  entry[#entry + 1], entry[#entry + 2] = 'trace', ARGV[6]
  redis.call('XADD', KEYS[3], unpack(entry))
end
local marks = redis.call('HMGET', KEYS[1], 'ack', 'shelve')
return {record, marks[1], marks[2]}
"""
"""One action on one incident, whole or not at all; gives its record and marks, or nothing for an unknown incident.

The first acknowledgement stands until another note is given. Taking back what is not there changes nothing.

KEYS  hash of the incident, events, audit
ARGV  field, mark, 1 to set or 0 to take back, time after which a shelf is the same request, cap of the streams, trace
"""


class Operators:
    """Actions over a View's Redis."""

    def __init__(self, redis: Redis, view: View) -> None:
        self._view = view
        self._script = redis.register_script(_MARK)

    async def act(self, action: str, incident: str, by: str, note: str = "", minutes: int = 60) -> dict[str, Any]:
        """Do an action (ack, unack, shelve, unshelve) in somebody's name.

        Args:    minutes  length of a shelf
        Returns: the incident with its marks as they are then.
        Raises:  NotHere for an unknown incident; redis.exceptions.RedisError.
        """
        now_ms = self._view.now_ms()
        record = await self._view.alarm(incident)
        mark = OperatorMark(
            id=incident, grid=record["grid"], action=action, by=by, at=iso_ms(now_ms * 10**6), note=note,
            until=iso_ms((now_ms + 60_000 * minutes) * 10**6) if action == "shelve" else None,
        )  # fmt: skip
        found = await self._script(
            keys=[keys.alarm(incident), keys.EVENTS, keys.AUDIT],
            args=[
                FIELDS[action], dump(mark), int(action in ("ack", "shelve")), iso_ms((now_ms - SAME_MS) * 10**6),
                keys.EVENT_CAP, TRACEPARENT.get(),
            ],
        )  # fmt: skip
        if found is None:
            raise NotHere(f"no incident {incident!r}")
        return self._view.marked(*found)
