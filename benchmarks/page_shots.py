"""Pictures of the operator's page for docs/page.md: the digital twin of a grid, judged by the shipped model.

    python -m benchmarks.page_shots --out docs/img

Nothing on the pictures is drawn by hand: scans come from serve.simulate, verdicts from the shipped model, incidents
from serve.scribe, records from Redis, and the page is served by serve.app to a headless Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, sync_playwright
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from gg_ray.grid.meters import MeterPlan
from gg_ray.records import Verdict, Window
from serve import keys
from serve.app import make_app
from serve.asks import Ask, Scored
from serve.embedded import RedisServer
from serve.layouts import layout_of
from serve.models import Models
from serve.records import iso_ms
from serve.rings import Ring, plan_of_message
from serve.scoring import ModelRecord
from serve.scribe import Heard, Scribe
from serve.settings import ConsumerSettings, LiveSettings
from serve.simulate import Twin
from serve.store import Store, Write
from serve.wire import ScanMessage

CHROMIUM = "/usr/bin/chromium"
BROWSER_ARGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync")  # fmt: skip
TOPIC = "page"


class Playback:
    """The scan loop without a broker: one scan after the other through ring, models, scribe and store."""

    def __init__(self, models: Models, redis: Redis) -> None:
        self.models, self.store, self.scribe = models, Store(redis, "page"), Scribe()
        self._rings: dict[str, Ring] = {}
        self._fence, self._offset = self.store.begin(TOPIC, 0).fence, 0

    def take(self, scan: ScanMessage) -> str:
        """Judge one scan and write what is kept of it; gives its verdict."""
        ring = self._rings.setdefault(scan.grid, Ring(ConsumerSettings().scans_of(scan.case)))
        version = (1, self._offset)
        ring.push(scan, self._offset, version)
        heard = Heard(
            message=scan, plan=plan_of_message(scan), version=version, kind="feed", gap=ring.gap, filled=ring.filled,
            scans=ring.scans, restarted=False, ts_ms=time.time_ns() // 10**6 - 6, trace="",
        )  # fmt: skip
        if ring.filled == ring.scans:
            page = self.scribe.page(heard, self._scored(scan, ring, heard))
            self.store.apply([Write(
                topic=TOPIC, partition=0, fence=self._fence, incarnation=1, base=self._offset, after=self._offset + 1,
                ts_ms=heard.ts_ms, opens=True, grid=scan.grid, kind="feed", version=version, verdict=page.verdict,
                map=page.map, state=page.state, about=page.about, alarms=page.alarms,
            )])  # fmt: skip
        self._offset += 1
        return page.verdict["verdict"] if ring.filled == ring.scans else "cannot tell"

    def _scored(self, scan: ScanMessage, ring: Ring, heard: Heard) -> Scored:
        block, rows = ring.block, slice(ring.rows - ring.scans, ring.rows)
        ask = Ask(
            grid=scan.grid, case=scan.case, plan=heard.plan, scans=ring.scans, step_s=scan.step_s,
            end_ns=(scan.time_ns,), z=block.z[rows], age=block.age[rows], status=block.status[rows],
            tap=block.tap[rows], x_scale=block.x_scale[rows], shown=(True,), peak=self.scribe.peak(scan.grid),
        )  # fmt: skip
        return self.models.answer([ask])[0][0]

    def well(self) -> None:
        """Statuses as parts that are well leave them."""
        now = time.time_ns() // 10**6
        self.store.say("consumer", "consumer-0", {"lag_s": 0.2, "lag": 0, "paused": 0, "time_ms": now})
        self.store.say("verifier", "verifier-0", {"models": self.models.about(), "trouble": "", "time_ms": now})
        self.store.say("feed", "feed-0", {"state": "running", "source": "simulate", "trouble": "", "at_ms": now})


class Nobody:
    """A scorer for an edge that is asked for no scores."""

    async def score(self, windows: Sequence[tuple[Window, MeterPlan]]) -> list[Verdict]:
        raise NotImplementedError

    async def models(self) -> list[ModelRecord]:
        return []

    async def ready(self) -> str | None:
        return None


@contextmanager
def served(socket: Path) -> Iterator[str]:
    """The HTTP edge over a Redis at a Unix socket, in a thread; gives its address."""
    app = make_app(LiveSettings(), AsyncRedis(unix_socket_path=str(socket)), Nobody(), layout_of)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(0.2)
        server.force_exit = True
        thread.join()


def shoot(browser: Browser, address: str, file: Path, width: int, height: int, scheme: str) -> None:
    """One picture, after the page has drawn its map."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector("#connection[data-state=live]")
    page.wait_for_selector("#drawing .grid .bus, #drawing canvas")
    page.wait_for_selector(".u-over")
    page.get_by_text("all parts well").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=file)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    parser.add_argument("--case", default="gb29")
    parser.add_argument("--seed", type=int, default=25)
    parser.add_argument("--scans", type=int, default=200, help="length of the session")
    parser.add_argument("--until", type=int, default=168, help="scan at which the picture is taken")
    parser.add_argument("--budget", type=float, default=1.0, help="incidents a day that thresholds are set for")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    twin = Twin(given.case, incidents=2, disturbances=1, seed=given.seed, scans=given.scans)
    folder = Path(tempfile.mkdtemp(prefix="gg-"))
    try:
        with (
            RedisServer(folder, durable=False, unix_socket=True) as server,
            Redis(unix_socket_path=str(server.socket)) as redis,
        ):
            playback = Playback(Models.load([], given.budget), redis)
            for number, (scan, truth) in zip(range(given.until), twin, strict=False):
                said = playback.take(scan)
                if truth or said not in ("normal", "cannot tell"):
                    print(number, iso_ms(scan.time_ns), said, *(f"{one.primitive}: {one.places}" for one in truth))
            for alarm in redis.zrange(keys.ALARMS, 0, -1):
                print(redis.hget(keys.alarm(alarm.decode()), "json").decode())
            playback.well()
            assert server.socket is not None
            with served(server.socket) as address, sync_playwright() as play:
                browser = play.chromium.launch(executable_path=CHROMIUM, args=BROWSER_ARGS)
                shoot(browser, address, given.out / "page-1280.png", 1280, 860, "light")
                shoot(browser, address, given.out / "page-phone.png", 390, 844, "light")
                browser.close()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
