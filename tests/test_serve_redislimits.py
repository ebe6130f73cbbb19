"""serve.redislimits on a real Redis: processes share a rate and a ceiling, and each keeps both when Redis is away."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from elexon_fakes import FakeClock
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis_process import redis_process

from gg_ray.elexon.errors import RateLimited
from gg_ray.elexon.limits import CEILING
from serve.redislimits import REST_S, RedisBucket
from serve.shared import opened

ROOT = Path(__file__).resolve().parent.parent
HOST = "data.elexon.co.uk"
FULL, GRANTS = (f"gg:limit:{{{HOST}}}:{part}" for part in ("full", "grants"))
Bucket = Callable[..., RedisBucket]


@pytest.fixture(scope="module")
def redis_socket() -> Iterator[Path]:
    with redis_process() as (socket_file, _):
        yield socket_file


@pytest.fixture
def redis(redis_socket: Path) -> Iterator[Redis]:
    """What the server holds, by another client; emptied after each test."""
    with Redis(unix_socket_path=str(redis_socket), decode_responses=True) as client:
        yield client
        client.flushall()


@asynccontextmanager
async def buckets(socket_file: Path, clock: FakeClock) -> AsyncIterator[Bucket]:
    """Makes buckets, each with a local side of its own as in a process of its own."""
    client = AsyncRedis(unix_socket_path=str(socket_file))

    def make(rate: float = 2.0, burst: int = 5, ceiling: int = CEILING, timeout_s: float = 10.0) -> RedisBucket:
        return RedisBucket(
            client, HOST, rate, burst, ceiling=ceiling, timeout_s=timeout_s, clock=clock, sleep=clock.sleep
        )

    try:
        yield make
    finally:
        await client.aclose()


def told(socket_file: Path, story: Callable[[Bucket, FakeClock], Awaitable[None]]) -> None:
    async def tell() -> None:
        clock = FakeClock()
        async with buckets(socket_file, clock) as make:
            await story(make, clock)

    asyncio.run(tell())


def grants(redis: Redis) -> list[int]:
    """When the server gave each turn of the last minute, microseconds of its clock."""
    return [int(at) for at in redis.lrange(GRANTS, 0, -1)]  # type: ignore[union-attr]


def keeps(at_us: list[int], rate: float, burst: int) -> bool:
    """No interval holds more than burst + rate * t."""
    return all(
        last - first + 1 <= burst + rate * (at_us[last] - at_us[first]) * 1e-6 + 1e-6
        for first in range(len(at_us)) for last in range(first, len(at_us))
    )  # fmt: skip


PROCESS = """
import asyncio, sys
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from gg_ray.elexon.errors import RateLimited
from serve.redislimits import RedisBucket

async def main(path, host, rate, burst, ceiling, turns):
    client = AsyncRedis(unix_socket_path=path)
    bucket = RedisBucket(client, host, float(rate), int(burst), ceiling=int(ceiling), timeout_s=20)
    with Redis(unix_socket_path=path) as gate:
        gate.blpop("go", 30)
    taken = 0
    try:
        while taken < int(turns):
            await bucket.acquire(longest_s=20)
            taken += 1
    except RateLimited:
        pass
    await client.aclose()
    print(taken)

