"""Logs for machines: one JSON line an event, with the trace id; neither payloads nor keys.

Flow:    logging of every part -> [logs] -> standard error
Source:  live.md, section 6
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from serve.trace import TRACEPARENT, trace_id

_SECRETS = (
    (re.compile(r"gg_([0-9a-f]{12})_[\w-]+"), r"gg_\1_***"),
    (re.compile(r"(\w+://)[^/@\s\"]*@"), r"\1***@"),
)
"""API keys, and passwords inside addresses: third-party libraries put what they were given into their errors."""


def redacted(text: str) -> str:
    """Text without what looks like an API key or the credentials of an address."""
    for pattern, stand_in in _SECRETS:
        text = pattern.sub(stand_in, text)
    return text


class JsonLines(logging.Formatter):
    """Formats a record as one JSON line: time, level, logger, event, trace, the record's `fields`, error."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, tz=UTC)
        line: dict[str, Any] = {
            "time": f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage(),
        }  # fmt: skip
        if parent := TRACEPARENT.get():
            line["trace"] = trace_id(parent)
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return redacted(json.dumps(line, default=str, ensure_ascii=False))


def log_json(stream: TextIO = sys.stderr, level: int = logging.INFO) -> None:
    """Make every logger of this process write JSON lines to a stream, uvicorn's included; its access log is silent."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.access").propagate = False  # serve.observe writes a line with trace and route instead
