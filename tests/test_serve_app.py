"""serve.app: every route's answer, who may ask, and what a stranger learns (nothing)."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from edge import ALARM, Judge, edge, fill, keys_file, put_alarm
from redis import Redis

from serve import keys
from serve.auth import revoke_key
from serve.examples import SCORE_EXAMPLE
from serve.logs import log_json
from serve.pages import DASHBOARD, Files
from serve.problems import MEDIA_TYPE
from serve.session import COOKIE

OPEN = {"/healthz", "/readyz", "/docs", "/openapi.json", "/", "/static/{path:path}", "/login", "/logout", "/v1/session"}
"""Addresses that need no key."""
PLANTED = "gg_0123456789ab_planted-secret-of-thirty-letters"


@pytest.fixture
def redis(socket_file: Path) -> Iterator[Redis]:
    with Redis(unix_socket_path=str(socket_file)) as client:
        fill(client)
        yield client


def test_the_read_routes_give_what_redis_holds(redis: Redis, socket_file: Path) -> None:
    drawn = {"case": "case14", "base_mva": 100.0, "f0_hz": 50.0, "geographic": False, "buses": [], "branches": []}

    async def story() -> None:
        async with edge(socket_file, layout=lambda case: {**drawn, "case": case}) as (client, _):
            [grid] = (await client.get("/v1/grids")).json()["grids"]
            assert (grid["grid"], grid["buses"], grid["branches"], grid["open_alarms"]) == ("north", 14, 20, 1)
            assert grid["verdict"]["verdict"] == "implausible"
            assert (await client.get("/v1/grids/north")).json() == {"grid": "north", **drawn}
            assert (await client.get("/v1/grids/north/map")).json()["v_pu"] == [1.0] * 14
            newest = (await client.get("/v1/grids/north/verdicts?limit=2")).json()
            assert newest["ids"] == ["4-0", "5-0"]
            before = (await client.get("/v1/grids/north/verdicts?limit=9&before=4-0")).json()
            assert before["ids"] == ["1-0", "2-0", "3-0"]
            assert [v["time_ms"] % 10 for v in before["verdicts"]] == [0, 1, 2]
            assert (await client.get("/v1/alarms/north-1-4")).json() == {**ALARM, "ack": None, "shelve": None}
            told = (await client.get("/v1/status")).json()
            assert told["consumers"] == [{"name": "c0", "lag_s": 0.25, "paused": False, "dead_letters": {"poison": 2}}]
            assert told["redis"] is True
            for absent in ("/v1/grids/south", "/v1/grids/south/map", "/v1/alarms/none", "/v1/grids/south/verdicts"):
                assert (await client.get(absent)).status_code == 404, absent

    asyncio.run(story())


def test_alarms_are_newest_first_by_state_and_grid(redis: Redis, socket_file: Path) -> None:
    put_alarm(redis, "south-1-1", 5, grid="south", state="closed")
    put_alarm(redis, "north-2-2", 10**14, state="closed")
    redis.zadd(keys.ALARMS, {"gone-1-1": 10**15})  # in the index, its hash is over

    async def ids(client: httpx.AsyncClient, query: str) -> list[str]:
        return [one["id"] for one in (await client.get(f"/v1/alarms{query}")).json()["alarms"]]

    async def story() -> None:
        async with edge(socket_file) as (client, _):
            assert await ids(client, "") == ["north-2-2", "north-1-4", "south-1-1"]
            assert await ids(client, "?state=open") == ["north-1-4"]
            assert await ids(client, "?state=closed&limit=1") == ["north-2-2"]
            assert await ids(client, "?grid=south") == ["south-1-1"]

    asyncio.run(story())


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_every_route_needs_a_key_when_there_are_keys(redis: Redis, socket_file: Path, tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, nobody=["score"])

    async def story() -> None:
        async with edge(socket_file, keys_file=path, burst=1000) as (client, app):
            asked = 0
            for route in app.routes:
                for method in sorted(getattr(route, "methods", ())):
                    own = route.path.replace("{path:path}", "app.js")
                    answer = await client.request(method, own.format(grid="north", id="north-1-4", action="ack"))
                    asked += 1
                    if route.path in OPEN:
                        assert answer.status_code not in (401, 500), route.path
                    else:
                        assert answer.status_code == 401, route.path
                        assert answer.headers["content-type"] == MEDIA_TYPE
                        assert "www-authenticate" in answer.headers
            assert asked > 20, "the router was not enumerated"
            wrong = await client.get("/v1/grids", headers={"X-API-Key": made["nobody"][:-1] + "x"})
            assert wrong.status_code == 401

    asyncio.run(story())


def test_a_key_does_what_its_scopes_say(redis: Redis, socket_file: Path, tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, s=["score"], r=["read"], o=["operate"], a=["admin"])
    asks: list[tuple[str, str, Any, str]] = [
        ("POST", "/v1/score", SCORE_EXAMPLE, "s"), ("GET", "/v1/grids", None, "r"),
        ("GET", "/metrics", None, "r"), ("POST", "/v1/alarms/north-1-4/ack", {}, "o"),
    ]  # fmt: skip

    async def story() -> None:
        async with edge(socket_file, keys_file=path) as (client, _):
            for method, address, body, owner in asks:
                for name, key in made.items():
                    answer = await client.request(
                        method, address, json=body, headers={"Authorization": f"Bearer {key}"}
                    )
                    assert answer.status_code == (200 if name in (owner, "a") else 403), (address, name)
            revoke_key(path, "r")
            assert (await client.get("/v1/grids", headers={"X-API-Key": made["r"]})).status_code == 401

    asyncio.run(story())


def test_a_session_reads_and_posts_only_with_its_token(redis: Redis, socket_file: Path, tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, desk=["read", "operate"])

    async def story() -> None:
        async with edge(socket_file, keys_file=path) as (client, _):
            nobody = (await client.get("/v1/session")).json()
            assert nobody == {"auth": True, "name": "", "scopes": [], "csrf": ""}
            assert (await client.post("/login", json={"key": PLANTED})).status_code == 401
            opened = await client.post("/login", json={"key": made["desk"]})
            assert opened.json()["scopes"] == ["read", "operate"]
            cookie = opened.headers["set-cookie"]
            assert [word for word in ("HttpOnly", "SameSite=Strict", "Path=/") if word not in cookie] == []
            assert made["desk"] not in cookie
            assert (await client.get("/v1/grids")).status_code == 200
            csrf = (await client.get("/v1/session")).json()["csrf"]
            ack = "/v1/alarms/north-1-4/ack"
            assert (await client.post(ack)).status_code == 403
            assert (await client.post(ack, headers={"X-CSRF-Token": csrf[::-1]})).status_code == 403
            assert (await client.post("/logout")).status_code == 403
            foreign = {"X-CSRF-Token": csrf, "Origin": "https://elsewhere.example"}
            assert (await client.post(ack, headers=foreign)).status_code == 403
            done = await client.post(ack, headers={"X-CSRF-Token": csrf})
            assert done.json()["ack"]["by"] == "desk"
            forged = client.cookies[COOKIE].replace(".", "x.", 1)
            assert (await client.get("/v1/grids", headers={"Cookie": f"{COOKIE}={forged}"})).status_code == 401
            assert (await client.post("/logout", headers={"X-CSRF-Token": csrf})).status_code == 200
            assert (await client.get("/v1/grids")).status_code == 401
            again = (await client.post("/login", json={"key": made["desk"]})).json()
            assert again["csrf"] not in ("", csrf)
            revoke_key(path, "desk")
            assert (await client.get("/v1/grids")).status_code == 401

    asyncio.run(story())


def test_wrong_keys_are_slowed_down_and_right_ones_not(redis: Redis, socket_file: Path, tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, r=["read"])

    async def story() -> None:
        async with edge(socket_file, keys_file=path) as (client, _):
            assert (await client.get("/v1/grids", headers={"X-API-Key": made["r"]})).status_code == 200
            tried = [await client.post("/login", json={"key": PLANTED}) for _ in range(7)]
            assert [answer.status_code for answer in tried] == [401] * 5 + [429] * 2
            assert int(tried[-1].headers["retry-after"]) >= 1
            assert (await client.get("/v1/grids", headers={"X-API-Key": "x"})).status_code == 429
            assert (await client.get("/v1/grids", headers={"X-API-Key": made["r"]})).status_code == 200

    asyncio.run(story())


def test_without_keys_this_machine_may_and_nobody_else(redis: Redis, socket_file: Path) -> None:
    async def story() -> None:
        async with edge(socket_file) as (client, app):
            ack = "/v1/alarms/north-1-4/ack"
            assert (await client.post(ack)).json()["ack"]["by"] == "local"
            assert (await client.post(ack, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
            assert (await client.post(ack, headers={"Origin": "https://elsewhere.example"})).status_code == 403
            rebound = await client.get("/v1/grids", headers={"Host": "elsewhere.example"})
            assert rebound.status_code == 401
            far = httpx.ASGITransport(app=app, client=("192.0.2.7", 1))
            async with httpx.AsyncClient(transport=far, base_url="http://127.0.0.1:8000") as stranger:
                assert (await stranger.get("/v1/grids")).status_code == 401
                assert (await stranger.get("/healthz")).status_code == 200

    asyncio.run(story())


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_unexpected_error_tells_nothing_but_its_trace(redis: Redis, socket_file: Path, tmp_path: Path) -> None:
    path, made = keys_file(tmp_path, a=["admin"])
    judge, stream = Judge(), io.StringIO()
    judge.fault = RuntimeError(f"inside {PLANTED} redis://user:hunter2@store")
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    log_json(stream)
    try:

        async def story() -> httpx.Response:
            async with edge(socket_file, judge, keys_file=path) as (client, _):
                await client.get("/v1/grids", headers={"X-API-Key": PLANTED})
                await client.post("/login", json={"key": PLANTED})
                return await client.post("/v1/score", json=SCORE_EXAMPLE, headers={
                    "X-API-Key": made["a"], "traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"})  # fmt: skip

        answer = asyncio.run(story())
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert answer.status_code == 500
    assert answer.json()["trace"] == "ab" * 16
    assert answer.headers["traceparent"].startswith("00-" + "ab" * 16)
    assert "inside" not in answer.text
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    [unexpected] = [line for line in lines if line["event"] == "unexpected error"]
    assert unexpected["trace"] == "ab" * 16
    assert "RuntimeError" in unexpected["error"]
    asked = [line for line in lines if line.get("route") == "/v1/score"]
    assert [(line["status"], line["key"], line["method"]) for line in asked] == [(500, "a", "POST")]
    everything = stream.getvalue()
    for secret in ("planted-secret", "hunter2", made["a"].split("_", 2)[2], "1.045"):
        assert secret not in everything


def test_without_redis_reads_are_503_and_the_process_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.view.ANSWERS_S", 0.1)

    async def story() -> None:
        async with edge(tmp_path / "absent.sock") as (client, _):
            for address in ("/v1/grids", "/readyz", "/v1/alarms"):
                answer = await client.get(address)
                assert (answer.status_code, answer.headers["content-type"]) == (503, MEDIA_TYPE), address
                assert "retry-after" in answer.headers
                assert "sock" not in answer.text
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/v1/status")).json()["redis"] is False
            assert (await client.get("/metrics")).status_code == 200

    asyncio.run(story())


def test_readiness_says_why_not(redis: Redis, socket_file: Path) -> None:
    judge = Judge()

    async def story() -> None:
        async with edge(socket_file, judge) as (client, app):
            assert (await client.get("/readyz")).status_code == 200
            judge.waiting = "the model is loading"
            assert "the model is loading" in (await client.get("/readyz")).json()["detail"]
            judge.waiting = None
            await app.state.hub.close()
            assert (await client.get("/readyz")).status_code == 503

    asyncio.run(story())


# --- metrics, pages -------------------------------------------------------------------------------------------------


def test_metrics_count_by_route_and_carry_the_parts_numbers(redis: Redis, socket_file: Path) -> None:
    async def story() -> str:
        async with edge(socket_file) as (client, _):
            await client.get("/v1/alarms/north-1-4")
            await client.get("/v1/alarms/none")
            await client.get("/unknown/address")
            await client.post("/v1/score", json=SCORE_EXAMPLE)
            return (await client.get("/metrics")).text

    told = asyncio.run(story()).splitlines()
    for line in (
        'gg_http_requests_total{method="GET",route="/v1/alarms/{id}",status="200"} 1.0',
        'gg_http_requests_total{method="GET",route="/v1/alarms/{id}",status="404"} 1.0',
        'gg_http_requests_total{method="GET",route="(none)",status="404"} 1.0',
        'gg_http_request_seconds_count{route="/v1/score"} 1.0',
        'gg_http_windows_total{verdict="normal"} 1.0',
        "gg_stream_clients 0.0",
        'gg_consumer_lag_s{name="c0",of=""} 0.25',
        'gg_consumer_paused{name="c0",of=""} 0.0',
        'gg_consumer_dead_letters{name="c0",of="poison"} 2.0',
    ):
        assert line in told


def test_answers_carry_headers_that_let_a_browser_do_little(redis: Redis, socket_file: Path) -> None:
    async def story() -> None:
        async with edge(socket_file) as (client, _):
            for address in ("/", "/v1/grids", "/nothing"):
                headers = (await client.get(address)).headers
                assert "default-src 'self'" in headers["content-security-policy"]
                assert "frame-ancestors 'none'" in headers["content-security-policy"]
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["referrer-policy"] == "no-referrer"
            assert "<script" not in (await client.get("/docs")).text

    asyncio.run(story())


def test_files_go_out_once_and_only_those_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "secret.js").write_text("no")
    (tmp_path / "page" / "app.js").write_text("1")
    (tmp_path / "page" / "notes.py").write_text("no")
    files = Files(tmp_path / "page")
    first = files.answer("app.js", httpx.Headers())  # type: ignore[arg-type]
    assert first.media_type == "text/javascript; charset=utf-8"
    tag = {"if-none-match": f'"x", W/{first.headers["etag"]}'}
    assert files.answer("app.js", httpx.Headers(tag)).status_code == 304  # type: ignore[arg-type]
    (tmp_path / "page" / "app.js").write_text("2")
    assert files.answer("app.js", httpx.Headers(tag)).body == b"2"  # type: ignore[arg-type]
    for name in ("../secret.js", "notes.py", "", ".", "a\0.js", "x" * 5000 + ".js", "none.js"):
        with pytest.raises(Exception, match="no such file"):
            files.answer(name, httpx.Headers())  # type: ignore[arg-type]
    assert DASHBOARD.name == "dashboard"
