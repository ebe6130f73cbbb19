"""serve.store on a real Redis: fence, chain, versions, and a state as if each scan had been applied once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from serve import keys
from serve.store import Store, StoreDown, Write

TOPIC, GROUP = "gg.readings.v1", "g"


@pytest.fixture
def redis(socket_file: Path) -> Iterator[Redis]:
    with Redis(unix_socket_path=str(socket_file)) as client:
        client.flushall()
        yield client


@pytest.fixture
def store(redis: Redis) -> Store:
    return Store(redis, GROUP)


def verdict(number: int) -> Any:
    return {"time_ms": 1_000 * number, "number": number}


def alarm(name: str, last_ms: int, state: str = "open") -> Any:
    return {"id": name, "state": state, "last_ms": last_ms}


def write(offset: int, fence: int = 1, **changes: Any) -> Write:
    """The scan at an offset with everything that can be written."""
    given: dict[str, Any] = {
        "topic": TOPIC, "partition": 0, "fence": fence, "incarnation": 1, "base": offset, "after": offset + 1,
        "ts_ms": 10 + offset, "grid": "north", "kind": "feed", "version": (1, offset), "verdict": verdict(offset),
        "map": f"map-{offset}", "state": f"state-{offset}", "about": f"about-{offset}", "window_start": offset,
        "alarms": (alarm("a", offset),), **changes,
    }  # fmt: skip
    return Write(**given)


def nothing(offset: int, **changes: Any) -> Write:
    """A dead letter: the position moves, nothing else."""
    return write(
        offset, grid="", kind="", version=(0, 0), verdict=None, map="", state="", about="", window_start=None,
        alarms=(), **changes,
    )  # fmt: skip


def everything(redis: Redis) -> dict[str, Any]:
    """All that is kept, without ids and times of Redis' own."""
    out: dict[str, Any] = {}
    for key in sorted(redis.keys("gg:*")):
        kind = redis.type(key)
        read: dict[bytes, Callable[[], Any]] = {
            b"string": lambda key=key: redis.get(key), b"hash": lambda key=key: redis.hgetall(key),
            b"zset": lambda key=key: redis.zrange(key, 0, -1, withscores=True),
            b"stream": lambda key=key: [entry for _, entry in redis.xrange(key)],
        }  # fmt: skip
        out[key.decode()] = read[kind]()
    return out


def position(redis: Redis) -> tuple[int, int]:
    kept = redis.hgetall(keys.offset(GROUP, TOPIC, 0))
    return int(kept[b"incarnation"]), int(kept[b"position"])


def begun(store: Store, offset: int = 0, **changes: Any) -> None:
    """A partition that was taken over and has its first scan applied."""
    assert store.begin(TOPIC, 0).fence == 1
    assert store.apply([write(offset, opens=True, **changes)]) == ["written"]


def test_one_scan_stands_everywhere_once(redis: Redis, store: Store) -> None:
    begun(store, 5)
    assert redis.hgetall(keys.verdict("north")) == {
        b"kind": b"feed", b"a": b"1", b"b": b"5", b"json": b'{"time_ms":5000,"number":5}', b"time_ms": b"5000",
    }  # fmt: skip
    assert [json.loads(e[b"json"])["number"] for _, e in redis.xrange(keys.verdicts("north"))] == [5]
    assert redis.get(keys.map_of("north")) == b"map-5"
    assert redis.get(keys.state(GROUP, "north")) == b"state-5"
    assert redis.hgetall(keys.GRIDS) == {b"north": b"about-5"}
    assert redis.hgetall(keys.offset(GROUP, TOPIC, 0)) == {b"incarnation": b"1", b"position": b"6", b"ts": b"15"}
    assert redis.hgetall(keys.windows(GROUP, TOPIC, 0)) == {b"north": b"5"}
    assert redis.hgetall(keys.alarm("a")) == {b"json": b'{"id":"a","state":"open","last_ms":5}', b"state": b"open"}
    assert 0 < redis.ttl(keys.alarm("a")) <= keys.ALARM_TTL_S
    assert redis.zrange(keys.ALARMS, 0, -1, withscores=True) == [(b"a", 5.0)]


def test_events_are_told_in_order_with_their_record(redis: Redis, store: Store) -> None:
    begun(store)
    store.apply([write(1, alarms=(alarm("b", 1), alarm("a", 1, "closed")))])
    told = [(e[b"kind"], e[b"grid"], json.loads(e[b"json"])) for _, e in redis.xrange(keys.EVENTS)]
    assert told == [
        (b"verdict", b"north", verdict(0)), (b"alarm", b"north", alarm("a", 0)), (b"verdict", b"north", verdict(1)),
        (b"alarm", b"north", alarm("b", 1)), (b"alarm", b"north", alarm("a", 1, "closed")),
    ]  # fmt: skip


