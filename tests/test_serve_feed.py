"""The producer: order, versions, traces, bounds, and a broker that goes away and comes back empty."""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_servers import all_messages, eventually, servers
from redis import Redis

from gg_ray.grid.cases import load_case
from gg_ray.scenario.grammar import plan_of
from serve import epochs, feed, keys
from serve.embedded import Broker, RedisServer
from serve.epochs import next_epoch
from serve.feed import Feed, FeedError, paced
from serve.settings import KafkaSettings
from serve.wire import ScanMessage, decode, encode

CASE = load_case("case14")
PLAN = plan_of("case14", 1_000, 0.4, 0.9, 0.02)
STEP_NS = 60 * 10**9


def scan(number: int, grid: str = "case14") -> ScanMessage:
    return ScanMessage(
        grid=grid, case="case14", time_ns=10**18 + number * STEP_NS, step_s=60.0, channels=PLAN.channels,
        sigma=PLAN.sigma, z_M=np.full(PLAN.size, 1.0), age_M=np.zeros(PLAN.size, dtype=np.uint8),
        status_E=np.ones(CASE.n_branch, dtype=np.uint8), tap_E=CASE.tap, x_scale_E=np.ones(CASE.n_branch),
        origin="simulated",
    )  # fmt: skip


@pytest.fixture(scope="module")
def live() -> Iterator[tuple[Broker, RedisServer]]:
    with servers() as both:
        yield both


@pytest.fixture
def kafka(live: tuple[Broker, RedisServer]) -> KafkaSettings:
    """An empty topic and an empty store."""
    broker, redis = live
    broker.kill()
    broker.restart()
    Redis.from_url(redis.url).flushall()
    return KafkaSettings(bootstrap=broker.bootstrap, partitions=2)


@pytest.fixture
def url(live: tuple[Broker, RedisServer]) -> str:
    return live[1].url


