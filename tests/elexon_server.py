"""A local HTTP server that plays the Insights API: answers from rows, misbehaves on demand, checks every question.

Each question is held against the OpenAPI of the data folder (path, parameter names, required ones), or against a small
table where the folder is not. What the real service would silently ignore is written down in `violations`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from elexon_fakes import FakeClock
from elexon_rows import DATA, utc

from gg_ray.elexon.http import HttpClient, HttpLimits
from gg_ray.elexon.limits import Buckets, TokenBucket

PREFIX = "/bmrs/api/v1"
SCHEMA = DATA / "api_schema" / "elexon_insights_openapi_2026-06_trimmed.json"
_PUBLISH, _SETTLEMENT = ("publishDateTimeFrom", "publishDateTimeTo"), ("settlementDateFrom", "settlementDateTo")
EMBEDDED: dict[str, dict[str, bool]] = {
    "/datasets/FUELHH": dict.fromkeys((*_PUBLISH, *_SETTLEMENT, "settlementPeriod", "fuelType", "format"), False),
    "/datasets/FUELINST": dict.fromkeys((*_PUBLISH, *_SETTLEMENT, "settlementPeriod", "fuelType", "format"), False),
    "/datasets/FREQ": dict.fromkeys(("measurementDateTimeFrom", "measurementDateTimeTo", "format"), False),
    "/datasets/INDO": dict.fromkeys((*_PUBLISH, "format"), False),
    "/datasets/ITSDO": dict.fromkeys((*_PUBLISH, "format"), False),
    "/datasets/INDOD": {**dict.fromkeys(_PUBLISH, True), "format": False},
    "/demand/outturn": dict.fromkeys((*_SETTLEMENT, "settlementPeriod", "format"), False),
    "/generation/outturn": dict.fromkeys(("from", "to", "format"), False),
    "/system/warnings": dict.fromkeys((*_PUBLISH, "warningType", "format"), False),
    "/data-status/FREQ": dict.fromkeys((*_SETTLEMENT, "format"), False),
}
PROBLEM = {
    "type": "https://tools.ietf.org/html/rfc9110#section-15.5.1",
    "title": "One or more validation errors occurred.",
    "status": 400,
    "errors": {
        "": ["The date range between PublishDateTimeFrom and PublishDateTimeTo inclusive must not exceed 1 day"]
    },
}
HTML = b"<!DOCTYPE html><html><body>Request rejected. Support ID 1234</body></html>"


def schema() -> dict[str, dict[str, bool]]:
    """Query parameters of each path, and whether each is required."""
    if not SCHEMA.is_file():
        return EMBEDDED
    paths = json.loads(SCHEMA.read_text(encoding="utf-8"))["paths"]
    return {
        path: {p["name"]: p.get("required", False) for p in verbs["get"].get("parameters", [])}
        for path, verbs in paths.items()
    }


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server sends. mode: whole, drip (a byte at a time, never ends), torn (less than it declared), reset."""

    status: int = 200
    body: bytes = b'{"data":[]}'
    headers: dict[str, str] = field(default_factory=dict)
    mode: str = "whole"


def ok(rows: Any) -> Reply:
    return Reply(body=json.dumps({"data": rows}).encode())


def zipped(body: bytes) -> Reply:
    return Reply(body=gzip.compress(body), headers={"content-encoding": "gzip"})


def problem(status: int, **headers: str) -> Reply:
    body = json.dumps({**PROBLEM, "status": status}).encode()
    return Reply(status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Question:
    path: str
    params: dict[str, str]
    headers: dict[str, str]


class ElexonServer:
    """rows by path answer every question; replies in `script` are given first, one per question."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.script: deque[Reply] = deque()
        self.always: Reply | None = None
        self.questions: list[Question] = []
        self.violations: list[str] = []
        self.base_url = ""
        self._known = schema()

    def answer(self, question: Question) -> Reply:
        path, params = question.path, question.params
        known = self._known.get(path)
        if known is None:
            self.violations.append(f"no such path: {path}")
            return problem(404)
        self.violations += [f"{path}: unknown parameter {name}" for name in params.keys() - known.keys()]
        self.violations += [f"{path}: {name} is missing" for name, due in known.items() if due and name not in params]
        if params.keys() & set(_PUBLISH) and params.keys() & set(_SETTLEMENT):
            self.violations.append(f"{path}: both publication and settlement windows")
        if self.script:
            return self.script.popleft()
        if self.always is not None:
            return self.always
        rows = self.rows.get(path, [])
        windows: tuple[tuple[str, str, str, Callable[[str], Any]], ...] = (
            (*_PUBLISH, "publishTime", utc),
            ("measurementDateTimeFrom", "measurementDateTimeTo", "measurementTime", utc),
            ("from", "to", "startTime", utc),
            (*_SETTLEMENT, "settlementDate", str),
        )
        for low, high, name, read in windows:
            if low not in params:
                continue
            first, last = read(params[low]), read(params[high])
            if path in ("/datasets/FREQ", "/datasets/FUELINST") and last - first > timedelta(days=1):
                return problem(400)
            rows = [row for row in rows if row.get(name) is not None and first <= read(row[name]) <= last]
        return ok(rows)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = (await reader.readline()).decode("latin-1").split()[1]
            headers = {}
            while line := (await reader.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            parts = urlsplit(target)
            question = Question(parts.path.removeprefix(PREFIX), dict(parse_qsl(parts.query)), headers)
            self.questions.append(question)
            await self._send(writer, self.answer(question))
        except (OSError, IndexError):  # the client has had enough
            pass
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        if reply.mode == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return
        head = {"content-type": "application/json", "connection": "close", **reply.headers}
        if reply.mode == "torn":
            head["content-length"] = str(len(reply.body) + 100)
        elif reply.mode == "whole":
            head.setdefault("content-length", str(len(reply.body)))
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in head.items() if value), "", ""]
        writer.write("\r\n".join(lines).encode())
        if reply.mode == "drip":
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        for at in range(0, len(reply.body), 65_536):
            writer.write(reply.body[at : at + 65_536])
            await writer.drain()

    async def _run(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PREFIX}"
        ready.set()
        await stop.wait()
        server.close()

    @contextmanager
    def running(self) -> Iterator[ElexonServer]:
        loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        def work() -> None:
            loop.run_until_complete(self._run(ready, stop))
            for task in asyncio.all_tasks(loop):  # a drip that nobody ended
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

        thread = threading.Thread(target=work, name="elexon-server", daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)
        assert self.violations == []


def serving() -> Iterator[ElexonServer]:
    """Body of a fixture: a server for one test; whatever was asked wrongly fails it at its end."""
    with ElexonServer().running() as server:
        yield server


def client(server: ElexonServer, clock: FakeClock, **limits: Any) -> HttpClient:
    """A client of the server whose waits take no time."""
    return HttpClient(
        server.base_url, limits=HttpLimits(**limits), buckets=timeless(clock), clock=clock, sleep=clock.sleep,
        now=clock.now, rng=random.Random(1),
    )  # fmt: skip


def timeless(clock: FakeClock) -> Buckets:
    """Buckets of their own whose waits take no time."""
    return Buckets(lambda _host: TokenBucket(clock=clock, sleep=clock.sleep))