def test_streams_are_capped(redis: Redis) -> None:
    store = Store(redis, GROUP, event_cap=10)
    begun(store)
    store.apply([write(k) for k in range(1, 400)])
    assert redis.xlen(keys.EVENTS) < 200, "approximately: Redis drops whole nodes"
    assert redis.xlen(keys.verdicts("north")) == 400


def test_begin_counts_the_fence_and_tells_what_stands(redis: Redis, store: Store) -> None:
    fresh = store.begin(TOPIC, 0)
    assert (fresh.fence, fresh.incarnation, fresh.position, fresh.ts_ms, fresh.windows) == (1, 0, -1, 0, {})
    store.apply([write(3, opens=True, grid="süd")])
    later = store.begin(TOPIC, 0)
    assert (later.fence, later.incarnation, later.position, later.ts_ms, later.windows) == (2, 1, 4, 13, {"süd": 3})
    assert store.begin(TOPIC, 1).fence == Store(redis, "other").begin(TOPIC, 0).fence == 1
    assert store.states(["süd", "east"]) == {"süd": "state-3"}
    assert store.states([]) == {}


def test_an_older_fence_writes_nothing(redis: Redis, store: Store) -> None:
    begun(store)
    Store(redis, GROUP).begin(TOPIC, 0)
    before = everything(redis)
    assert store.apply([write(1), nothing(2), write(1, opens=True)]) == ["fenced"] * 3
    assert everything(redis) == before


def test_an_older_log_writes_nothing_and_a_newer_one_begins_at_its_start(redis: Redis, store: Store) -> None:
    begun(store, 100, incarnation=2)
    before = everything(redis)
    assert store.apply([write(101, incarnation=1), write(101, incarnation=1, opens=True)]) == ["fenced", "fenced"]
    assert everything(redis) == before
    assert store.apply([write(0, incarnation=3)]) == ["gap"], "only the first after a take-over changes the log"
    assert everything(redis) == before
    newer = write(0, incarnation=3, opens=True, kind="log", version=(3, 0))
    assert store.apply([newer]) == ["written"]
    assert position(redis) == (3, 1)


def test_a_scan_that_does_not_follow_on_is_refused(redis: Redis, store: Store) -> None:
    begun(store)
    before = everything(redis)
    assert store.apply([write(2), nothing(2)]) == ["gap", "gap"]
    assert everything(redis) == before
    redis.delete(keys.offset(GROUP, TOPIC, 0))
    assert store.apply([write(1)]) == ["gap"], "a store that was emptied is noticed"
    assert store.apply([write(1, opens=True)]) == ["written"]
    assert position(redis) == (1, 2)


def test_applied_twice_is_as_applied_once(redis: Redis, store: Store) -> None:
    scans = [write(0, opens=True), write(1), nothing(2), write(3, alarms=()), write(4)]
    store.begin(TOPIC, 0)
    assert store.apply(scans) == ["written", "written", "moved", "written", "written"]
    once = everything(redis)
    assert store.apply(scans[1:]) == ["stale", "stale", "moved", "stale", "stale"][1:]
    assert store.apply(scans[:3]) == ["stale", "stale", "moved"]
    assert everything(redis) == once


def test_versions_order_by_epoch_then_sequence_and_kinds_do_not_compare(redis: Redis, store: Store) -> None:
    begun(store, 0, version=(2, 5))
    told = store.apply([
        write(1, version=(2, 5)), write(2, version=(2, 4)), write(3, version=(1, 9)), write(4, version=(2, 10)),
        write(5, version=(10, 0)), write(6, version=(9, 99)),
        write(7, kind="log", version=(1, 7)), write(8, kind="log", version=(1, 7)), write(9, version=(1, 1)),
    ])  # fmt: skip
    assert told == ["stale", "stale", "stale", "written", "written", "stale", "written", "stale", "written"]
    assert position(redis) == (1, 10), "what is stale moves the position all the same"
    assert redis.hget(keys.verdict("north"), "b") == b"1"
    assert redis.xlen(keys.verdicts("north")) == 5


def test_large_numbers_are_compared_exactly(store: Store) -> None:
    top = 2**53 - 1
    begun(store, top - 3, version=(top, top - 1))
    assert store.apply([write(top - 2, version=(top, top))]) == ["written"]
    assert store.apply([write(top - 1, version=(top, top))]) == ["stale"]


