"""What the live path says, as JSON: verdicts, incidents, maps, events. Kept in Redis, sent to pages and topics.

Flow:    serve.loop -> [records] -> serve.store, topics -> serve.view -> HTTP, page
Units:   times are ISO 8601 UTC with milliseconds beside `time_ms` (Unix ms, what a browser can hold); p.u.; MW; Hz

These shapes are the contract between the scan loop and the page; docs/live.md shows one of each.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, TypedDict


class VerdictRecord(TypedDict):
    """One judged scan of a grid."""

    grid: str
    case: str
    time: str
    time_ms: int
    step_s: float
    version: str
    """epoch.sequence of the message, or incarnation.offset for a message without; `kind` tells which."""
    kind: str
    """feed or log."""
    verdict: str
    """normal, disturbance, implausible or "cannot tell"."""
    p_value: float | None
    p_class: str
    p_implausible: float | None
    p_disturbance: float | None
    score: float | None
    """Logit of implausible."""
    threshold: float | None
    """Logit above which a scan of this grid is called implausible."""
    type: str
    buses: list[str]
    branches: list[str]
    bus_p_values: list[float]
    onset: str | None
    corrected: dict[str, float]
    """Believed values, such as {"7.v_pu": 1.013}."""
    note: str
    model: str
    origin: str
    """live, cache, replay, simulated or manual."""
    values: dict[str, float]
    """What the feed wants shown: FREQ (Hz), DEMAND, fuels and links (MW)."""
    quality: dict[str, Any]
    """{meters, heard: shares 0 to 1 of the installed meters that reported in this scan, streams: {name: live, late or
    missing}, gap_scans: scans before this one that never came}"""
    alarms: list[str]
    """Ids of incidents that this scan belongs to."""
    trace: str
    """W3C traceparent."""
    latency_ms: float | None
    """From the broker's time stamp to the moment of writing."""


class AlarmRecord(TypedDict):
    """One incident; the same record updates it, a second one is never opened for it."""

    id: str
    grid: str
    case: str
    state: str
    """open or closed."""
    verdict: str
    type: str
    onset: str
    first: str
    last: str
    first_ms: int
    last_ms: int
    scans: int
    """Flagged scans."""
    peak_score: float
    p_value: float
    places: list[tuple[str, float]]
    reasons: dict[str, Any] | None
    """calibration.reasons of its highest scan: parts, patch, meters, flows."""
    corrected: dict[str, float]
    model: str


class OperatorMark(TypedDict):
    """What a person did with an incident (acknowledge, shelve); it stays beside the incident's own record."""

    id: str
    grid: str
    action: str
    """ack, unack, shelve or unshelve."""
    by: str
    at: str
    note: str
    until: str | None
    """End of a shelf."""


class MapRecord(TypedDict):
    """Scores and state of every place at one scan, in the order of the grid's layout."""

    grid: str
    time: str
    time_ms: int
    node: list[float]
    """[N] probability that a bus is concerned."""
    edge: list[float]
    """[E] the same of a branch."""
    v_pu: list[float]
    """[N] believed |V|."""
    p_mw: list[float]
    """[E] believed flow into the branch at its from end; negative runs from `to` to `from`."""
    status: list[int]
    """[E] declared in service."""
    heard: list[int]
    """[N] 1 where a meter of the bus reported in this scan."""


def iso_ms(time_ns: int) -> str:
    """UTC nanoseconds as 2019-08-09T15:52:33.490Z."""
    seconds, rest = divmod(time_ns, 10**9)
    moment = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 10**6:03d}Z"


def dump(record: Any) -> str:
    """Compact JSON; the same record gives the same text.  Raises: ValueError for NaN or an infinity."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