def test_scans_arrive_in_order_with_key_version_and_trace(kafka: KafkaSettings, url: str) -> None:
    with Feed(kafka, url, "one", source="test", extra=lambda: {"injected": []}) as sender:
        assert sender.run(scan(i // 3, f"g{i % 3}") for i in range(60)) == 60
        assert sender.flush() == 0
        status = json.loads(Redis.from_url(url).get(keys.status("feed", "one")) or "{}")
        assert 0 < Redis.from_url(url).ttl(keys.status("feed", "one")) <= keys.STATUS_TTL_S
    assert (status["source"], status["epoch"], status["injected"]) == ("test", 1, [])
    assert dict(sender.counts) == {"sent": 60, "acknowledged": 60}
    by_grid = defaultdict(list)
    traces = set()
    for message in all_messages(kafka, kafka.topics.readings):
        found = decode(message.value() or b"")
        assert message.key() == found.grid.encode()
        by_grid[found.grid].append((found.epoch, found.seq, found.time_ns))
        [(name, trace)] = message.headers() or []
        assert name == "traceparent"
        assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace)
        traces.add(trace)
    assert len(traces) == 60
    assert by_grid == {f"g{k}": [(1, i + 1, scan(i).time_ns) for i in range(20)] for k in range(3)}
    with pytest.raises(FeedError, match="closed"):
        sender.send(scan(0))


def test_a_killed_broker_is_waited_for_and_all_that_was_in_hand_goes_to_the_new_one(
    live: tuple[Broker, RedisServer], kafka: KafkaSettings, url: str
) -> None:
    broker, _ = live
    with Feed(kafka, url, "two", queue=20) as sender:
        assert sender.run(scan(i) for i in range(5)) == 5
        assert sender.flush() == 0
        broker.kill()
        rest = threading.Thread(target=lambda: sender.run(scan(i) for i in range(5, 65)))
        rest.start()
        eventually(lambda: sender.status()["in_hand"] == 20)
        assert rest.is_alive(), "a full queue makes send() wait"
        broker.restart()
        rest.join(30)
        assert not rest.is_alive()
        assert sender.flush(30) == 0
        assert sender.counts["acknowledged"] == sender.counts["sent"] == 65
        assert sender.counts["restarts"] >= 1
        assert sender.send(scan(65)) == (1, 66)
    seqs = [decode(message.value() or b"").seq for message in all_messages(kafka, kafka.topics.readings)]
    assert list(dict.fromkeys(seqs)) == list(range(6, 67)), "in order; what was before is gone with the broker"


def test_epochs_rise_over_restarts_and_over_an_emptied_store(kafka: KafkaSettings, url: str) -> None:
    found = []
    for emptied in (False, False, True, False):
        if emptied:
            Redis.from_url(url).flushall()
        with Feed(kafka, url, "three") as sender:
            sender.send(scan(0))
            found.append(sender.epoch)
    assert found == [1, 2, 3, 4]


class Newest:
    """Stands in for the last message of a partition."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def value(self) -> bytes:
        return self.payload


@settings(max_examples=40)
@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.lists(st.one_of(st.none(), st.integers(0, 2**40)), max_size=4)), max_size=8
    )
)
def test_an_epoch_is_above_the_one_before_and_above_every_newest_scan(
    live: tuple[Broker, RedisServer], steps: list[tuple[bool, list[int | None]]]
) -> None:
    redis = Redis.from_url(live[1].url)
    redis.delete(keys.EPOCH)
    last = 0
    with pytest.MonkeyPatch.context() as patch:
        for emptied, newest in steps:
            payloads = [encode(_versioned(epoch)) for epoch in newest] + [b"poison"]
            standing = dict(enumerate([Newest(payload) for payload in payloads] + [None]))
            patch.setattr(epochs.topics, "last_messages", lambda *_, found=standing: found)
            if emptied:
                redis.delete(keys.EPOCH)
                last = 0
            epoch = next_epoch(redis, KafkaSettings())
            floor = max([last, *(number or 0 for number in newest)])
            assert epoch == floor + 1
            last = epoch


def _versioned(epoch: int | None) -> ScanMessage:
    return replace(scan(0), epoch=epoch, seq=None if epoch is None else 7)


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now, self.waits = 1_000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(round(seconds, 6))
        self.now += seconds
        return False


def test_scans_are_due_at_times_that_a_slow_receiver_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(feed.time, "monotonic", clock.monotonic)
    days = [scan(i, grid) for i in (0, 1, 2, 3, 1_000, 1_001) for grid in ("a", "b")]
    for number, _ in enumerate(paced(days, 60.0, clock)):  # type: ignore[arg-type]
        if number == 3:
            clock.now += 1.5  # the second scan of b took a second and a half
    assert clock.waits == [0, 0, 1, 0, 0, 0, 0.5, 0, 1, 0, 1, 0], "caught up; a long gap of the record is one step"
    assert list(paced(days, float("inf"), clock)) == days  # type: ignore[arg-type]


def test_stop_ends_a_run_and_what_was_taken_is_delivered(kafka: KafkaSettings, url: str) -> None:
    with Feed(kafka, url, "four") as sender:

        def source() -> Iterator[ScanMessage]:
            for number in range(1_000_000):
                if number == 10:
                    sender.stop()
                yield scan(number)

        assert sender.run(source(), speed=6_000.0) == 10
    assert sender.counts["acknowledged"] == 10
    assert sender.status()["in_hand"] == 0


def test_a_scan_beyond_what_consumers_decode_is_refused_and_takes_no_number(
    kafka: KafkaSettings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Feed(kafka, url, "six") as sender:
        with monkeypatch.context() as patch:
            patch.setattr(feed, "MAX_BYTES", 100)
            with pytest.raises(FeedError, match=r"scan of case14: .* at most 100"):
                sender.send(scan(0))
        assert sender.send(scan(0)) == (1, 1)


def test_a_run_ends_after_its_last_time(kafka: KafkaSettings, url: str) -> None:
    with Feed(kafka, url, "five") as sender:
        assert sender.run((scan(i) for i in range(1_000)), until_ns=scan(7).time_ns) == 8