def test_the_position_is_never_lowered_and_state_goes_with_it(redis: Redis, store: Store) -> None:
    begun(store)
    store.apply([write(k) for k in range(1, 6)])
    again = write(2, version=(9, 9), state="old", window_start=2, opens=True)
    assert store.apply([again]) == ["written"], "a verdict of a higher version stands"
    assert position(redis) == (1, 6)
    assert redis.get(keys.state(GROUP, "north")) == b"state-5"
    assert redis.hget(keys.windows(GROUP, TOPIC, 0), "north") == b"5"
    assert redis.hget(keys.offset(GROUP, TOPIC, 0), "ts") == b"15"


def test_what_is_empty_is_left_as_it_was(redis: Redis, store: Store) -> None:
    begun(store)
    before = everything(redis)
    shed = write(3, kind="", version=(0, 0), verdict=None, map="", state="", about="", alarms=())
    assert store.apply([nothing(1), nothing(2), shed]) == ["moved"] * 3
    after = everything(redis)
    assert {key for key in after if after[key] != before.get(key)} == {
        keys.offset(GROUP, TOPIC, 0), keys.windows(GROUP, TOPIC, 0),
    }  # fmt: skip
    assert store.apply([write(4, map="", state="", about="", alarms=())]) == ["written"]
    assert redis.get(keys.map_of("north")) == b"map-0"
    assert redis.hget(keys.GRIDS, "north") == b"about-0"
    assert redis.get(keys.state(GROUP, "north")) == b"state-0"


def test_oldest_incidents_leave_with_their_records(redis: Redis, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "ALARM_CAP", 3)
    begun(store)
    for k in range(1, 6):
        store.apply([write(k, alarms=(alarm(f"a{k}", 100 + k), alarm("steady", 100 + k)))])
    assert [name for name, _ in redis.zrange(keys.ALARMS, 0, -1, withscores=True)] == [b"a4", b"a5", b"steady"]
    assert {key.decode() for key in redis.keys("gg:alarm:*")} == {keys.alarm(name) for name in ("a4", "a5", "steady")}


def test_what_a_person_did_with_an_incident_stays(redis: Redis, store: Store) -> None:
    begun(store)
    redis.hset(keys.alarm("a"), "ack", "by me")
    store.apply([write(1)])
    assert redis.hget(keys.alarm("a"), "ack") == b"by me"


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_redis_that_forgot_the_script_is_told_it_again(redis: Redis, store: Store) -> None:
    begun(store)
    redis.script_flush()
    assert store.apply([write(1), write(2)]) == ["written", "written"]
    assert position(redis) == (1, 3)


def between(store: Store, first: int, happens: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Something happens to Redis after so many scans of the next pipeline."""
    send, left = store._send, [True]

    def halved(writes: Sequence[Write]) -> list[Any]:
        if not left:
            return send(writes)
        left.clear()
        done = send(writes[:first])
        happens()
        return done + send(writes[first:])

    monkeypatch.setattr(store, "_send", halved)


def test_a_script_that_is_forgotten_in_the_middle_costs_nothing(
    redis: Redis, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(store)
    between(store, 2, redis.script_flush, monkeypatch)
    assert store.apply([write(k) for k in range(1, 6)]) == ["written"] * 5
    assert redis.xlen(keys.verdicts("north")) == 6


@pytest.mark.parametrize("trouble", ["READONLY", "OOM"])
def test_trouble_in_the_middle_gives_what_was_decided(
    redis: Redis, store: Store, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    begun(store)
    scans = [write(k) for k in range(1, 6)]
    if trouble == "READONLY":
        between(store, 3, lambda: redis.replicaof("127.0.0.1", "1"), monkeypatch)
    else:
        between(store, 3, lambda: redis.config_set("maxmemory", 1), monkeypatch)
    try:
        assert store.apply(scans) == ["written"] * 3
        assert position(redis) == (1, 4)
        with pytest.raises(StoreDown):
            store.apply(scans[3:])
        with pytest.raises(StoreDown):
            store.begin(TOPIC, 0)
    finally:
        redis.replicaof("NO", "ONE")
        redis.config_set("maxmemory", 0)
    assert store.apply(scans[3:]) == ["written", "written"]
    assert position(redis) == (1, 6)


def test_a_redis_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    store = Store.connect(f"unix://{tmp_path}/none.sock", GROUP)
    for ask in (
        lambda: store.begin(TOPIC, 0), lambda: store.apply([write(0)]), lambda: store.states(["north"]),
        lambda: store.say("consumer", "c", {}),
    ):  # fmt: skip
        with pytest.raises(StoreDown):
            ask()


def test_what_a_part_says_of_itself_ends_by_itself(redis: Redis, store: Store) -> None:
    store.say("consumer", "c-0", {"lag": 0})
    assert redis.get(keys.status("consumer", "c-0")) == b'{"lag":0}'
    assert 0 < redis.ttl(keys.status("consumer", "c-0")) <= keys.STATUS_TTL_S
