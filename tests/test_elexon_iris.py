"""gg_ray.elexon.iris on a fake queue: order, settled after the acknowledgement, nothing lost, bad messages kept."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from elexon_clock import FakeClock
from elexon_rows import MINUTE, T0, batch, freq, wobble, z

from gg_ray.elexon.errors import NotCarried, Unavailable
from gg_ray.elexon.iris import IrisSource, connected
from gg_ray.elexon.source import Fetched, GridSource


@dataclass
class Message:
    subject: str | None
    body: Any


@dataclass
class Queue:
    """Delivers in order; what is abandoned comes back first; what happened is in `log`."""

    messages: deque[Message] = field(default_factory=deque)
    log: list[str] = field(default_factory=list)
    dead: list[tuple[Message, str]] = field(default_factory=list)
    breaks: Exception | None = None
    settle_fails: bool = False

    def push(self, subject: str | None, rows: Any) -> None:
        body = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
        self.messages.append(Message(subject, iter([body[:7], body[7:]])))

    async def __aiter__(self) -> AsyncIterator[Message]:
        while self.messages:
            yield self.messages.popleft()
        if self.breaks is not None:
            raise self.breaks

    async def complete_message(self, message: Message) -> None:
        if self.settle_fails:
            raise RuntimeError("lock lost")
        self.log.append("complete")

    async def abandon_message(self, message: Message) -> None:
        self.log.append("abandon")
        self.messages.appendleft(message)

    async def dead_letter_message(self, message: Message, *, reason: str, error_description: str) -> None:
        self.log.append(f"dead: {reason}")
        self.dead.append((message, error_description))


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def source(queue: Queue, tmp_path: Path, clock: FakeClock) -> IrisSource:
    return IrisSource(queue, failed=tmp_path / "failed", now=clock.now)


def listen(source: IrisSource, queue: Queue) -> list[Fetched]:
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


def test_messages_are_settled_after_the_acknowledgement_and_in_order(source: IrisSource, queue: Queue) -> None:
    queue.push("FREQ", freq(T0, wobble(8)))
    queue.push("FUELINST", batch(T0))
    queue.push("FREQ", freq(T0 + 2 * MINUTE, wobble(8)))
    produced = listen(source, queue)
    assert queue.log == ["ack FREQ", "complete", "ack FUELINST", "complete", "ack FREQ", "complete"]
    assert [len(fetched.rows) for fetched in produced] == [8, 20, 8]
    assert source.counts == {"messages": 3, "completed": 3}


def test_what_could_not_be_produced_goes_back_and_comes_again(source: IrisSource, queue: Queue) -> None:
    queue.push("FREQ", freq(T0, wobble(8)))

    async def refuse(fetched: Fetched) -> None:
        raise ConnectionError("no broker")

    with pytest.raises(ConnectionError):
        asyncio.run(source.listen(refuse))
    assert queue.log == ["abandon"]
    [message] = queue.messages
    message.body = json.dumps(freq(T0, wobble(8)))  # the fake's body can be read once; a real one is delivered anew
    assert len(listen(source, queue)[0].rows) == 8
    assert queue.log == ["abandon", "ack FREQ", "complete"]


def test_a_cancelled_listener_settles_nothing(source: IrisSource, queue: Queue) -> None:
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
    source: IrisSource, queue: Queue, tmp_path: Path, bad: bytes
) -> None:
    queue.push("FREQ", bad)
    queue.push("FREQ", freq(T0, wobble(8)))
    listen(source, queue)
    assert queue.log == ["dead: unreadable", "ack FREQ", "complete"]
    [raw] = (tmp_path / "failed").glob("FREQ-*.raw")
    assert raw.read_bytes() == bad
    assert queue.dead[0][1].startswith("FREQ:")
    assert source.counts["dead_lettered"] == 1


def test_a_bad_row_among_good_ones_is_handed_on_as_a_reject(source: IrisSource, queue: Queue, tmp_path: Path) -> None:
    queue.push("FUELINST", [*batch(T0)[1:], {**batch(T0)[0], "generation": "12"}])
    [fetched] = listen(source, queue)
    assert (len(fetched.rows), len(fetched.rejects)) == (19, 1)
    assert queue.log[-1] == "complete"
    assert len(list((tmp_path / "failed").glob("*.raw"))) == 1
    assert source.counts["rejected"] == 1


def test_one_row_may_come_without_its_list_and_datasets_that_we_do_not_read_are_passed_by(
    source: IrisSource, queue: Queue
) -> None:
    queue.push("SYSWARN", {"publishTime": z(T0), "warningType": "SYSTEM WARNING", "warningText": "x"})
    queue.push("BOALF", [{"bmUnit": "T_X"}])
    queue.push(None, [])
    produced = listen(source, queue)
    assert [fetched.stream for fetched in produced] == ["WARNINGS"]
    assert source.counts["ignored"] == 2
    assert queue.log == ["ack WARNINGS", "complete", "complete", "complete"]


def test_a_message_that_cannot_be_settled_does_not_stop_the_others(source: IrisSource, queue: Queue) -> None:
    queue.settle_fails = True
    for minute in (0, 2):
        queue.push("FREQ", freq(T0 + minute * MINUTE, wobble(8)))
    assert len(listen(source, queue)) == 2
    assert source.counts["settle_failed"] == 2


def test_a_broken_connection_is_typed(source: IrisSource, queue: Queue) -> None:
    queue.breaks = RuntimeError("link detached")
    with pytest.raises(Unavailable, match="RuntimeError: link detached"):
        listen(source, queue)


def test_latest_is_what_has_arrived(source: IrisSource, queue: Queue) -> None:
    for minute in range(0, 60, 2):
        queue.push("FREQ", freq(T0 + minute * MINUTE, wobble(8)))
    queue.push("FREQ", freq(T0 + 58 * MINUTE, wobble(8)))  # delivered twice
    listen(source, queue)
    fetched = asyncio.run(source.latest("freq"))
    assert len(fetched.rows) == 10 * 4 + 2
    assert fetched.origin == "live"


def test_a_row_of_a_wrong_clock_does_not_push_the_others_out(source: IrisSource, queue: Queue) -> None:
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


def test_health_is_about_silence(source: IrisSource, queue: Queue, clock: FakeClock) -> None:
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


def test_without_a_receiver_it_says_so(queue: Queue) -> None:
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
