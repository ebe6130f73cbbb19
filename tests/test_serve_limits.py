"""serve.limits and serve.buckets: too much, too often, too long and too many at once are refused as what they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from edge import Judge, edge, keys_file

from serve.access import Caller
from serve.buckets import MOST, Buckets
from serve.examples import SCORE_EXAMPLE
from serve.limits import Limits
from serve.problems import MEDIA_TYPE
from serve.settings import HttpSettings

NOWHERE = Path("/nowhere/redis.sock")


@pytest.fixture(autouse=True)
def _quick_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no Redis here, and nothing that is asked needs one."""
    monkeypatch.setattr("serve.view.ANSWERS_S", 0.05)


def test_buckets_fill_by_time_and_belong_to_names() -> None:
    now = [0.0]
    buckets = Buckets(2.0, 3, lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b") == 0.0
    now[0] = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0.0, 0.5]
    now[0] = 100.0
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    buckets.give_back("a")
    assert buckets.wait_s("a") == 0.0
    for i in range(MOST + 10):
        buckets.take(f"n{i}")
    assert len(buckets._held) == MOST


def test_a_body_is_refused_by_what_it_says_and_by_what_it_is() -> None:
    async def drip(sent: list[int]) -> AsyncIterator[bytes]:
        for _ in range(100):
            sent.append(1)
            yield b" " * 50

    async def story() -> None:
        async with edge(NOWHERE, max_body=1000, max_arrow_body=2000) as (client, _):
            for address in ("/v1/score", "/login", "/v1/alarms/x/ack"):
                declared = await client.post(address, content=b"x" * 1001)
                assert (declared.status_code, declared.headers["content-type"]) == (413, MEDIA_TYPE), address
            sent: list[int] = []
            assert (await client.post("/v1/score", content=drip(sent))).status_code == 413
            assert len(sent) < 30, "the rest was not read"
            negative = await client.post("/v1/score", content=b"x", headers={"Content-Length": "-1"})
            assert negative.status_code == 413
            arrow = {"Content-Type": "application/vnd.apache.arrow.stream"}
            assert (await client.post("/v1/score", content=b"x" * 1500, headers=arrow)).status_code == 422
            assert (await client.post("/v1/score", content=b"x" * 2001, headers=arrow)).status_code == 413
            assert (await client.post("/login", content=b"x" * 1500, headers=arrow)).status_code == 413

    asyncio.run(story())


def test_each_key_has_a_rate_of_its_own_and_probes_none(tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, a=["score"], b=["score"])

    async def story() -> None:
        async with edge(NOWHERE, keys_file=path, rate_per_s=0.01, burst=2) as (client, _):
            asked = [
                await client.post("/v1/score", json=SCORE_EXAMPLE, headers={"X-API-Key": made["a"]}) for _ in range(3)
            ]
            assert [answer.status_code for answer in asked] == [200, 200, 429]
            assert 50 < int(asked[-1].headers["retry-after"]) <= 100
            other = await client.post("/v1/score", json=SCORE_EXAMPLE, headers={"X-API-Key": made["b"]})
            assert other.status_code == 200
            assert [(await client.get("/healthz")).status_code for _ in range(5)] == [200] * 5

    asyncio.run(story())


def test_what_is_not_done_in_time_is_408_whatever_header_the_client_sends() -> None:
    judge = Judge()

    async def story() -> None:
        judge.hold = asyncio.Event()
        async with edge(NOWHERE, judge, timeout_s=0.3) as (client, _):
            late = await client.post("/v1/score", json=SCORE_EXAMPLE, headers={"x-request-timeout-seconds": "0"})
            assert (late.status_code, late.headers["content-type"]) == (408, MEDIA_TYPE)

            async def never() -> AsyncIterator[bytes]:
                yield b"["
                await asyncio.Event().wait()

            assert (await client.post("/v1/score", content=never())).status_code == 408

    asyncio.run(story())


def test_rays_own_headers_do_not_reach_the_app() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])

    async def story() -> None:
        scope = {"type": "http", "path": "/v1/grids", "headers": [(b"X-Request-Timeout-Seconds", b"0"), (b"a", b"b")],
                 "gg.caller": Caller(None, "nothing", "x")}  # fmt: skip

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        await Limits(app, HttpSettings())(scope, receive, receive)  # type: ignore[arg-type]

    asyncio.run(story())
    assert seen == [(b"a", b"b")]


def test_more_at_once_than_allowed_wait_outside() -> None:
    judge = Judge()

    async def story() -> None:
        judge.hold = asyncio.Event()
        async with edge(NOWHERE, judge, max_running=2, burst=10**6) as (client, _):
            first = [asyncio.create_task(client.post("/v1/score", json=SCORE_EXAMPLE)) for _ in range(2)]
            answer: httpx.Response | None = None
            async with asyncio.timeout(10):
                while answer is None or answer.status_code != 503:  # until both are inside
                    await asyncio.sleep(0)
                    answer = await client.get("/v1/models")
            assert answer.headers["retry-after"] == "1"
            assert (await client.get("/healthz")).status_code == 200
            judge.hold.set()
            assert [(await task).status_code for task in first] == [200, 200]
            assert (await client.get("/v1/models")).status_code == 200

    asyncio.run(story())
