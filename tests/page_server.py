"""What browser tests of the page stand on: records in a real Redis, the real HTTP edge in a thread that can stop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from edge import Judge
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from gg_ray.grid import balance
from serve.app import make_app
from serve.layouts import layout_of
from serve.records import AlarmRecord, VerdictRecord, dump, iso_ms
from serve.settings import HttpSettings, LiveSettings
from serve.store import Store, Write

STEP_MS = 60_000
TOPIC = "page"


class Edge:
    """The HTTP edge on a port that it keeps over stops and starts; `asked` is every request: path, query, headers."""

    def __init__(self, socket: Path, layout: Any = layout_of, keys_file: Path | None = None) -> None:
        self._socket, self._layout = socket, layout
        self._settings = LiveSettings(http=HttpSettings(keys_file=keys_file, rate_per_s=1e4, burst=10_000))
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        app = make_app(self._settings, AsyncRedis(unix_socket_path=str(self._socket)), Judge(), self._layout)
        self._hub = app.state.hub

        async def seen(scope: Any, receive: Any, send: Any) -> None:
            self._loop = asyncio.get_running_loop()
            if scope["type"] == "http":
                headers = {name.decode(): value.decode() for name, value in scope["headers"]}
                self.asked.append((scope["path"], scope["query_string"].decode(), headers))
            await app(scope, receive, send)

        self._server = uvicorn.Server(uvicorn.Config(seen, host="127.0.0.1", port=self.port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the edge did not start"
            self._thread.join(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """End the streams and then the server; its port answers nobody until `start`."""
        asyncio.run_coroutine_threadsafe(self._hub.close(), self._loop).result(10)
        self._server.should_exit = True
        self._thread.join()


class Stage:
    """A grid of which a test tells what is said; written as the scan loop writes it."""

    def __init__(
        self, redis: Redis, grid: str = "gb-balance", case: str = balance.NAME, at_ms: int | None = None
    ) -> None:
        self.redis, self.grid, self.case = redis, grid, case
        self.at_ms = at_ms or (time.time_ns() // 10**6 - 33 * STEP_MS)
        self._store = Store(redis, f"page-{grid}")
        self._fence, self._offset = self._store.begin(TOPIC, 0).fence, 0
        drawn = layout_of(case) if case != "unknown" else {"buses": [], "branches": []}
        self.buses, self.branches = len(drawn["buses"]), len(drawn["branches"])

    def scans(self, count: int) -> None:
        """Quiet scans."""
        for _ in range(count):
            self.scan()

    def scan(self, verdict: str = "normal", alarms: Sequence[AlarmRecord] = (), **changes: Any) -> VerdictRecord:
        """One scan with the incidents that it belongs to."""
        self._offset += 1
        self.at_ms += STEP_MS
        told: Any = {
            "grid": self.grid, "case": self.case, "time": iso_ms(self.at_ms * 10**6), "time_ms": self.at_ms,
            "step_s": 60.0, "version": f"1.{self._offset}", "kind": "feed", "verdict": verdict, "p_value": 0.4,
            "p_class": "all grids", "p_implausible": 0.1, "p_disturbance": 0.1,
            "score": 4.0 if verdict == "implausible" else -2.0, "threshold": 1.4, "type": "none", "buses": [],
            "branches": [], "bus_p_values": [], "onset": None, "corrected": {}, "note": "", "model": "night/v3",
            "origin": "live",
            "values": {"FREQ": 50.0, "INDO": 31_000.0, "NUCLEAR": 5_000.0, "WIND": 9_000.0, "CCGT": 14_000.0,
                       "INTFR": -500.0},
            "quality": {"meters": 35, "heard": 1.0, "streams": {"FREQ": "live", "WIND": "live"}, "gap_scans": 0},
            "alarms": [alarm["id"] for alarm in alarms], "trace": "", "latency_ms": 7.5, **changes,
        }  # fmt: skip
        shown = {
            "grid": self.grid, "time": told["time"], "time_ms": self.at_ms, "node": [0.05] * self.buses,
            "edge": [0.05] * self.branches, "v_pu": [1.01] * self.buses, "p_mw": [120.0] * self.branches,
            "status": [1] * self.branches, "heard": [1] * self.buses,
        }  # fmt: skip
        about = dump({"case": self.case, "step_s": 60.0, "origin": told["origin"]})
        assert self._store.apply([Write(
            topic=TOPIC, partition=0, fence=self._fence, incarnation=1, base=self._offset - 1, after=self._offset,
            ts_ms=self.at_ms, opens=self._offset == 1, grid=self.grid, kind="feed", version=(1, self._offset),
            verdict=told, map=dump(shown), about=about, alarms=alarms,
        )]) == ["written"]  # fmt: skip
        return told

    def alarm(self, verdict: str = "implausible", place: str = "WIND", **changes: Any) -> AlarmRecord:
        """An open incident that began with the next scan."""
        at = iso_ms((self.at_ms + STEP_MS) * 10**6)
        record: Any = {
            "id": f"{self.grid}-{self.at_ms}-{place}", "grid": self.grid, "case": self.case, "state": "open",
            "verdict": verdict, "type": "A2" if verdict == "implausible" else "none", "onset": at, "first": at,
            "last": at, "first_ms": self.at_ms + STEP_MS, "last_ms": self.at_ms + STEP_MS, "scans": 1,
            "peak_score": 4.0,
            "p_value": 0.0012, "places": [(place, 2.2)] if place else [],
            "reasons": {
                "parts": {"residual": 3.1, "neighbour": 0.4, "time": -0.2}, "patch": [8, 15],
                "meters": [["p of WIND", -6.2, 14], ["pf of HUB-DEMAND", 3.4, 15]],
                "flows": [["WIND", 912.0, 871.4, 4.4]],
            },
            "corrected": {"WIND.mw": 8_700.5}, "model": "night/v3", **changes,
        }  # fmt: skip
        return record

    def well(self) -> None:
        """Parts that are well say so."""
        self._store.say("consumer", "c0", {"lag_s": 0.2, "lag": 0, "paused": 0})
        self._store.say("verifier", "v0", {"trouble": "", "windows": 12})
        self._store.say("feed", "f0", {"state": "running", "trouble": ""})


def until(test: Callable[[], Any], what: str, within_s: float = 10.0) -> Any:
    """The first true answer of a test; fails with `what` after a time."""
    deadline = time.monotonic() + within_s
    while not (found := test()):
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.02)
    return found
