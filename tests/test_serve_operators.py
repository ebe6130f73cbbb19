"""serve.operators on a real Redis: marks beside the record, one event and one audit entry an action, repeats none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from edge import ALARM, T0_MS, edge, fill
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from serve import keys
from serve.operators import SAME_MS, Operators
from serve.records import iso_ms
from serve.view import NotHere, View

ID = "north-1-4"


@pytest.fixture
def redis(socket_file: Path) -> Iterator[Redis]:
    with Redis(unix_socket_path=str(socket_file), decode_responses=True) as client:
        fill(client)
        yield client


class Clock:
    ms = T0_MS


Story = Callable[[Operators, View, Clock], Awaitable[None]]


def run(socket_file: Path, story: Story) -> None:
    async def whole() -> None:
        redis, clock = AsyncRedis(unix_socket_path=str(socket_file)), Clock()
        view = View(redis, lambda: clock.ms)
        await story(Operators(redis, view), view, clock)
        await redis.aclose()

    asyncio.run(whole())


def told(redis: Redis, stream: str) -> list[dict[str, Any]]:
    return [json.loads(fields["json"]) for _, fields in redis.xrange(stream)]


def test_an_acknowledgement_stands_beside_the_record_and_is_told_once(redis: Redis, socket_file: Path) -> None:
    before = redis.hget(keys.alarm(ID), "json")

    async def story(operators: Operators, view: View, clock: Clock) -> None:
        for by in ("ann", "ann", "bob"):  # the first one stands
            found = await operators.act("ack", ID, by, "seen")
            clock.ms += 60_000
            assert found["ack"] == {
                "id": ID, "grid": "north", "action": "ack", "by": "ann", "at": iso_ms(T0_MS * 10**6), "note": "seen",
                "until": None,
            }  # fmt: skip
        assert (await operators.act("ack", ID, "bob", "crew is there"))["ack"]["by"] == "bob"
        assert (await operators.act("unack", ID, "ann"))["ack"] is None
        assert (await operators.act("unack", ID, "ann"))["ack"] is None

    run(socket_file, story)
    expected = [("ack", "ann"), ("ack", "bob"), ("unack", "ann")]
    for stream in (keys.EVENTS, keys.AUDIT):
        assert [(mark["action"], mark["by"]) for mark in told(redis, stream)] == expected, stream
    assert {fields["kind"] for _, fields in redis.xrange(keys.EVENTS)} == {"operator"}
    assert {fields["grid"] for _, fields in redis.xrange(keys.EVENTS)} == {"north"}
    assert redis.hget(keys.alarm(ID), "json") == before


def test_a_shelf_ends_by_time_and_a_repeat_within_seconds_is_the_same_request(redis: Redis, socket_file: Path) -> None:
    async def story(operators: Operators, view: View, clock: Clock) -> None:
        first = await operators.act("shelve", ID, "ann", "maintenance", 30)
        assert first["shelve"]["until"] == iso_ms((T0_MS + 30 * 60_000) * 10**6)
        clock.ms += SAME_MS - 1
        assert (await operators.act("shelve", ID, "ann", "maintenance", 30))["shelve"] == first["shelve"]
        clock.ms += 60_000
        longer = await operators.act("shelve", ID, "ann", "maintenance", 30)
        assert longer["shelve"]["until"] > first["shelve"]["until"]
        clock.ms += 30 * 60_000 - 1
        assert (await view.alarm(ID))["shelve"] is not None
        clock.ms += 1
        assert (await view.alarm(ID))["shelve"] is None
        assert (await operators.act("unshelve", ID, "ann"))["shelve"] is None  # over: nothing is taken back
        await operators.act("shelve", ID, "ann")
        assert (await operators.act("unshelve", ID, "bob"))["shelve"] is None

    run(socket_file, story)
    assert [mark["action"] for mark in told(redis, keys.AUDIT)] == ["shelve", "shelve", "shelve", "unshelve"]


def test_an_unknown_incident_is_neither_marked_nor_told(redis: Redis, socket_file: Path) -> None:
    async def story(operators: Operators, view: View, clock: Clock) -> None:
        with pytest.raises(NotHere):
            await operators.act("ack", "none", "ann")

    run(socket_file, story)
    assert redis.exists(keys.alarm("none"), keys.EVENTS, keys.AUDIT) == 0


def test_actions_over_http(redis: Redis, socket_file: Path) -> None:
    async def story() -> None:
        async with edge(socket_file) as (client, _):
            address = f"/v1/alarms/{ID}"
            done = (await client.post(f"{address}/shelve", json={"note": "x", "minutes": 5})).json()
            assert {**done, "shelve": None} == {**ALARM, "ack": None, "shelve": None}
            assert (done["shelve"]["by"], done["shelve"]["note"]) == ("local", "x")
            assert (await client.get(address)).json() == done
            assert (await client.post(f"{address}/unshelve")).json()["shelve"] is None
            assert (await client.post("/v1/alarms/none/ack")).status_code == 404
            for body in ({"minutes": 0}, {"minutes": 10**6}, {"note": "x" * 501}, {"minute": 5}, [1]):
                refused = await client.post(f"{address}/shelve", json=body)
                assert refused.status_code == 422, body
                assert refused.json()["errors"][0]["where"].startswith("body")
            assert (await client.post(f"{address}/dance")).status_code == 422

    asyncio.run(story())
    assert "trace" in redis.xrange(keys.AUDIT)[0][1]
