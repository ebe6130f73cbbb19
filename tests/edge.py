"""The HTTP edge in a test's own process: records in a real Redis, a client of the app, streams read as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Verdict, Window, end_ns
from serve import keys
from serve.app import make_app
from serve.auth import add_key
from serve.records import dump, iso_ms
from serve.scoring import ModelRecord
from serve.settings import HttpSettings, LiveSettings

BASE = "http://127.0.0.1:8000"
CHEAP = {"n": 2, "r": 1, "p": 1}
T0_MS = 1_700_000_000_000
VERDICT = {
    "grid": "north", "case": "case14", "time": iso_ms(T0_MS * 10**6), "time_ms": T0_MS, "step_s": 60.0,
    "version": "1.7", "kind": "feed", "verdict": "implausible", "p_value": 0.001, "p_class": "all grids",
    "p_implausible": 0.98, "p_disturbance": 0.2, "score": 4.0, "threshold": 2.2, "type": "S1",
    "buses": ["4"], "branches": [],
    "bus_p_values": [0.002], "onset": None, "corrected": {"4.v_pu": 1.018}, "note": "", "model": "verifier/v2",
    "origin": "simulated", "values": {"FREQ": 49.98},
    "quality": {"meters": 0.7, "heard": 1.0, "streams": {}, "gap_scans": 0},
    "alarms": ["north-1-4"], "trace": "", "latency_ms": 7.5,
}  # fmt: skip
ALARM = {
    "id": "north-1-4", "grid": "north", "case": "case14", "state": "open", "verdict": "implausible", "type": "S1",
    "onset": iso_ms(T0_MS * 10**6), "first": iso_ms(T0_MS * 10**6), "last": iso_ms(T0_MS * 10**6), "first_ms": T0_MS,
    "last_ms": T0_MS, "scans": 3, "peak_score": 4.0, "p_value": 0.001, "places": [["4", 2.5]], "reasons": None,
    "corrected": {"4.v_pu": 1.018}, "model": "verifier/v2",
}  # fmt: skip
MAP = {
    "grid": "north", "time": iso_ms(T0_MS * 10**6), "time_ms": T0_MS, "node": [0.1] * 14, "edge": [0.1] * 20,
    "v_pu": [1.0] * 14, "p_mw": [5.0] * 20, "status": [1] * 20, "heard": [1] * 14,
}  # fmt: skip


class Judge:
    """A scorer that calls every window normal; `delay` holds its answers back, `fault` is raised instead."""

    def __init__(self) -> None:
        self.hold: asyncio.Event | None = None
        self.fault: Exception | None = None
        self.waiting: str | None = None

    async def score(self, windows: Sequence[tuple[Window, MeterPlan]]) -> list[Verdict]:
        if self.hold is not None:
            await self.hold.wait()
        if self.fault is not None:
            raise self.fault
        return [
            Verdict(
                case=w.case, time_ns=end_ns(w), verdict="normal", p_implausible=0.1, p_disturbance=0.1, p_value=0.5,
                type="none", buses=(), branches=(), onset_scan=-1, corrected={}, model="judge/v1",
            )
            for w, _ in windows
        ]  # fmt: skip

    async def models(self) -> list[ModelRecord]:
        return [{"grid": "*", "model": "judge/v1", "challenger": None, "digest": "00"}]

    async def ready(self) -> str | None:
        return self.waiting


def fill(redis: Redis) -> None:
    """A grid with a verdict, a map and one open incident, as the scan loop leaves them; what was there is gone."""
    redis.flushall()
    about = {"case": "case14", "step_s": 60.0, "origin": "simulated", "since": iso_ms(T0_MS * 10**6)}
    redis.hset(keys.GRIDS, "north", dump(about))
    redis.hset(keys.verdict("north"), "json", dump(VERDICT))
    for i in range(5):
        redis.xadd(keys.verdicts("north"), {"json": dump({**VERDICT, "time_ms": T0_MS + i})}, id=f"{i + 1}-0")
    redis.set(keys.map_of("north"), dump(MAP))
    put_alarm(redis, "north-1-4", T0_MS)
    redis.set(
        keys.status("consumer", "c0"), dump({"lag_s": 0.25, "paused": False, "dead_letters": {"poison": 2}}), ex=30
    )


def put_alarm(redis: Redis, incident: str, last_ms: int, **changes: Any) -> None:
    record = {**ALARM, "id": incident, "last_ms": last_ms, **changes}
    redis.hset(keys.alarm(incident), mapping={"json": dump(record), "state": record["state"]})
    redis.zadd(keys.ALARMS, {incident: last_ms})


def put_event(redis: Redis, kind: str = "verdict", grid: str = "north", record: dict[str, Any] | None = None) -> str:
    """Add to gg:events; gives the id."""
    body = {"kind": kind, "grid": grid, "json": dump(record or {**VERDICT, "grid": grid})}
    return bytes(redis.xadd(keys.EVENTS, body)).decode()


def keys_file(folder: Path, **scopes: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """A keys file with one key per name, and the keys; their hashes are cheap ones."""
    path = folder / "keys.json"
    return path, {name: add_key(path, name, own, CHEAP) for name, own in scopes.items()}


@contextlib.asynccontextmanager
async def edge(
    socket_file: Path, scorer: Any = None, layout: Any = None, **http: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """A client of an app of its own with these settings."""
    redis = AsyncRedis(unix_socket_path=str(socket_file))
    app = make_app(LiveSettings(http=HttpSettings(**http)), redis, scorer or Judge(), layout)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            yield client, app
    await redis.aclose()


class Page:
    """A page that follows GET /v1/stream of an app in this process; `slow` makes it take nothing until released."""

    def __init__(self, app: FastAPI, query: str = "", headers: dict[str, str] | None = None) -> None:
        raw = [(b"host", b"127.0.0.1:8000"), *((k.lower().encode(), v.encode()) for k, v in (headers or {}).items())]
        self._scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
            "scheme": "http", "path": "/v1/stream", "raw_path": b"/v1/stream", "query_string": query.encode(),
            "headers": raw, "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 8000), "root_path": "",
        }  # fmt: skip
        self._app = app
        self._left = asyncio.Event()
        self._asked = False
        self.takes = asyncio.Event()
        self.takes.set()
        self.status = 0
        self.text = ""
        self.parts = 0
        self._news = asyncio.Condition()
        self.done = asyncio.create_task(app(self._scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.takes.wait()
        async with self._news:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            elif message["body"]:
                self.parts += 1
                self.text += message["body"].decode()
            self._news.notify_all()

    async def until(self, test: Any, within_s: float = 10.0) -> None:
        """Wait until test(page) holds of what has come."""
        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(lambda: test(self))

    async def leave(self) -> None:
        self._left.set()
        await self.done

    @property
    def events(self) -> list[tuple[str, str, Any]]:
        """(id, kind, data) of all events so far; an id of another one is carried on, as EventSource does."""
        out, last = [], ""
        for block in self.text.split("\n\n"):
            fields = dict(re.findall(r"^(\w+): (.*)$", block, re.MULTILINE))
            last = fields.get("id", last)
            if "data" in fields:
                out.append((last, fields.get("event", ""), json.loads(fields["data"])))
        return out

    def of(self, kind: str) -> list[str]:
        """Ids of the events of a kind."""
        return [event_id for event_id, name, _ in self.events if name == kind]
