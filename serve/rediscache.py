"""The short cache of Elexon answers in Redis, so that every process of a deployment falls back on the same one.

Flow:    gg_ray.elexon.cache -> [rediscache] -> Redis, keys gg:cache:elexon:<stream>:<window>
Limits:  300 s to live; one answer of at most 2 MB; a Redis that is down holds nothing and costs one log line
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from redis.asyncio import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

PREFIX = "gg:cache:elexon:"
LONGEST_TTL_S = 300.0
LARGEST_BYTES = 2 * 2**20


class RedisCache:
    """gg_ray.elexon.cache.Cache over a Redis client that the caller opens and closes.

    Each call ends after timeout_s: a client's own retries hold a call on a dead Redis for 4 s, and the live answer
    would wait for that.
    counts   hits, misses, sets, too_large, failed
    """

    def __init__(self, redis: Redis, *, timeout_s: float = 0.5) -> None:
        self._redis, self.timeout_s = redis, timeout_s
        self._down = False
        self.counts: Counter[str] = Counter()

    async def get(self, key: str) -> bytes | None:
        try:
            async with asyncio.timeout(self.timeout_s):
                value = await self._redis.get(PREFIX + key)
        except (RedisError, OSError) as error:
            self._failed(error)
            return None
        self._down = False
        self.counts["misses" if value is None else "hits"] += 1
        return value.encode() if isinstance(value, str) else value

    async def set(self, key: str, value: bytes, ttl_s: float = LONGEST_TTL_S) -> None:
        if len(value) > LARGEST_BYTES:
            self.counts["too_large"] += 1
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._redis.set(PREFIX + key, value, px=max(1, int(min(ttl_s, LONGEST_TTL_S) * 1000)))
        except (RedisError, OSError) as error:
            self._failed(error)
            return
        self._down = False
        self.counts["sets"] += 1

    def _failed(self, error: Exception) -> None:
        self.counts["failed"] += 1
        if not self._down:
            log.warning("the cache in Redis does not answer: %s: %s", type(error).__name__, error)
        self._down = True
