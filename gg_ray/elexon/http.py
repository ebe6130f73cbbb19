"""One GET against one host: limited, timed, bounded, asked again when that helps, and typed when it fails.

Flow:    elexon.insights -> [http] -> the service -> bytes -> elexon.parse
Source:  docs/gb-data.md, limits; docs/adr/0013-elexon-client.md
Limits:  connect 5 s, read 20 s, 60 s for the whole answer, 20 MB unpacked, no redirect off the host
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Any

import httpx

from gg_ray.elexon.errors import BadAnswer, BadRequest, ElexonError, RateLimited, Unavailable
from gg_ray.elexon.limits import HOSTS, Buckets, Circuit, Clock, Retry, Sleep, retry_after_s
from gg_ray.elexon.times import utc_now

USER_AGENT = "grid-guardian/0.1 (research; python-httpx)"
REDIRECTS = 3
"""Redirects followed within one call, each at the same scheme, host and port."""
_REFUSED = frozenset((400, 404, 405, 410, 413, 414, 422))
"""Our question is wrong; the same question gets the same answer."""
_CLOSED = frozenset((401, 403, 451))
"""The service answers, but not to us (abroad, at times): not asked again, but the store may serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of one attempt."""

    connect_s: float = 5.0
    read_s: float = 20.0
    """Longest pause between two pieces of an answer."""
    total_s: float = 60.0
    """Deadline of the whole attempt: a slow drip never trips read_s."""
    largest_bytes: int = 20 * 2**20
    """Unpacked size at which an answer is cut off; a day of FREQ has 0.5 MB."""


class HttpClient:
    """Asks one host over HTTP and gives bytes or a typed error.

    Invariant: no request leaves without a token of the host's bucket; none goes to another host than base_url's.
    counts     requests, retries, bytes, status_<code>, timeouts, broken
    """

    def __init__(
        self,
        base_url: str,
        *,
        limits: HttpLimits | None = None,
        buckets: Buckets = HOSTS,
        circuit: Circuit | None = None,
        retry: Retry | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        now: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
    ) -> None:
        self.base_url = httpx.URL(base_url.rstrip("/"))
        if self.base_url.scheme not in ("https", "http") or not self.base_url.host:
            raise ValueError(f"{base_url!r} is no http(s) address")
        if self.base_url.scheme == "http" and not _is_local(self.base_url.host):
            raise ValueError(f"{base_url!r}: plain http is for a server on this machine only; use https")
        self.limits = limits or HttpLimits()
        self.bucket = buckets.of(self.base_url.netloc.decode())
        self.circuit = circuit or Circuit(clock=clock)
        self.retry = retry or Retry()
        self.counts: Counter[str] = Counter()
        self._sleep, self._now, self._rng = sleep, now, rng or random.Random()
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get(self, path: str, params: Mapping[str, str]) -> bytes:
        """Body of the 200 answer, unpacked.

        Raises:  BadRequest (400, 404 ..), RateLimited (429 after every try), Unavailable (5xx, time-out, broken
                 connection after every try, 401 and 403 at once, open circuit), BadAnswer (too large, redirect off
                 the host, a status that no policy covers).
        """
        what = f"GET {path}"
        tried = 0
        while True:
            tried += 1
            try:
                return await self._attempt(what, path, params)
            except _MayPass as error:
                failure = error
            if tried >= self.retry.tries or self.circuit.is_open:
                opened = "; the circuit is open now" if self.circuit.is_open else ""
                raise failure.final(f"{what}: {failure} after {tried} {'try' if tried == 1 else 'tries'}{opened}")
            self.counts["retries"] += 1
            await self._sleep(self.retry.delay_s(tried, failure.retry_after_s, self._rng))

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _attempt(self, what: str, path: str, params: Mapping[str, str]) -> bytes:
        with self.circuit.call(what) as settle:
            try:
                body = await self._exchange(what, path, params)
            except (_MayPass, Unavailable):
                settle(False)
                raise
            except (BadRequest, BadAnswer):
                settle(True)
                raise
            settle(True)
            return body

    async def _exchange(self, what: str, path: str, params: Mapping[str, str]) -> bytes:
        url = httpx.URL(f"{self.base_url}{path}", params=dict(params))
        for _ in range(REDIRECTS + 1):
            await self.bucket.acquire()
            self.counts["requests"] += 1
            try:
                async with asyncio.timeout(self.limits.total_s):
                    answer = await self._send(what, url)
            except (TimeoutError, httpx.TimeoutException) as error:
                self.counts["timeouts"] += 1
                raise _MayPass(f"no whole answer in time ({type(error).__name__})", Unavailable) from error
            except (httpx.TransportError, httpx.InvalidURL) as error:
                self.counts["broken"] += 1
                raise _MayPass(f"{type(error).__name__}: {error}", Unavailable) from error
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise BadAnswer(f"{what}: more than {REDIRECTS} redirects")

    async def _send(self, what: str, url: httpx.URL) -> bytes | httpx.URL:
        """The body, or where the host redirects to."""
        async with self._open().stream("GET", url) as response:
            status = response.status_code
            self.counts[f"status_{status}"] += 1
            if status == 200:
                body = await self._body(what, response)
                self.counts["bytes"] += len(body)
                return body
            if response.has_redirect_location:
                return self._on_host(what, url.join(response.headers["location"]))
            if status == 429 or status == 408 or status >= 500:
                after = retry_after_s(response.headers.get("retry-after"), self._now())
                raise _MayPass(f"status {status}", RateLimited if status == 429 else Unavailable, after)
            said = await self._said(response)
            if status in _REFUSED:
                raise BadRequest(f"{what}: status {status}: {said}; asked {url.query.decode()!r}")
            if status in _CLOSED:
                raise Unavailable(f"{what}: status {status}: {said}; the service does not answer from here")
            raise BadAnswer(f"{what}: status {status}: {said}")

    def _on_host(self, what: str, url: httpx.URL) -> httpx.URL:
        home = self.base_url
        if (url.scheme, url.host, url.port) != (home.scheme, home.host, home.port):
            raise BadAnswer(
                f"{what}: redirected to {url.scheme}://{url.netloc.decode()}, off {home.host}; not followed"
            )
        return url

    async def _body(self, what: str, response: httpx.Response) -> bytes:
        most = self.limits.largest_bytes
        declared = response.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:18]) > most:
            raise BadAnswer(f"{what}: the answer has {int(declared[:18])} bytes, more than {most}")
        coding = response.headers.get("content-encoding", "identity").lower()
        if coding not in ("identity", "gzip"):
            raise BadAnswer(f"{what}: content-encoding {coding!r}, which was not asked for")
        # unpacked here and not by httpx: its pieces have no bound, so 1 MB of gzip could become 1 GB at once
        unpack = zlib.decompressobj(31) if coding == "gzip" else None
        body = bytearray()
        async for piece in response.aiter_raw():
            try:
                body += unpack.decompress(piece, most + 1 - len(body)) if unpack else piece
            except zlib.error as error:
                raise BadAnswer(f"{what}: damaged gzip: {error}") from error
            if len(body) > most:
                raise BadAnswer(f"{what}: the answer is larger than {most} bytes; cut off")
        if unpack is not None and not unpack.eof:
            raise BadAnswer(f"{what}: damaged gzip: it ends early")
        return bytes(body)

    async def _said(self, response: httpx.Response) -> str:
        """What the service says about its refusal: title and errors of problem JSON, or the start of the text."""
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > 65_536:
                break
        try:
            problem: Any = json.loads(bytes(body))
            errors = problem.get("errors") or {}
            parts = [problem.get("title"), *(text for texts in errors.values() for text in texts)]
            return " ".join(str(part) for part in parts if part)[:500]
        except (ValueError, AttributeError, TypeError, RecursionError):
            return repr(bytes(body[:80]).decode("utf-8", "replace"))

    def _open(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:  # a connection dies with the event loop that made it
            self._loop = loop
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(self.limits.read_s, connect=self.limits.connect_s),
                follow_redirects=False,
                headers={"user-agent": USER_AGENT, "accept": "application/json", "accept-encoding": "gzip"},
                trust_env=not _is_local(self.base_url.host),  # no proxy reaches a server on this machine
            )
        return self._client


class _MayPass(Exception):
    """A failure after which asking again may help, and the error that it becomes when it does not."""

    def __init__(
        self, message: str, becomes: type[Unavailable] | type[RateLimited], after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.becomes, self.retry_after_s = becomes, after_s

    def final(self, message: str) -> ElexonError:
        if self.becomes is RateLimited:
            return RateLimited(message, self.retry_after_s)
        return Unavailable(message)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
