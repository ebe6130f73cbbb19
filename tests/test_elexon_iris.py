"""gg_ray.elexon.iris on a fake queue: order, settled after the acknowledgement, nothing lost, bad messages kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elexon_fakes import FakeClock, FakeMessage, FakeQueue
from elexon_rows import MINUTE, T0, batch, freq, utc, wobble, z

from gg_ray.config import ConfigError
from gg_ray.elexon import feeding
from gg_ray.elexon.errors import NotCarried, Unavailable
from gg_ray.elexon.iris import HELD_S, NAMESPACE, IrisSource, account, connected
from gg_ray.elexon.source import STREAMS, Fetched, GridSource


@pytest.fixture
def queue() -> FakeQueue:
    return FakeQueue()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def source(queue: FakeQueue, tmp_path: Path, clock: FakeClock) -> IrisSource:
    return IrisSource(queue, failed=tmp_path / "failed", now=clock.now)


def listen(source: IrisSource, queue: FakeQueue) -> list[Fetched]:
    """Everything produced; each acknowledgement is written into the queue's log."""
    produced: list[Fetched] = []

    async def produce(fetched: Fetched) -> None:
        await asyncio.sleep(0)
        produced.append(fetched)
        queue.log.append(f"ack {fetched.stream}")

    asyncio.run(source.listen(produce))
    return produced


def test_it_is_a_grid_source(source: IrisSource) -> None:
    held: GridSource = source
    assert "FREQ" in held.streams


def test_messages_are_settled_after_the_acknowledgement_and_in_order(source: IrisSource, queue: FakeQueue) -> None:
    queue.push("FREQ", freq(T0, wobble(8)))
    queue.push("FUELINST", batch(T0))
    queue.push("FREQ", freq(T0 + 2 * MINUTE, wobble(8)))
    produced = listen(source, queue)
    assert queue.log == ["ack FREQ", "complete", "ack FUELINST", "complete", "ack FREQ", "complete"]
    assert [len(fetched.rows) for fetched in produced] == [8, 20, 8]
    assert source.counts == {"messages": 3, "completed": 3}


def test_what_could_not_be_produced_goes_back_and_comes_again(source: IrisSource, queue: FakeQueue) -> None:
    queue.push("FREQ", freq(T0, wobble(8)))

    async def refuse(fetched: Fetched) -> None:
        raise ConnectionError("no broker")

    with pytest.raises(ConnectionError):
        asyncio.run(source.listen(refuse))
    assert queue.log == ["abandon"]
    assert len(listen(source, queue)[0].rows) == 8
    assert queue.log == ["abandon", "ack FREQ", "complete"]


def test_a_cancelled_listener_settles_nothing(source: IrisSource, queue: FakeQueue) -> None:
    queue.push("FREQ", freq(T0, wobble(8)))

    async def story() -> None:
        waiting = asyncio.Event()

        async def never(fetched: Fetched) -> None:
            waiting.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(source.listen(never))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert queue.log == []


@pytest.mark.parametrize("bad", [b"<html>", b"[{", b'{"data": null}', b'[{"measurementTime": "now"}]', b"\xff"])
def test_a_bad_message_is_kept_dead_lettered_and_passed_by(
    source: IrisSource, queue: FakeQueue, tmp_path: Path, bad: bytes
) -> None:
    queue.push("FREQ", bad)
    queue.push("FREQ", freq(T0, wobble(8)))
    listen(source, queue)
    assert queue.log == ["dead: unreadable", "ack FREQ", "complete"]
    [raw] = (tmp_path / "failed").glob("FREQ-*.raw")
    assert raw.read_bytes() == bad
    assert queue.dead[0][1].startswith("FREQ:")
    assert source.counts["dead_lettered"] == 1


def test_a_bad_row_among_good_ones_is_handed_on_as_a_reject(
    source: IrisSource, queue: FakeQueue, tmp_path: Path
) -> None:
    queue.push("FUELINST", [*batch(T0)[1:], {**batch(T0)[0], "generation": "12"}])
    [fetched] = listen(source, queue)
    assert (len(fetched.rows), len(fetched.rejects)) == (19, 1)
    assert queue.log[-1] == "complete"
    assert len(list((tmp_path / "failed").glob("*.raw"))) == 1
    assert source.counts["rejected"] == 1


def test_one_row_may_come_without_its_list_and_datasets_that_we_do_not_read_are_passed_by(
    source: IrisSource, queue: FakeQueue
) -> None:
    queue.push("SYSWARN", {"publishTime": z(T0), "warningType": "SYSTEM WARNING", "warningText": "x"})
    queue.push("BOALF", [{"bmUnit": "T_X"}])
    queue.push(None, [])
    produced = listen(source, queue)
    assert [fetched.stream for fetched in produced] == ["WARNINGS"]
    assert source.counts["ignored"] == 2
    assert queue.log == ["ack WARNINGS", "complete", "complete", "complete"]


