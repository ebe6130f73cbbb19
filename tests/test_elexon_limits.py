"""gg_ray.elexon.limits on a fake clock: never more than promised, and asked again only when it helps."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime

import pytest
from elexon_fakes import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.elexon.errors import RateLimited, Unavailable
from gg_ray.elexon.limits import CEILING, Buckets, Circuit, Retry, TokenBucket, retry_after_s

NOW = datetime(2026, 5, 6, 12, tzinfo=UTC)


@given(
    rate=st.floats(0.1, 50),
    burst=st.integers(1, 20),
    ceiling=st.integers(1, 30),
    gaps=st.lists(st.one_of(st.just(0.0), st.floats(0, 40)), min_size=1, max_size=80),
)
def test_no_interval_holds_more_grants_than_it_may(rate: float, burst: int, ceiling: int, gaps: list[float]) -> None:
    clock = FakeClock()
    bucket = TokenBucket(rate, burst, ceiling=ceiling, clock=clock, sleep=clock.sleep)
    grants = []
    for gap in gaps:
        clock.seconds += gap
        asyncio.run(bucket.acquire(longest_s=1e9))
        grants.append(clock.seconds)
    for first, start in enumerate(grants):
        for last in range(first, len(grants)):
            assert last - first + 1 <= burst + rate * (grants[last] - start) + 1e-6
        assert sum(start <= at < start + 60 for at in grants) <= ceiling


def test_the_ceiling_holds_whatever_the_configuration_says() -> None:
    clock = FakeClock()
    bucket = TokenBucket(1e9, 10**9, ceiling=10**9, clock=clock, sleep=clock.sleep)
    for _ in range(CEILING):
        assert bucket.try_acquire() == 0.0
    assert bucket.try_acquire() == 60.0
    clock.seconds += 59.5
    assert bucket.try_acquire() == pytest.approx(0.5)
    clock.seconds += 0.5
    assert bucket.try_acquire() == 0.0


def test_burst_then_two_a_second() -> None:
    clock = FakeClock()
    bucket = TokenBucket(clock=clock, sleep=clock.sleep)
    for _ in range(9):
        asyncio.run(bucket.acquire())
    assert clock.seconds == pytest.approx(1_000 + 4 * 0.5, abs=0.01)


def test_a_turn_too_far_away_is_refused() -> None:
    clock = FakeClock()
    bucket = TokenBucket(0.01, 1, clock=clock, sleep=clock.sleep)
    asyncio.run(bucket.acquire())
    with pytest.raises(RateLimited, match="no turn within 10 s"):
        asyncio.run(bucket.acquire(longest_s=10))
    assert clock.slept == []


@pytest.mark.parametrize("setting", [{"rate_per_s": 0}, {"rate_per_s": float("nan")}, {"burst": 0}, {"ceiling": 0}])
def test_settings_that_mean_nothing_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        TokenBucket(**setting)  # type: ignore[arg-type]


def test_one_bucket_per_host() -> None:
    buckets = Buckets()
    assert buckets.of("a") is buckets.of("a")
    assert buckets.of("a") is not buckets.of("b")


def run(circuit: Circuit, outcome: bool | None) -> None:
    with circuit.call("GET /x") as settle:
        if outcome is not None:
            settle(outcome)


def test_circuit_opens_at_two_of_five_and_one_probe_closes_it() -> None:
    clock = FakeClock()
    circuit = Circuit(clock=clock)
    for outcome in (True, False, True, True):
        run(circuit, outcome)
    assert not circuit.is_open
    run(circuit, False)
    assert circuit.is_open
    clock.seconds += 59
    with pytest.raises(Unavailable, match=r"GET /x: not asked, .* next try in 1 s"):
        run(circuit, True)
    clock.seconds += 1
    with circuit.call("GET /x") as settle:
        with pytest.raises(Unavailable, match="one try is under way"):
            run(circuit, True)
        settle(True)
    assert not circuit.is_open
    run(circuit, True)


def test_a_failed_probe_opens_the_circuit_again() -> None:
    clock = FakeClock()
    circuit = Circuit(clock=clock)
    for _ in range(5):
        run(circuit, False)
    clock.seconds += 60
    run(circuit, None)  # cancelled: no outcome, the next may probe
    run(circuit, False)
    clock.seconds += 59
    with pytest.raises(Unavailable):
        run(circuit, True)


def test_failures_of_more_than_a_minute_ago_are_forgotten() -> None:
    clock = FakeClock()
    circuit = Circuit(clock=clock)
    for _ in range(4):
        run(circuit, False)
    clock.seconds += 61
    run(circuit, False)
    assert not circuit.is_open


def test_pauses_grow_to_the_cap_with_full_jitter() -> None:
    rng = random.Random(0)
    retry = Retry()
    for tried, most in ((1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (50, 60)):
        pauses = [retry.delay_s(tried, None, rng) for _ in range(200)]
        assert 0 <= min(pauses) < 0.1 * most
        assert 0.9 * most < max(pauses) <= most


def test_retry_after_is_honoured_up_to_the_cap() -> None:
    rng = random.Random(0)
    assert Retry().delay_s(1, 17.0, rng) == 17.0
    assert Retry().delay_s(1, 3_600.0, rng) == 60.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None), ("7", 7.0), (" 0 ", 0.0), ("soon", None), ("-3", None), ("9" * 400, 999_999_999.0),
        ("Wed, 06 May 2026 12:00:30 GMT", 30.0), ("Wed, 06 May 2026 11:00:00 GMT", 0.0), ("", None),
    ],
)  # fmt: skip
def test_retry_after_in_seconds_and_as_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOW) == seconds