asyncio.run(main(*sys.argv[1:]))
"""


def two_processes(redis: Redis, socket_file: Path, rate: float, burst: int, ceiling: int, turns: int) -> list[int]:
    """Turns that each of two processes got, both let go at once."""
    words = [str(word) for word in (socket_file, HOST, rate, burst, ceiling, turns)]
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        while redis.info("clients")["blocked_clients"] < 2:  # type: ignore[index]
            assert all(process.poll() is None for process in started)
        redis.rpush("go", 1, 1)
        return [int(process.communicate(timeout=60)[0]) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait(10)


def test_two_processes_together_stay_inside_the_rate(redis: Redis, redis_socket: Path) -> None:
    rate, burst, turns = 100.0, 5, 30
    assert two_processes(redis, redis_socket, rate, burst, CEILING, turns) == [turns, turns]
    given_us = grants(redis)
    assert len(given_us) == 2 * turns, "a turn was taken that Redis did not give"
    assert keeps(given_us, rate, burst)


def test_two_processes_together_stay_under_the_ceiling(redis: Redis, redis_socket: Path) -> None:
    taken = two_processes(redis, redis_socket, rate=1e6, burst=1_000, ceiling=40, turns=40)
    assert sum(taken) == 40 == len(grants(redis))


def test_no_setting_lifts_the_hard_ceiling(redis: Redis, redis_socket: Path) -> None:
    now_us = sum(part * scale for part, scale in zip(redis.time(), (10**6, 1), strict=True))  # type: ignore[arg-type]
    redis.rpush(GRANTS, *range(now_us - CEILING, now_us))

    async def story(make: Bucket, _clock: FakeClock) -> None:
        bucket = make(1e9, 10**9, 10**9)
        assert 50 < await bucket.turn() <= 60
        redis.lset(GRANTS, 0, now_us - 60_000_000)
        assert await bucket.turn() == 0.0
        assert 50 < await bucket.turn() <= 60

    told(redis_socket, story)
    assert len(grants(redis)) == CEILING


def test_one_bucket_is_seen_through_both_and_the_keys_end(redis: Redis, redis_socket: Path) -> None:
    async def story(make: Bucket, _clock: FakeClock) -> None:
        one, two = make(0.01), make(0.01)
        assert [await bucket.turn() for bucket in (one, two, one, two, one)] == [0.0] * 5
        waits = [await one.turn(), await two.turn()]
        assert 95 < min(waits) <= max(waits) <= 100
        assert one.wait_s() == two.wait_s() == 0.0, "neither was at its own limit"
        assert await make(0.01, ceiling=3).turn() > 95

    told(redis_socket, story)
    assert set(redis.keys("*")) == {FULL, GRANTS}  # type: ignore[arg-type]
    assert 495_000 < redis.pttl(FULL) <= 500_001  # type: ignore[operator]
    assert 55_000 < redis.pttl(GRANTS) <= 60_000  # type: ignore[operator]


@pytest.mark.parametrize("ahead_s", [-1e9, -59.0, -0.1, 0.1, 59.0, 3_600.0, 1e9])
def test_a_clock_of_the_server_that_was_set_anew_costs_no_more_than_an_empty_bucket(
    redis: Redis, redis_socket: Path, ahead_s: float
) -> None:
    now_s, _ = redis.time()  # type: ignore[misc]
    at_us = max(int((now_s + ahead_s) * 1e6), 0)
    redis.set(FULL, at_us)
    redis.rpush(GRANTS, at_us, at_us)

    async def story(make: Bucket, _clock: FakeClock) -> None:
        assert await make(2.0).turn() <= 0.5
        assert await make(1e6, ceiling=2).turn() <= 60.0

    told(redis_socket, story)


def test_a_redis_killed_half_way_leaves_each_process_its_own_limit(caplog: pytest.LogCaptureFixture) -> None:
    async def story(make: Bucket, clock: FakeClock) -> None:
        bucket = make(1e-3, 5, 8, timeout_s=0.1)
        for _ in range(3):
            await bucket.acquire(0)
        process.kill()
        process.wait(10)
        for _ in range(2):
            await bucket.acquire(0)  # the last two of the burst of five: the first three count here too
        with pytest.raises(RateLimited, match="no turn within 900 s"):
            await bucket.acquire(900)
        clock.seconds += 5_000  # a burst of five again, at a Redis that is still away
        for _ in range(5):
            await bucket.acquire(0)
        assert bucket.wait_s() > 0

    with redis_process() as (socket_file, process), caplog.at_level(logging.WARNING):
        told(socket_file, story)
    [line] = [record.message for record in caplog.records]
    assert line.startswith(f"{HOST}: the limit in Redis does not answer (")
    assert line.endswith("); this process keeps to 0.001/s of its own")


def test_the_ceiling_spans_the_moment_at_which_redis_goes_away() -> None:
    async def story(make: Bucket, clock: FakeClock) -> None:
        bucket = make(1e6, 100, 10, timeout_s=0.1)
        taken = []
        for turn in range(25):
            if turn == 6:
                process.kill()
                process.wait(10)
            await bucket.acquire(1e3)
            taken.append(clock.seconds)
        assert taken[9] < taken[0] + 1
        assert all(sum(start <= at < start + 60 for at in taken) <= 10 for start in taken)

    with redis_process() as (socket_file, process):
        told(socket_file, story)


def test_a_redis_that_hangs_costs_one_time_out_and_is_asked_again_later(caplog: pytest.LogCaptureFixture) -> None:
    async def story(make: Bucket, clock: FakeClock) -> None:
        bucket = make(timeout_s=0.05)
        process.send_signal(signal.SIGSTOP)
        assert [await bucket.turn() for _ in range(5)] == [0.0] * 5  # five time-outs would be five lines
        assert await bucket.turn() == 0.5
        process.send_signal(signal.SIGCONT)
        bucket.timeout_s = 10.0
        clock.seconds += REST_S - 0.1
        assert await bucket.turn() == 0.0
        assert len(caplog.records) == 1, "not asked yet"
        clock.seconds += 0.1
        assert await bucket.turn() == 0.0

    with redis_process() as (socket_file, process), caplog.at_level(logging.WARNING):
        told(socket_file, story)
    assert [record.message for record in caplog.records] == [
        f"{HOST}: the limit in Redis does not answer (nothing within 0.05 s); this process keeps to 2/s of its own",
        f"{HOST}: the limit is shared through Redis again",
    ]


def test_clients_of_one_process_do_not_take_turns_that_they_cannot_use(redis: Redis, redis_socket: Path) -> None:
    async def story(make: Bucket, _clock: FakeClock) -> None:
        bucket = make(0.01, 5)
        waits = await asyncio.gather(*(bucket.turn() for _ in range(20)))
        assert sorted(waits)[:6] == [0.0] * 5 + [min(wait for wait in waits if wait)]

    told(redis_socket, story)
    assert len(grants(redis)) == 5


def test_opened_gives_one_bucket_per_host(redis: Redis, redis_socket: Path) -> None:
    async def story() -> None:
        async with opened(f"unix://{redis_socket}") as shared:
            one = shared.buckets.of(HOST)
            assert shared.buckets.of(HOST) is one
            await one.acquire()
            await shared.buckets.of("127.0.0.1:8000").acquire()

    asyncio.run(story())
    assert redis.exists(GRANTS, "gg:limit:{127.0.0.1:8000}:grants") == 2
