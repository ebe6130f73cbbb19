"""serve.events on a real Redis: nothing is left out over reconnects, slow pages and trims; streams end in time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from edge import ALARM, Page, edge, fill, put_event
from fastapi import FastAPI
from redis import Redis

import serve.events
from serve import keys


@pytest.fixture
def redis(socket_file: Path) -> Iterator[Redis]:
    with Redis(unix_socket_path=str(socket_file)) as client:
        fill(client)
        yield client


def run(socket_file: Path, story: Callable[[FastAPI], Awaitable[None]], **http: int) -> None:
    async def whole() -> None:
        async with edge(socket_file, **http) as (_, app):
            await story(app)

    asyncio.run(whole())


def test_a_page_gets_each_event_once_and_goes_on_where_it_was(redis: Redis, socket_file: Path) -> None:
    async def story(app: FastAPI) -> None:
        page = Page(app)
        await page.until(lambda p: p.text)
        sent = [put_event(redis) for _ in range(3)] + [put_event(redis, "alarm", record=ALARM)]
        await page.until(lambda p: len(p.of("alarm")) == 1)
        assert page.of("verdict") + page.of("alarm") == sent
        alarm = next(data for _, kind, data in page.events if kind == "alarm")
        assert (alarm["ack"], alarm["shelve"]) == (None, None)
        await page.leave()
        missed = [put_event(redis) for _ in range(4)]
        for again in (Page(app, headers={"Last-Event-ID": sent[-1]}), Page(app, f"last={sent[-1]}")):
            await again.until(lambda p: len(p.of("verdict")) >= 4)
            assert again.of("verdict") == missed
            assert again.of("reset") == []
            await again.leave()

    run(socket_file, story)


def test_a_page_of_one_grid_passes_over_the_others(redis: Redis, socket_file: Path) -> None:
    async def story(app: FastAPI) -> None:
        page = Page(app, "grid=south")
        await page.until(lambda p: p.text)
        put_event(redis)
        own = put_event(redis, grid="south")
        await page.until(lambda p: p.of("verdict"))
        assert page.of("verdict") == [own]
        await page.leave()

    run(socket_file, story)


def test_what_was_trimmed_away_is_a_reset(redis: Redis, socket_file: Path) -> None:
    first, *_, newest = [put_event(redis) for _ in range(6)]
    redis.xtrim(keys.EVENTS, maxlen=2, approximate=False)

    async def story(app: FastAPI) -> None:
        page = Page(app, f"last={first}")
        await page.until(lambda p: p.of("reset"))
        assert page.of("verdict") == []
        after = put_event(redis)
        await page.until(lambda p: p.of("verdict"))
        assert page.of("verdict") == [after]
        await page.leave()
        fine = Page(app, f"last={newest}")
        await fine.until(lambda p: p.of("verdict"))
        assert fine.of("reset") == []
        await fine.leave()
        future = Page(app, "last=99999999999999-0")  # an id of a store that is no more
        await future.until(lambda p: p.of("reset"))
        await future.leave()

    run(socket_file, story)


def test_pages_are_reset_when_events_passed_the_reader(redis: Redis, socket_file: Path) -> None:
    """The stream was made anew, shorter, while the hub looked away: what it never saw, pages have to read."""

    async def story(app: FastAPI) -> None:
        put_event(redis)
        page = Page(app)
        await page.until(lambda p: p.text)
        hub = app.state.hub
        hub.position = "1-0"  # far behind what is left
        await hub._take()
        await page.until(lambda p: p.of("reset"))
        await page.leave()

    run(socket_file, story)


def test_a_slow_page_holds_nobody_up_and_misses_nothing(
    redis: Redis, socket_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.events, "RING", 8)

    async def story(app: FastAPI) -> None:
        slow, quick = Page(app), Page(app)
        await slow.until(lambda p: p.text)
        await quick.until(lambda p: p.text)
        slow.takes.clear()
        sent = []
        for burst in range(4):
            sent += [put_event(redis) for _ in range(10)]
            await quick.until(lambda p, n=10 * (burst + 1): len(p.of("verdict")) == n)
        assert len(slow.of("verdict")) == 0
        slow.takes.set()
        await slow.until(lambda p: len(p.of("verdict")) == 40)
        assert slow.of("verdict") == quick.of("verdict") == sent
        assert slow.of("reset") == []
        await slow.leave()
        await quick.leave()

    run(socket_file, story)


def test_events_of_a_tick_go_out_together(redis: Redis, socket_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.events, "STATUS_S", 60.0)

    async def story(app: FastAPI) -> None:
        page = Page(app)
        await page.until(lambda p: p.text)
        begun, parts = time.monotonic(), page.parts
        for _ in range(200):
            put_event(redis)
            await asyncio.sleep(0)
        await page.until(lambda p: len(p.of("verdict")) == 200)
        ticks = (time.monotonic() - begun) / serve.events.TICK_S
        assert page.parts - parts <= ticks + 3
        await page.leave()

    run(socket_file, story)


def test_status_and_comments_keep_a_quiet_page_alive(
    redis: Redis, socket_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.events, "STATUS_S", 0.05)
    monkeypatch.setattr(serve.events, "HEARTBEAT_S", 0.1)

    async def story(app: FastAPI) -> None:
        page = Page(app)
        await page.until(lambda p: len(p.of("status")) >= 2 and "\n: " in p.text.replace("\n\n", "\n"))
        status = next(data for _, kind, data in page.events if kind == "status")
        assert status["consumers"][0]["lag_s"] == 0.25
        assert status["redis"] is True
        await page.leave()

    run(socket_file, story)


def test_pages_are_capped_and_their_places_come_back(redis: Redis, socket_file: Path) -> None:
    async def story(app: FastAPI) -> None:
        first = Page(app)
        await first.until(lambda p: p.text)
        second = Page(app)
        await second.done
        assert second.status == 503
        await first.leave()
        assert app.state.hub.clients == 0
        third = Page(app)
        await third.until(lambda p: p.text)
        assert third.status == 200
        await app.state.hub.close()
        await asyncio.wait_for(third.done, 5)

    run(socket_file, story, max_streams=1)


def test_an_id_that_is_none_is_refused(redis: Redis, socket_file: Path) -> None:
    async def story(app: FastAPI) -> None:
        for query in ("last=abc", "last=1-1;DROP", "last=-"):
            page = Page(app, query)
            await page.done
            assert page.status == 422

    run(socket_file, story)


SERVER = """
import sys, uvicorn
sys.path.insert(0, sys.argv[3])
from edge import Judge
from redis.asyncio import Redis
from serve.app import make_app
from serve.settings import LiveSettings
app = make_app(LiveSettings(), Redis(unix_socket_path=sys.argv[1]), Judge())
uvicorn.run(app, fd=int(sys.argv[2]), log_level="error")
"""


def test_uvicorn_ends_at_once_with_a_page_connected_and_sees_one_leave(redis: Redis, socket_file: Path) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-c", SERVER, str(socket_file), str(fd), str(Path(__file__).parent)]
        root = str(Path(__file__).resolve().parent.parent)
        server = subprocess.Popen(command, pass_fds=[fd], cwd=root, env={**os.environ, "PYTHONPATH": root})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            with client.stream("GET", "/v1/stream") as left:
                assert next(left.iter_text())
            deadline = time.monotonic() + 10
            while "gg_stream_clients 0.0" not in client.get("/metrics").text:
                assert time.monotonic() < deadline, "the place of a page that left was not given back"
            with client.stream("GET", "/v1/stream") as stays:
                parts = stays.iter_text()
                assert next(parts)
                server.send_signal(signal.SIGTERM)
                list(parts)  # a stream that is cut instead of ended raises here
        assert server.wait(15) in (0, -signal.SIGTERM)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
