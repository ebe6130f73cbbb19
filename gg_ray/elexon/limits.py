"""How often we may ask, when to ask again, and when to stop asking: token bucket, retry policy, circuit breaker.

Flow:    elexon.http -> [limits] -> the service; serve.redislimits shares the bucket between processes
Source:  docs/gb-data.md, limits; docs/adr/0013-elexon-client.md on why this is our own code
Time:    every clock and sleep is an argument, so tests run on a fake one; seconds of a monotonic clock
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Lock

from gg_ray.elexon.errors import RateLimited, Unavailable

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

CEILING = 5_000
"""Requests in any 60 s that no setting can raise."""
CEILING_SPAN_S = 60.0


class TokenBucket:
    """Grants requests at a steady rate with a small burst.

    Invariant: in any interval of t seconds at most burst + rate * t grants, and at most CEILING in any 60 s.
    One bucket per host. Safe for several threads and event loops; the grant is counted when it is given, not when it
    is promised, so a late wake-up never makes two grants closer than they may be.
    """

    def __init__(
        self,
        rate_per_s: float = 2.0,
        burst: int = 5,
        *,
        ceiling: int = CEILING,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if not (rate_per_s > 0 and burst >= 1 and ceiling >= 1):
            raise ValueError(f"rate {rate_per_s}/s, burst {burst}, ceiling {ceiling}: all must be positive")
        self.rate_per_s, self.burst = rate_per_s, burst
        self.ceiling = min(ceiling, CEILING)
        self._clock, self._sleep = clock, sleep
        self._tokens, self._filled = float(burst), clock()
        self._grants: deque[float] = deque()
        self._lock = Lock()

    def wait_s(self) -> float:
        """0.0 when a request might go now; else seconds after which to ask again."""
        with self._lock:
            return self._wait_s(self._clock())

    def try_acquire(self) -> float:
        """0.0 when the request may go now; else seconds after which to ask again. Nothing is booked then."""
        with self._lock:
            now = self._clock()
            wait = self._wait_s(now)
            if wait == 0.0:
                self._tokens -= 1
                self._grants.append(now)
            return wait

    def _wait_s(self, now: float) -> float:
        self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate_per_s)
        self._filled = now
        while self._grants and now - self._grants[0] >= CEILING_SPAN_S:
            self._grants.popleft()
        wait = 0.0 if self._tokens >= 1 else (1 - self._tokens) / self.rate_per_s
        if len(self._grants) >= self.ceiling:
            wait = max(wait, self._grants[0] + CEILING_SPAN_S - now)
        return wait

    async def turn(self) -> float:
        """try_acquire of a bucket that may have to ask somebody for it: those that are shared override this."""
        return self.try_acquire()

    async def acquire(self, longest_s: float = 120.0) -> None:
        """Returns when the request may go.  Raises: RateLimited when that would take longer than longest_s."""
        until = self._clock() + longest_s
        while wait := await self.turn():
            wait = max(wait, 0.001)  # a rounding error must not become a busy loop
            if self._clock() + wait > until:
                raise RateLimited(f"our own limit of {self.rate_per_s:g}/s: no turn within {longest_s:g} s", wait)
            await self._sleep(wait)


class Buckets:
    """One bucket per host, made when it is first asked for, so that every client of a process shares it."""

    def __init__(self, make: Callable[[str], TokenBucket] = lambda _host: TokenBucket()) -> None:
        self._make = make
        self._held: dict[str, TokenBucket] = {}
        self._lock = Lock()

    def of(self, host: str) -> TokenBucket:
        with self._lock:
            if host not in self._held:
                self._held[host] = self._make(host)
            return self._held[host]


HOSTS = Buckets()
"""The buckets of this process."""


class Circuit:
    """Stops calls to a service that fails, so that it can recover and we answer from the store at once.

    Opens when at least `least` calls were made in the last span_s and the share of failures reaches `share`; after
    rest_s one probe may pass: its success closes the circuit, its failure opens it for another rest_s.
    """

    def __init__(
        self,
        share: float = 0.4,
        least: int = 5,
        span_s: float = 60.0,
        rest_s: float = 60.0,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self.share, self.least, self.span_s, self.rest_s = share, least, span_s, rest_s
        self._clock = clock
        self._calls: deque[tuple[float, bool]] = deque()
        self._opened: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @contextmanager
    def call(self, what: str) -> Iterator[Callable[[bool], None]]:
        """Gives a function that takes the outcome: True for an answer of any kind, False for a failure of the service.

        A call that leaves without an outcome (cancelled) counts as nothing.  Raises: Unavailable when open.
        """
        probe = self._enter(what)
        outcome: list[bool] = []
        try:
            yield outcome.append
        finally:
            if probe:
                self._probing = False
            if outcome:
                self._settle(outcome[-1], probe)

    def _enter(self, what: str) -> bool:
        """True if this call is the probe of an open circuit."""
        if self._opened is None:
            return False
        left = self._opened + self.rest_s - self._clock()
        if left > 0 or self._probing:
            when = f"next try in {left:.0f} s" if left > 0 else "one try is under way"
            raise Unavailable(f"{what}: not asked, the circuit is open after repeated failures; {when}")
        self._probing = True
        return True

    def _settle(self, succeeded: bool, probe: bool) -> None:
        now = self._clock()
        if probe:
            self._opened = None if succeeded else now
            self._calls.clear()
            return
        self._calls.append((now, succeeded))
        while now - self._calls[0][0] > self.span_s:
            self._calls.popleft()
        failed = sum(not good for _, good in self._calls)
        if self._opened is None and len(self._calls) >= self.least and failed >= self.share * len(self._calls):
            self._opened = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When to ask again after a failure that may pass: 429, 5xx, a time-out, a broken connection."""

    tries: int = 5
    first_s: float = 1.0
    factor: float = 2.0
    cap_s: float = 60.0

    def delay_s(self, tried: int, retry_after_s: float | None, rng: random.Random) -> float:
        """Pause after the tried-th failure (from 1): full jitter, or what the service asks for, up to the cap."""
        if retry_after_s is not None:
            return min(retry_after_s, self.cap_s)
        return rng.uniform(0.0, min(self.cap_s, self.first_s * self.factor ** (tried - 1)))


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, from seconds or an HTTP date; None when absent or unreadable."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())
