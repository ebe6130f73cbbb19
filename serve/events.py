"""Server-sent events: one reader of Redis for all pages, each page at its own pace, nothing left out.

Flow:    gg:events -> [Hub] -> a ring of recent events -> [EventStream] per page -> text/event-stream
Source:  live.md, section 6; WHATWG HTML, server-sent events (an `id:` line without data still moves Last-Event-ID)

A page has a position and no queue: what it has not taken it finds in the ring, or when it was too slow for the ring,
in Redis, or when that was trimmed as well, a `reset` tells it to read everything anew. So a slow page costs no memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress

from redis.exceptions import RedisError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.observe import Metrics
from serve.problems import Problem
from serve.records import dump
from serve.view import KINDS, START, Event, View

log = logging.getLogger(__name__)

RING = 2_000
"""Recent events in memory."""
PAGE = 500
"""Events of one read."""
TICK_S = 0.2
"""A page gets what came in together, at most five times a second."""
STATUS_S = 2.0
HEARTBEAT_S = 15.0
STUCK_S = 30.0
"""A page that takes nothing for this long is dropped; it comes back by itself and goes on where it was."""
_BLOCK_MS = 1_000
_RESET = "event: reset\ndata: {}\n"


class Hub:
    """Reads gg:events once for all pages. `start` and `close` frame its life; it belongs to one event loop."""

    def __init__(self, view: View, metrics: Metrics, most_clients: int) -> None:
        self._view, self._metrics, self._most = view, metrics, most_clients
        self._ring: deque[Event] = deque(maxlen=RING)
        self.position = START
        """Newest event that was read."""
        self.epoch = 0
        """Rises when events were lost to this hub: pages of an older epoch are reset."""
        self.known = asyncio.Event()
        """Set once the position is known, or the hub is closed."""
        self.status = ""
        self.clients = 0
        self.closed = False
        self._news = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Begin to read, from the newest event on."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._ask())]

    def end(self) -> None:
        """The same as close, from any thread or signal handler, without waiting for it."""
        if self._loop is not None and not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self.close(), self._loop)

    async def close(self) -> None:
        """End every stream and stop reading. Twice is once."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        self.known.set()
        async with self._news:
            self._news.notify_all()

    def enter(self) -> None:
        """Take a page's place.  Raises: Problem 503 when all are taken or the server stops."""
        if self.closed or self.clients >= self._most:
            raise Problem(503, f"{self.clients} pages are connected, no more are taken", headers={"Retry-After": "5"})
        self.clients += 1
        self._metrics.streams.set(self.clients)

    def leave(self) -> None:
        self.clients -= 1
        self._metrics.streams.set(self.clients)

    async def news(self, position: str, epoch: int, status: str, timeout_s: float) -> None:
        """Return when there is something after a position, another epoch or status, the end, or after a time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(
                    lambda: self.closed or (self.position, self.epoch, self.status) != (position, epoch, status)
                )

    async def after(self, position: str) -> tuple[list[Event], bool]:
        """Up to PAGE events after a position, and whether some between are lost."""
        ring = self._ring
        if position == self.position:
            return [], False
        for back, event in enumerate(reversed(ring)):
            if event.id == position:
                start = len(ring) - back
                return [ring[i] for i in range(start, min(start + PAGE, len(ring)))], False
        return await self._view.events(position, PAGE)

    async def _read(self) -> None:
        failing = False
        while not self.closed:  # a client of Redis may take a cancellation for a broken connection and go on
            try:
                if not self.known.is_set():
                    self.position = await self._view.position()
                    self.known.set()
                elif await self._view.wait(self.position, _BLOCK_MS) or failing:
                    await self._take()
                failing = False
            except (RedisError, OSError) as error:
                if not failing:
                    log.warning("events cannot be read: %s", type(error).__name__)
                failing = True
                await asyncio.sleep(1.0)

    async def _take(self) -> None:
        events, lost = await self._view.events(self.position, PAGE)
        async with self._news:
            if lost:
                self._ring.clear()
                self.epoch += 1
                self.position = await self._view.position()
            elif events:
                self._ring.extend(events)
                self.position = events[-1].id
            self._news.notify_all()

    async def _ask(self) -> None:
        """Statuses of the parts, once for all pages; nobody is asked while no page is connected."""
        while not self.closed:
            if self.clients:
                try:
                    told = await self._view.statuses()
                    body = {**{KINDS[kind]: parts for kind, parts in told.items()}, "redis": True}
                except (RedisError, OSError):
                    body = {**{name: [] for name in KINDS.values()}, "redis": False}
                async with self._news:  # the time makes each one differ from the last
                    self.status = dump({**body, "time_ms": self._view.now_ms()})
                    self._news.notify_all()
            await asyncio.sleep(STATUS_S)


class EventStream(Response):
    """The answer to GET /v1/stream: ends when the page leaves or takes nothing for STUCK_S, or the hub closes."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, metrics: Metrics, last: str | None, grid: str) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self._hub, self._metrics, self._last, self._grid = hub, metrics, last, grid

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._hub.enter()
        sender = asyncio.create_task(self._send(send))
        watcher = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((sender, watcher), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.leave()
            for task in (sender, watcher):
                task.cancel()
            await asyncio.gather(sender, watcher, return_exceptions=True)
        error = sender.exception() if sender.done() and not sender.cancelled() else None
        if error is not None and not isinstance(error, TimeoutError | OSError):
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._parts():
            async with asyncio.timeout(STUCK_S):
                await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self) -> AsyncIterator[str]:
        """What goes out at each tick: events together, the newest status, a comment where it is time."""
        hub, status = self._hub, ""
        await hub.known.wait()
        position, epoch, beat = self._last or hub.position, hub.epoch, time.monotonic()
        yield f"retry: 1000\nid: {position}\n\n"
        while not hub.closed:
            events, lost = await self._after(position)
            out = ""
            if lost or epoch != hub.epoch:
                position, epoch = hub.position, hub.epoch
                out = f"id: {position}\n{_RESET}\n"
            elif events:
                position = events[-1].id
                own = [e for e in events if not self._grid or e.grid == self._grid]
                self._metrics.events.inc(len(own))
                out = "".join(f"id: {e.id}\nevent: {e.kind}\ndata: {e.json}\n\n" for e in own)
            if hub.status != status:
                status = hub.status
                out += f"event: status\ndata: {status}\n\n"
            if time.monotonic() - beat >= HEARTBEAT_S:
                beat = time.monotonic()
                out += f": still here\nid: {position}\n\n"  # what was passed over for its grid stays passed
            if out:
                yield out
            if len(events) == PAGE:
                continue  # a page that was away reads on without a pause
            await asyncio.sleep(TICK_S if out or events else 0.02)
            await hub.news(position, epoch, status, HEARTBEAT_S)

    async def _after(self, position: str) -> tuple[list[Event], bool]:
        try:
            return await self._hub.after(position)
        except (RedisError, OSError):  # the page stays where it is until Redis answers
            await asyncio.sleep(1.0)
            return [], False


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
