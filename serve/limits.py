"""Limits of every request, before any route: its rate, its body, how many at once, how long.

Flow:    serve.access -> [Limits] -> routes
Source:  live.md, section 5; ray.md, section 6 (a client's own header switches Ray's time limit off)

413 body too large · 429 too many requests of a caller · 503 too many at once · 408 not done in time. Bodies are taken
in whole before the route runs, so that no route can read past the limit, and a slow body is charged to its sender.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.access import Caller
from serve.buckets import Buckets
from serve.problems import Problem, answer
from serve.settings import HttpSettings

ARROW_TYPES = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
PROBES = ("/healthz", "/readyz")
"""Asked by whoever keeps the process alive: neither counted nor refused."""
STREAM = "/v1/stream"
"""Lasts as long as a page is open; has a cap of its own."""
SCORE = "/v1/score"
_STRIPPED = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""Ray Serve takes them from clients: one ends every time limit with a 0."""


class Limits:
    """ASGI middleware; needs the caller that serve.access.Identify found. clock gives seconds and never goes back."""

    def __init__(self, app: ASGIApp, settings: HttpSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._settings = app, settings
        self._buckets = Buckets(settings.rate_per_s, settings.burst, clock)
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() not in _STRIPPED]
        try:
            self._admit(scope)
            if scope["path"] == STREAM:
                await self._app(scope, receive, send)
                return
            self._running += 1
            try:
                await self._in_time(scope, receive, send)
            finally:
                self._running -= 1
        except Problem as problem:
            await answer(problem)(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        caller: Caller = scope["gg.caller"]
        wait_s = self._buckets.take(caller.bucket)
        if wait_s > 0:
            raise Problem(
                429, f"more than {self._settings.rate_per_s:g} requests a second ({self._settings.burst} at once)",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )  # fmt: skip
        if self._running >= self._settings.max_running and scope["path"] != STREAM:
            raise Problem(503, f"{self._running} requests are being answered", headers={"Retry-After": "1"})

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        limit_s = self._settings.timeout_s
        try:
            async with asyncio.timeout(limit_s) as deadline:
                body = await self._body(scope, receive)
                await self._app(scope, _replay(body, receive), noted)
        except TimeoutError:
            if started or not deadline.expired():
                raise
            raise Problem(408, f"not done within {limit_s:g} s; send fewer windows at once") from None

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body.  Raises: Problem 413, by the declared length or by what really comes."""
        headers = Headers(scope=scope)
        arrow = headers.get("content-type", "").partition(";")[0].strip().lower() in ARROW_TYPES
        most = self._settings.max_arrow_body if arrow and scope["path"] == SCORE else self._settings.max_body
        too_large = Problem(413, f"the body is larger than {most} bytes; send fewer windows, or Arrow to {SCORE}",
                            headers={"Connection": "close"})  # fmt: skip
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > most:
            raise too_large
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Problem(400, "the connection ended before the body did")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise too_large
            more = message.get("more_body", False)
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body at once, and then what the server says next (that the client left)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