def test_a_message_that_cannot_be_settled_does_not_stop_the_others(source: IrisSource, queue: FakeQueue) -> None:
    queue.settle_fails = True
    for minute in (0, 2):
        queue.push("FREQ", freq(T0 + minute * MINUTE, wobble(8)))
    assert len(listen(source, queue)) == 2
    assert source.counts["settle_failed"] == 2


def test_a_broken_connection_is_typed(source: IrisSource, queue: FakeQueue) -> None:
    queue.breaks = RuntimeError("link detached")
    with pytest.raises(Unavailable, match="RuntimeError: link detached"):
        listen(source, queue)


def test_latest_is_what_has_arrived(source: IrisSource, queue: FakeQueue) -> None:
    for minute in range(0, 60, 2):
        queue.push("FREQ", freq(T0 + minute * MINUTE, wobble(8)))
    queue.push("FREQ", freq(T0 + 58 * MINUTE, wobble(8)))  # delivered twice
    listen(source, queue)
    fetched = asyncio.run(source.latest("freq"))
    assert len(fetched.rows) == 10 * 4 + 2
    assert fetched.origin == "live"


def test_a_row_of_a_wrong_clock_does_not_push_the_others_out(source: IrisSource, queue: FakeQueue) -> None:
    queue.push("FREQ", freq(T0, wobble(8)))
    queue.push("FREQ", [*freq(T0 + 2 * MINUTE, wobble(8)), *freq(T0.replace(year=2126), [50.0])])
    listen(source, queue)
    assert len(asyncio.run(source.latest("FREQ")).rows) == 16
    assert source.counts["outside"] == 1


def test_what_it_cannot_give_names_the_way(source: IrisSource) -> None:
    with pytest.raises(NotCarried, match="no history"):
        asyncio.run(source.fetch("FREQ", T0, T0))
    with pytest.raises(NotCarried, match=r"DEMAND: .*/demand/outturn"):
        asyncio.run(source.latest("DEMAND"))
    with pytest.raises(Unavailable, match="no message"):
        asyncio.run(source.latest("FREQ"))


def test_health_is_about_silence(source: IrisSource, queue: FakeQueue, clock: FakeClock) -> None:
    assert not asyncio.run(source.health()).usable
    queue.push("FREQ", freq(T0, wobble(8)))
    listen(source, queue)
    clock.seconds += 599
    assert asyncio.run(source.health()).detail == "last message 599 s ago, 1 in all"
    clock.seconds += 2
    assert not asyncio.run(source.health()).usable
    with pytest.raises(Unavailable, match="iris is silent: last message 601 s ago"):
        asyncio.run(source.latest("FREQ"))
    asyncio.run(source.aclose())


def test_without_a_receiver_it_says_so(queue: FakeQueue) -> None:
    source = IrisSource()
    assert not asyncio.run(source.health()).usable
    with pytest.raises(Unavailable, match="no receiver"):
        listen(source, queue)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("azure.identity.aio", "azure.servicebus.aio"):
        monkeypatch.setitem(sys.modules, name, None)

    async def story() -> None:
        async with connected("queue", "id", "secret"):
            raise AssertionError

    with pytest.raises(NotCarried, match=r"gg-ray\[iris\]"):
        asyncio.run(story())


def test_the_connection_renews_the_locks_of_what_waits(monkeypatch: pytest.MonkeyPatch, queue: FakeQueue) -> None:
    made: list[tuple[Any, ...]] = []

    @contextlib.asynccontextmanager
    async def opened(*args: Any, **settings: Any) -> AsyncIterator[Any]:
        made.append((*args, *settings.values()))
        yield SimpleNamespace(get_queue_receiver=opened) if NAMESPACE in args else queue

    azure = SimpleNamespace(ClientSecretCredential=opened, AutoLockRenewer=opened, ServiceBusClient=opened)
    for name in ("azure.identity.aio", "azure.servicebus.aio"):
        monkeypatch.setitem(sys.modules, name, azure)

    async def story() -> None:
        async with connected("queue", "id", "secret") as receiver:
            assert receiver is queue

    asyncio.run(story())
    assert made[0][1:] == ("id", "secret")
    assert made[2] == (HELD_S,)
    assert made[3] == ("queue", queue)  # the fake renewer is the fake queue


