"""W3C trace context: taken from whoever asks or made here, carried by contextvar to answers and log lines.

Flow:    traceparent header -> [trace] -> answers, serve.logs, records in Redis
Source:  W3C Trace Context, level 1 (version 00); live.md, section 6
"""

from __future__ import annotations

import contextvars
import re
import secrets

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
TRACEPARENT: contextvars.ContextVar[str] = contextvars.ContextVar("traceparent", default="")
"""Of the request that the running task answers; empty outside one."""


def traceparent(given: str | None) -> str:
    """The same trace with a span of our own; a new trace where none was given or it is not one."""
    found = _FORM.fullmatch(given.strip().lower()) if given else None
    trace, flags = found.group(1, 2) if found else (secrets.token_hex(16), "01")
    return f"00-{trace}-{secrets.token_hex(8)}-{flags}"


def trace_id(parent: str) -> str:
    """The 32 hexadecimal digits that all spans of a trace share; empty for an empty text."""
    return parent.split("-")[1] if parent else ""
