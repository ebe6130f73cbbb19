"""One token bucket per host for all processes of a deployment, in Redis: several feeders together stay inside the rate.

Flow:    gg_ray.elexon.http -> [redislimits] -> Redis, keys gg:limit:{<host>}:full and :grants
Source:  generic cell rate algorithm, which keeps of a bucket the time when it is full again; docs/gb-data.md, limits
Limits:  :full ends when the bucket is full, :grants 60 s after its last grant and holds at most CEILING times
Time:    the server's clock decides, whatever the clocks of the processes say
"""

from __future__ import annotations

import asyncio
import logging
import time

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gg_ray.elexon.limits import CEILING, CEILING_SPAN_S, Clock, Sleep, TokenBucket

log = logging.getLogger(__name__)

PREFIX = "gg:limit:"
REST_S = 10.0
"""How long a Redis that did not answer is not asked again, so that it costs one time-out and not one per request."""
_TURN = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local gap, burst, ceiling = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local span, most = tonumber(ARGV[4]), tonumber(ARGV[5])
-- never fuller than full; never emptier than empty, which a server clock that was set back would make it
local full = math.min(math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now), now + burst * gap)
local wait = full + gap - burst * gap - now
local oldest = redis.call('LINDEX', KEYS[2], -ceiling)
if oldest then wait = math.max(wait, math.min(oldest + span - now, span)) end
if wait > 0 then return math.ceil(wait) end
full = math.ceil(full + gap)
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
redis.call('RPUSH', KEYS[2], string.format('%.0f', now))
redis.call('LTRIM', KEYS[2], -most, -1)
redis.call('PEXPIRE', KEYS[2], math.ceil(span / 1000))
return 0
"""
"""One turn, or the microseconds until there may be one; a script runs alone, so that no two clients take the same one.

KEYS  :full, :grants.  ARGV  microseconds per token, burst, ceiling, span of the ceiling in microseconds, CEILING.
"""


class RedisBucket(TokenBucket):
    """A TokenBucket whose turns are shared by every process that asks the same Redis about the same host.

    Invariant: what TokenBucket promises holds for all of them together while Redis answers, and for each by itself at
    any time: a turn that Redis gives is booked here too, so that when it goes away (one log line; another when it
    is back) the bucket at hand goes on from where this process stands.
    Belongs to one event loop, which owns the client too.
    """

    def __init__(
        self,
        redis: Redis,
        host: str,
        rate_per_s: float = 2.0,
        burst: int = 5,
        *,
        ceiling: int = CEILING,
        timeout_s: float = 0.5,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        super().__init__(rate_per_s, burst, ceiling=ceiling, clock=clock, sleep=sleep)
        self.host, self.timeout_s = host, timeout_s
        self._script = redis.register_script(_TURN)
        self._keys = [f"{PREFIX}{{{host}}}:{part}" for part in ("full", "grants")]  # braces: one slot of a cluster
        self._args = [1e6 / rate_per_s, burst, self.ceiling, int(CEILING_SPAN_S * 1e6), CEILING]
        self._one_by_one = asyncio.Lock()
        self._silent_until: float | None = None
        """Redis did not answer, and is not asked before that."""

    async def turn(self) -> float:
        """0.0 when the request may go now; else seconds after which to ask again."""
        async with self._one_by_one:  # else two might see the last token here and take two of the shared ones
            wait = self.wait_s()
            if wait == 0.0 and (self._silent_until is None or self._clock() >= self._silent_until):
                wait = await self._shared_wait_s()
            return wait or self.try_acquire()

    async def _shared_wait_s(self) -> float:
        """What Redis says; 0.0 when it says nothing."""
        try:
            async with asyncio.timeout(self.timeout_s):
                wait_us = await self._script(keys=self._keys, args=self._args)
        except (RedisError, OSError) as error:
            if self._silent_until is None:
                log.warning(
                    "%s: the limit in Redis does not answer (%s); this process keeps to %g/s of its own",
                    self.host, str(error) or f"nothing within {self.timeout_s:g} s", self.rate_per_s,
                )  # fmt: skip
            self._silent_until = self._clock() + REST_S
            return 0.0
        if self._silent_until is not None:
            self._silent_until = None
            log.warning("%s: the limit is shared through Redis again", self.host)
        return float(wait_us) / 1e6