def test_an_account_is_named_whole() -> None:
    env = {"GG_IRIS_QUEUE": "q", "GG_IRIS_CLIENT_ID": "id", "GG_IRIS_SECRET": "s"}
    assert account(env) == ("q", "id", "s")
    with pytest.raises(ConfigError, match=r"set GG_IRIS_CLIENT_ID, GG_IRIS_SECRET \("):
        account({"GG_IRIS_QUEUE": "q", "GG_IRIS_SECRET": ""})


# --- the feed --------------------------------------------------------------------------------------------------------


def at(text: str) -> datetime:
    return utc(f"2026-05-06T{text}Z")


@pytest.fixture
def half_hour(queue: FakeQueue, clock: FakeClock) -> FakeQueue:
    """Two scans as IRIS brings them: frequency each two minutes, fuels after each five."""
    queue.clock = clock
    queue.push("FREQ", freq(at("12:00:00"), wobble(8)), at("12:02:10"))
    queue.push("FREQ", freq(at("12:02:00"), wobble(8)), at("12:04:10"))
    queue.push("FUELINST", batch(at("12:00:00")), at("12:05:20"))
    queue.push("FREQ", freq(at("12:04:00"), wobble(8)), at("12:06:10"))
    queue.push("FUELINST", batch(at("12:05:00")), at("12:10:20"))
    return queue


def pushed(source: IrisSource, queue: FakeQueue, clock: FakeClock, **asked: Any) -> int:
    feed = feeding.Feed(("FUELINST", "FREQ"), 300)
    return asyncio.run(
        feeding.push(source, feed, lambda message: queue.log.append(message["t0"][11:16]), now=clock.now, **asked)
    )


def test_a_message_is_settled_once_the_scans_of_its_rows_were_said(
    source: IrisSource, half_hour: FakeQueue, clock: FakeClock
) -> None:
    half_hour.messages.insert(1, FakeMessage("FUELHH", json.dumps(batch(at("11:30:00"), minutes=30)), at("12:03:00")))
    assert pushed(source, half_hour, clock) == 3
    # frequency of 12:04 to 12:06 changes the first scan and waits for the second; an unfed stream settles no other
    assert half_hour.log == ["complete", "12:00", *["complete"] * 3, "12:00", "12:05", *["complete"] * 2]


def test_a_line_that_cannot_be_written_gives_back_all_that_waits_in_order(
    source: IrisSource, half_hour: FakeQueue, clock: FakeClock
) -> None:
    def full(message: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        asyncio.run(feeding.push(source, feeding.Feed(("FUELINST", "FREQ"), 300), full, now=clock.now))
    assert half_hour.log == ["abandon"] * 3
    assert [message.subject for message in half_hour.messages] == ["FREQ", "FREQ", "FUELINST", "FREQ", "FUELINST"]
    assert pushed(source, half_hour, clock) == 3


def test_once_ends_after_the_message_that_made_a_line_is_settled(
    source: IrisSource, half_hour: FakeQueue, clock: FakeClock
) -> None:
    assert pushed(source, half_hour, clock, once=True) == 1
    assert half_hour.log == ["12:00", *["complete"] * 3]
    assert len(half_hour.messages) == 2


def test_silence_is_said_scan_by_scan(source: IrisSource, half_hour: FakeQueue, clock: FakeClock) -> None:
    class Silent(FakeQueue):
        async def __aiter__(self) -> AsyncIterator[Any]:
            async for message in super().__aiter__():
                yield message
            await asyncio.Event().wait()

    quiet = Silent(messages=half_hour.messages, clock=clock)

    def later() -> datetime:
        if not quiet.messages:
            clock.seconds += 60
        return clock.now()

    lines: list[dict[str, Any]] = []
    feed = feeding.Feed(("FUELINST",), 300)
    silent = IrisSource(quiet, now=clock.now)
    asyncio.run(feeding.push(silent, feed, lines.append, now=later, until=at("12:40:00"), tick_s=0.001))
    assert [line["t0"][11:16] for line in lines if not line["values"]][:3] == ["12:10", "12:15", "12:20"]


def test_streams_that_are_not_pushed_are_refused(source: IrisSource, clock: FakeClock) -> None:
    with pytest.raises(NotCarried, match="DEMAND"):
        asyncio.run(feeding.push(source, feeding.Feed(("DEMAND",), 300), print, now=clock.now))
    assert feeding.usual(IrisSource.streams) == ("FUELINST", "INDO", "ITSDO", "FREQ")
    assert feeding.usual(tuple(STREAMS)) == ("FUELINST", "DEMAND", "FREQ")
    assert feeding.usual(("FREQ", "DEMAND", "FUELHH")) == ("FUELHH", "DEMAND", "FREQ")
