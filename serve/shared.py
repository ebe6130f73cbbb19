"""What the processes of a deployment share through one Redis: remembered answers, and turns at the service.

Flow:    cli (REDIS_URL) -> [shared: opened] -> gg_ray.elexon.sources.Shared: rediscache, redislimits
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from redis.asyncio import Redis

from gg_ray.config import ConfigError
from gg_ray.elexon.limits import Buckets
from gg_ray.elexon.sources import Shared
from serve.rediscache import RedisCache
from serve.redislimits import RedisBucket


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Shared]:
    """The parts in the Redis at url, which is asked only when they are.  Raises: ConfigError, no such address."""
    try:
        redis = Redis.from_url(url)
    except ValueError as error:
        raise ConfigError(f"REDIS_URL: {error}") from None
    try:
        yield Shared(cache=RedisCache(redis), buckets=Buckets(partial(RedisBucket, redis)))
    finally:
        await redis.aclose()
