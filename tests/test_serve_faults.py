"""The scan loop under faults: real broker, real Redis, real processes, and a checker after the fact (live.md, 2).

The stories run side by side, each with topics, group and Redis of its own: most of their time is waiting for groups to
rebalance. Each test then looks at how one of them ended.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_rig import POISON, Rig, mock_broker, rig, same_as_undisturbed, until

from serve.embedded import Broker, RedisServer
from serve.failpoints import PLACES

pytestmark = pytest.mark.faults
COUNT = 34
AT_ONCE = 8
Story = Callable[[Rig, RedisServer], None]


def sending(tested: Rig, apart_s: float = 0.004) -> threading.Thread:
    """Send the first message of the story, and when it is applied begin to send the others."""
    first, *others = tested.story(COUNT)
    tested.send([first])
    until(lambda: tested.behind() == 0, "a consumer that reads")
    thread = threading.Thread(target=tested.send, args=(others, apart_s))
    thread.start()
    return thread


def killed_at(place: str) -> Story:
    """Signal 9 at one of the eight places: another process goes on, nothing is lost, doubled or reordered."""

    def story(tested: Rig, _: RedisServer) -> None:
        first = tested.worker(f"{place}:{1 if place == 'in-revoke' else 3}")
        thread = sending(tested)
        if place == "in-revoke":
            first.terminate()
        first.join(60)
        assert first.exitcode == -signal.SIGKILL
        tested.worker()
        thread.join()
        until(lambda: tested.behind() == 0, f"all applied after {place}")
        same_as_undisturbed(tested)
        [incident] = tested.alarms()
        assert (incident["scans"], incident["grid"], bool(incident["reasons"])) == (10, tested.grids[0], True)

    return story


def paused(tested: Rig, _: RedisServer) -> None:
    """SIGSTOP beyond the session, another takes over, SIGCONT: the old one writes nothing more."""
    first = tested.worker(member="", name="first", delay_s=0.05)
    thread = sending(tested, 0.01)
    os.kill(first.pid, signal.SIGSTOP)
    tested.worker(member="", name="second")
    thread.join()
    until(lambda: tested.behind() == 0, "the second has applied all")
    before = tested.told()
    os.kill(first.pid, signal.SIGCONT)
    tested.send(tested.scans([COUNT]))
    until(lambda: tested.behind() == 0, "the last scans")
    assert {grid: records[:-1] for grid, records in tested.told().items()} == before
    same_as_undisturbed(tested)


def storm(tested: Rig, _: RedisServer) -> None:
    """Members join, leave and are killed all the time: no version goes back and everything is judged.

    On librdkafka's broker: the embedded one gets stuck over groups that change while they are being balanced.
    """
    member = tested.worker(member="", name="m0")
    thread = sending(tested, 0.05)
    for number in range(1, 5):
        last, member = member, tested.worker(member="", name=f"m{number}")
        last.join(1.5)
        last.terminate() if number % 2 else last.kill()
    thread.join()
    until(lambda: tested.behind() == 0, "all applied", 90)
    same_as_undisturbed(tested)


def store_that(fault: str) -> Story:
    """Redis hangs, refuses, is full, is emptied, is killed and comes back: pause, no new dead letters, nothing lost."""

    def story(tested: Rig, store: RedisServer) -> None:
        tested.worker()
        thread = sending(tested)
        assert store.process is not None
        if fault == "hangs":
            os.kill(store.process.pid, signal.SIGSTOP)
            thread.join()
            os.kill(store.process.pid, signal.SIGCONT)
        elif fault == "refuses":
            tested.redis.config_set("min-replicas-to-write", 1)
            thread.join()
            tested.redis.config_set("min-replicas-to-write", 0)
        elif fault == "is full":
            before = tested.redis.config_get("maxmemory")["maxmemory"]
            tested.redis.config_set("maxmemory", 1)
            thread.join()
            tested.redis.config_set("maxmemory", before)
        elif fault == "is emptied":
            tested.redis.flushall()
        else:
            store.kill()
            store.restart()
        thread.join()
        until(lambda: tested.behind() == 0, f"all applied after Redis {fault}")
        letters = [letter for letter in tested.dead() if letter[1] not in POISON]
        assert not letters, "a store's trouble is no message's fault"
        same_as_undisturbed(tested)

    return story


STORIES: dict[str, Story] = {
    **{f"killed {place}": killed_at(place) for place in PLACES}, "paused": paused, "storm": storm,
    **{f"store {fault}": store_that(fault) for fault in ("hangs", "refuses", "is full", "is emptied", "is killed")},
}  # fmt: skip


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """How every story ends."""

    def run(story: Story, bootstrap: str, store: RedisServer) -> None:
        with rig(bootstrap, store.url.removesuffix("/0"), mock=bootstrap == mock) as tested:
            story(tested, store)

    with ExitStack() as stack:
        broker = stack.enter_context(Broker(tmp_path_factory.mktemp("broker")))
        # servers end with the thread that started them, so this one starts them all
        stores = [stack.enter_context(RedisServer(tmp_path_factory.mktemp("store"))) for _ in STORIES]
        mock = stack.enter_context(mock_broker())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield {
                name: pool.submit(run, story, mock if story is storm else broker.bootstrap, store)
                for (name, story), store in zip(STORIES.items(), stores, strict=True)
            }


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", STORIES)
def test_nothing_is_lost(name: str, ends: dict[str, Future[None]]) -> None:
    ends[name].result()


def test_a_broker_that_forgets_its_log(tmp_path: Path) -> None:
    """The embedded broker keeps the log in memory: killed and back, it begins a new one, and so does the loop."""
    with ExitStack() as stack:
        broker, store = stack.enter_context(Broker(tmp_path)), stack.enter_context(RedisServer(tmp_path))
        tested = stack.enter_context(rig(broker.bootstrap, store.url.removesuffix("/0")))
        tested.worker()
        tested.send(tested.scans(range(20)))
        until(lambda: tested.behind() == 0, "the first log")
        before = tested.told()
        broker.kill()
        broker.restart()
        tested.again()
        tested.send(tested.scans(range(20, 45)))
        until(lambda: all(len(records) == 45 for records in tested.told().values()), "the new log", 90)
        assert {grid: records[:20] for grid, records in tested.told().items()} == before
        assert {tested.position(p)["incarnation"] for p, end in tested.ends().items() if end} == {2}
