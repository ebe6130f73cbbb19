"""Names of everything the live path keeps in Redis, with its cap or time to live.

Flow:    serve.store writes, serve.view reads
Source:  design.md, section 6 (Redis); docs/live.md has the table for people
"""

from __future__ import annotations

VERDICT_CAP = 5_760
"""Entries of a grid's stream of verdicts: a day at 15 s, four days at a minute."""
EVENT_CAP = 10_000
"""Entries of the shared stream of events that pages follow."""
ALARM_CAP = 2_000
"""Incidents in the index; older ones leave with their hashes."""
ALARM_TTL_S = 30 * 86_400
STATUS_TTL_S = 30

EVENTS = "gg:events"
"""Stream: kind (verdict, alarm, operator), grid, json. Its ids are the event ids of GET /v1/stream."""
GRIDS = "gg:grids"
"""Hash: grid -> JSON {case, step_s, origin, since}."""
ALARMS = "gg:alarms"
"""Sorted set: incident id by the time of its last flagged scan, ms."""
AUDIT = "gg:audit"
"""Stream: who acknowledged, shelved or promoted what; capped as events."""


def verdict(grid: str) -> str:
    """Hash of the newest verdict: json, kind (feed or log) and the two halves a, b of its version, time_ms."""
    return f"gg:verdict:{grid}"


def verdicts(grid: str) -> str:
    """Stream of verdicts of a grid: json."""
    return f"gg:verdicts:{grid}"


def map_of(grid: str) -> str:
    """String: JSON of the newest scores, voltages and flows of every place."""
    return f"gg:map:{grid}"


def alarm(incident: str) -> str:
    """Hash of an incident: json (serve.records.AlarmRecord), state (open, closed), ack, shelve."""
    return f"gg:alarm:{incident}"


def state(group: str, grid: str) -> str:
    """String: open incidents of a grid as the scan loop carries them over a restart."""
    return f"gg:state:{group}:{grid}"


def offset(group: str, topic: str, partition: int) -> str:
    """Hash: position (next offset to apply), incarnation, ts (broker time of the record before it, ms)."""
    return f"gg:offset:{group}:{topic}:{partition}"


def windows(group: str, topic: str, partition: int) -> str:
    """Hash: grid -> offset of the oldest scan of its window, where reading back begins."""
    return f"gg:windows:{group}:{topic}:{partition}"


def fence(group: str, topic: str, partition: int) -> str:
    """Counter of assignments of a partition; a writer with a smaller number is refused."""
    return f"gg:fence:{group}:{topic}:{partition}"


def status(kind: str, name: str) -> str:
    """String with a time to live: JSON of what a part (consumer, verifier, feed) says of itself."""
    return f"gg:status:{kind}:{name}"


EPOCH = "gg:epoch"
"""Hash: topic -> counter of feeder starts; the first half of a message's version."""
