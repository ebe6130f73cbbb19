"""The scan loop under faults: real broker, real Redis, real processes, and a checker after the fact (live.md, 2)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_rig import GRIDS, Rig, rig, same_as_undisturbed, scan, story, until

from serve.embedded import Broker, RedisServer
from serve.failpoints import PLACES
from serve.wire import encode

pytestmark = pytest.mark.faults
COUNT = 34


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, RedisServer]]:
    folder = tmp_path_factory.mktemp("live")
    with Broker(folder) as broker, RedisServer(folder) as store:
        yield broker, store


@pytest.fixture
def tested(servers: tuple[Broker, RedisServer]) -> Iterator[Rig]:
    broker, store = servers
    with rig(broker.bootstrap, store.url.removesuffix("/0")) as made:
        yield made


def sending(tested: Rig, apart_s: float = 0.004) -> threading.Thread:
    """Begin to send the story, once somebody reads it."""
    until(tested.reading, "an owner of every partition")
    thread = threading.Thread(target=tested.send, args=(story(COUNT), apart_s))
    thread.start()
    return thread


@pytest.mark.parametrize("place", PLACES)
def test_killed_at(place: str, tested: Rig) -> None:
    """Signal 9 at each of the eight places: another process goes on, nothing is lost, doubled or reordered."""
    first = tested.worker(f"{place}:{1 if place == 'in-revoke' else 3}")
    thread = sending(tested)
    if place == "in-revoke":
        until(lambda: any(tested.told().values()), "a first verdict")
        first.terminate()
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    tested.worker()
    thread.join()
    until(lambda: tested.behind() == 0, f"all applied after {place}")
    same_as_undisturbed(tested)
    [incident] = tested.alarms()
    assert (incident["scans"], incident["grid"], incident["reasons"] is not None) == (10, "north", True)


def test_paused_beyond_its_session_writes_nothing_more(tested: Rig) -> None:
    """SIGSTOP, another takes over, SIGCONT: the old one is fenced."""
    first = tested.worker(member="", name="first", delay_s=0.05)
    thread = sending(tested, 0.01)
    until(lambda: any(tested.told().values()), "a first verdict")
    os.kill(first.pid, signal.SIGSTOP)
    tested.worker(member="", name="second")
    thread.join()
    until(lambda: tested.behind() == 0, "the second has applied all")
    before = tested.told()
    os.kill(first.pid, signal.SIGCONT)
    tested.send([(grid, encode(scan(grid, COUNT))) for grid in GRIDS])
    until(lambda: tested.behind() == 0, "the last scans")
    after = tested.told()
    assert all(after[grid][:-1] == before[grid] for grid in GRIDS)
    same_as_undisturbed(tested)


def test_members_that_come_and_go(tested: Rig) -> None:
    """A rebalance storm: the visible version never goes back and everything is judged."""
    thread = sending(tested, 0.02)
    for number in range(4):
        member = tested.worker(member="", name=f"m{number}")
        seen = sum(map(len, tested.told().values()))
        if number < 3:
            member.join(1.5)
            member.terminate() if number % 2 else member.kill()
        assert sum(map(len, tested.told().values())) >= seen
    thread.join()
    until(lambda: tested.behind() == 0, "all applied")
    same_as_undisturbed(tested)


@pytest.mark.parametrize("fault", ["hung", "read-only", "full", "emptied", "restarted"])
def test_a_store_that_is(fault: str, tested: Rig, servers: tuple[Broker, RedisServer]) -> None:
    """Redis hangs, refuses, is full, is emptied, is killed and comes back: no dead letters, nothing lost."""
    _, store = servers
    admin = tested.redis
    tested.worker()
    thread = sending(tested)
    until(lambda: any(tested.told().values()), "a first verdict")
    if fault == "hung":
        os.kill(store.process.pid, signal.SIGSTOP)
        thread.join()
        os.kill(store.process.pid, signal.SIGCONT)
    elif fault == "read-only":
        admin.config_set("min-replicas-to-write", 1)
        thread.join()
        admin.config_set("min-replicas-to-write", 0)
    elif fault == "full":
        before = admin.config_get("maxmemory")["maxmemory"]
        admin.config_set("maxmemory", 1)
        thread.join()
        admin.config_set("maxmemory", before)
    elif fault == "emptied":
        admin.flushall()
    else:
        store.kill()
        store.restart()
    thread.join()
    until(lambda: tested.behind() == 0, f"all applied after Redis was {fault}")
    assert len(tested.dead()) <= 4, "only the poisoned ones, and once more where they were read again"
    same_as_undisturbed(tested)


def test_a_broker_that_forgets_its_log(tmp_path: Path) -> None:
    """The embedded broker keeps the log in memory: killed and back, it begins a new one, and so does the loop."""
    with Broker(tmp_path) as broker, RedisServer(tmp_path) as store:
        with rig(broker.bootstrap, store.url.removesuffix("/0")) as tested:
            tested.worker()
            tested.send([(grid, encode(scan(grid, n))) for n in range(20) for grid in GRIDS])
            until(lambda: tested.behind() == 0, "the first log")
            before = tested.told()
            broker.kill()
            broker.restart()
            Rig(tested.settings, tested.oracle_url)  # makes the topics anew
            tested.send([(grid, encode(scan(grid, n))) for n in range(20, 45) for grid in GRIDS])
            until(lambda: all(len(records) == 45 for records in tested.told().values()), "the new log", 90)
            after = tested.told()
            assert all(after[grid][:20] == before[grid] for grid in GRIDS)
            assert {tested.position(p)["incarnation"] for p in tested.ends() if tested.ends()[p]} == {2}
