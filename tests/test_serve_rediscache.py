"""serve.rediscache: the short cache on a real Redis and on one that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elexon_fakes import FakeClock, FakeSource
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as Refused
from redis_process import redis_process

from gg_ray.elexon.cache import CachedSource
from gg_ray.elexon.errors import NothingStored, Unavailable
from serve.rediscache import LARGEST_BYTES, PREFIX, RedisCache


@pytest.fixture
def live() -> FakeSource:
    return FakeSource(FakeClock())


@pytest.fixture(scope="module")
def redis_socket() -> Iterator[Path]:
    with redis_process() as (socket_file, _):
        yield socket_file


def test_redis_cache_on_a_real_redis(redis_socket: Path, live: FakeSource) -> None:
    async def story() -> None:
        redis = AsyncRedis(unix_socket_path=str(redis_socket))
        cached = CachedSource(live, cache=RedisCache(redis, timeout_s=10), now=live.clock.now)
        first = await cached.latest("FREQ")
        [key] = await redis.keys("*")
        assert key == f"{PREFIX}FREQ:latest".encode()
        assert 0 < await redis.pttl(key) <= 300_000
        live.fails = lambda *_: Unavailable("down")
        assert (await cached.latest("FREQ")).rows == first.rows
        await redis.aclose()

    asyncio.run(story())


def test_redis_forgets_and_may_go_away(redis_socket: Path) -> None:
    async def story() -> None:
        redis = AsyncRedis(unix_socket_path=str(redis_socket), decode_responses=True)
        cache = RedisCache(redis, timeout_s=10)
        await cache.set("FREQ:old", b"x", 0.001)
        await asyncio.to_thread(_until_gone, redis_socket, PREFIX + "FREQ:old")
        assert await cache.get("FREQ:old") is None
        await cache.set("FREQ:text", b"text", 300.0)
        assert await cache.get("FREQ:text") == b"text"
        await redis.aclose()
        away = RedisCache(AsyncRedis(unix_socket_path=f"{redis_socket}.not"), timeout_s=0.05)
        await away.set("a", b"1", 1.0)
        assert await away.get("a") is None
        assert away.counts == {"failed": 2}

    asyncio.run(story())


def _until_gone(socket_file: Path, key: str) -> None:
    with Redis(unix_socket_path=str(socket_file)) as client:
        while client.exists(key):
            pass


class Stub:
    """The two calls of a Redis client that are used, and what they were given."""

    def __init__(self, *, down: bool = False) -> None:
        self.held: dict[str, tuple[Any, int]] = {}
        self.down = down

    def _check(self) -> None:
        if self.down:
            raise Refused("connection refused")

    async def get(self, key: str) -> Any:
        self._check()
        return self.held.get(key, (None, 0))[0]

    async def set(self, key: str, value: bytes, *, px: int) -> None:
        self._check()
        self.held[key] = (value, px)


def test_redis_cache_keys_and_bounds() -> None:
    stub = Stub()
    cache = RedisCache(stub)  # type: ignore[arg-type]

    async def story() -> None:
        await cache.set("FREQ:latest", b"x", 1e9)
        await cache.set("FUELHH:latest", b"x" * (LARGEST_BYTES + 1), 300)
        assert await cache.get("FREQ:latest") == b"x"
        stub.held["gg:cache:elexon:text"] = ("text", 1)
        assert await cache.get("text") == b"text"
        assert await cache.get("FUELHH:latest") is None

    asyncio.run(story())
    assert stub.held["gg:cache:elexon:FREQ:latest"] == (b"x", 300_000)
    assert cache.counts == {"sets": 1, "too_large": 1, "hits": 2, "misses": 1}


def test_a_redis_that_is_down_costs_one_line(live: FakeSource, caplog: pytest.LogCaptureFixture) -> None:
    cached = CachedSource(live, cache=RedisCache(Stub(down=True)), now=live.clock.now)  # type: ignore[arg-type]
    assert asyncio.run(cached.latest("FREQ")).origin == "live"
    live.fails = lambda *_: Unavailable("down")
    with pytest.raises(NothingStored):
        asyncio.run(cached.latest("FREQ"))
    assert [record.message for record in caplog.records] == [
        "the cache in Redis does not answer: ConnectionError: connection refused"
    ]
