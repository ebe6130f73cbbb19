"""The operator's page in a real Chromium, on the real HTTP edge and a real Redis (docs/page.md)."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_server import Edge, Stage, until
from redis import Redis

from serve import keys
from serve.auth import add_key
from serve.layouts import layout_of
from serve.records import dump, iso_ms

sync_api = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Page, expect  # noqa: E402 - after it is known to be there

pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
ARGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-lcd-text")  # fmt: skip
GREY = 10
"""Largest difference between the channels of a grey; text is drawn without colour fringes (--disable-lcd-text)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def edge(socket_file: Path) -> Iterator[Edge]:
    server = Edge(socket_file)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis(socket_file: Path) -> Iterator[Redis]:
    with Redis(unix_socket_path=str(socket_file)) as client:
        client.flushall()
        yield client


@pytest.fixture
def stage(redis: Redis) -> Stage:
    """The national grid after thirty quiet scans."""
    stage = Stage(redis)
    stage.scans(30)
    stage.well()
    return stage


@dataclass
class Visit:
    """Pages that a test opens, and what went wrong in them."""

    browser: Browser
    origin: str
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    opened: list[Any] = field(default_factory=list)

    def open(self, width: int = 1280, height: int = 900, path: str = "", **context: Any) -> Page:
        """The page, connected and drawn."""
        page = self.blank(width, height, **context)
        page.goto(self.origin + path)
        expect(page.locator("#connection")).to_have_text("Connected")
        expect(page.locator("#facts")).to_contain_text("night/v3")
        return page

    def blank(self, width: int = 1280, height: int = 900, **context: Any) -> Page:
        self.opened.append(self.browser.new_context(viewport={"width": width, "height": height}, **context))
        page = self.opened[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda told: self.errors.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(self.origin) else self.foreign.append(asked.url))
        return page


@pytest.fixture
def visit(browser: Browser, edge: Edge) -> Iterator[Visit]:
    """Every test's pages end without an error in the console and without a request to another origin."""
    visit = Visit(browser, edge.address)
    yield visit
    for context in visit.opened:
        context.close()
    assert visit.errors == []
    assert visit.foreign == []


def colour(page: Page, selector: str | None = None) -> int:
    """Pixels of a picture that are no grey."""
    from PIL import Image

    shot = page.locator(selector).screenshot() if selector else page.screenshot()
    rgb = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=np.int16)
    return int((np.ptp(rgb, axis=2) > GREY).sum())


def row(page: Page, word: str) -> Any:
    return page.locator("#incidents li.incident", has_text=word)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_coloured_while_all_is_normal_and_a_verdict_is(stage: Stage, visit: Visit, scheme: str) -> None:
    page = visit.open(color_scheme=scheme)
    expect(page.locator("#facts")).to_contain_text("all parts well")
    expect(page.locator("#no-incidents")).to_be_visible()
    expect(page.locator(".plot")).to_have_count(4)
    assert colour(page) == 0
    stage.scan("implausible", [stage.alarm()], buses=["WIND"])
    expect(page.locator("#drawing .flag[data-verdict=implausible]")).to_have_count(1)
    assert colour(page, "#drawing") > 50
    assert colour(page, "#quality") == 0


def test_incidents_appear_are_acknowledged_and_survive_a_reload(stage: Stage, visit: Visit, redis: Redis) -> None:
    page = visit.open()
    trip = stage.alarm("disturbance", place="")
    stage.scan("disturbance", [trip])
    attack = stage.alarm()
    stage.scan("implausible", [trip, attack], buses=["WIND"])
    expect(page.locator("#open-incidents li")).to_have_count(2)
    expect(page.locator("#announce")).to_contain_text("Implausible at gb-balance, WIND")
    expect(row(page, "Disturbance")).to_contain_text("whole grid")
    expect(row(page, "Disturbance")).to_contain_text("first of 2")
    expect(row(page, "Implausible")).to_contain_text("stealthy false data")
    expect(row(page, "Implausible")).to_contain_text("p 0.0012")
    assert page.title().startswith("(2)")
    row(page, "Implausible").get_by_role("button", name="Acknowledge:").click()
    expect(row(page, "Implausible")).to_contain_text("acknowledged by local")
    assert json.loads(redis.hget(keys.alarm(attack["id"]), "ack"))["by"] == "local"
    expect(page.locator("#drawing .flag.acked")).to_have_count(1)
    other = visit.open()
    expect(row(other, "Implausible")).to_contain_text("acknowledged by local")
    row(other, "Disturbance").get_by_role("button", name="Acknowledge:").click()
    expect(row(page, "Disturbance")).to_contain_text("acknowledged by local")  # told by the stream
    page.reload()
    for word in ("Disturbance", "Implausible"):
        expect(row(page, word)).to_contain_text("acknowledged by local")
    row(page, "Implausible").get_by_role("button", name="Take back").click()
    expect(row(page, "Implausible")).to_contain_text("not acknowledged")
    closed = {**attack, "state": "closed"}
    stage.scan("normal", [closed])
    expect(page.locator("#closed summary")).to_have_text("1 closed")


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_server_that_was_away_is_found_again_and_nothing_is_missed(
    stage: Stage, visit: Visit, edge: Edge, redis: Redis, trimmed: bool
) -> None:
    page = visit.open()
    stage.scan("disturbance", [stage.alarm("disturbance", place="")])
    row(page, "Disturbance").get_by_role("button", name="Acknowledge:").click()
    expect(row(page, "Disturbance")).to_contain_text("acknowledged by local")
    before = len(edge.asked)
    edge.stop()
    expect(page.locator("#band")).to_contain_text("No connection to the server since")
    stage.scan("implausible", [stage.alarm()], buses=["WIND"])
    if trimmed:
        redis.xtrim(keys.EVENTS, maxlen=0)
        redis.xadd(
            keys.EVENTS,
            {"kind": "verdict", "grid": "gb-balance", "json": redis.hget(keys.verdict("gb-balance"), "json")},
        )
    edge.start()
    expect(row(page, "Implausible")).to_be_visible(timeout=20_000)
    expect(row(page, "Disturbance")).to_contain_text("acknowledged by local")
    expect(page.locator("#connection")).to_have_text("Connected")
    again = [(query, headers) for path, query, headers in edge.asked[before:] if path == "/v1/stream"]
    assert all("last-event-id" in headers or re.match(r"last=\d+-\d+", query) for query, headers in again)
    anew = any(path == "/v1/alarms" for path, *_ in edge.asked[before:])
    assert anew == trimmed
    visit.errors[:] = [text for text in visit.errors if "ERR_" not in text]  # the browser's own lines on the outage


def test_an_incident_is_shelved_with_a_reason_and_comes_back(stage: Stage, visit: Visit, redis: Redis) -> None:
    attack = stage.alarm()
    stage.scan("implausible", [attack], buses=["WIND"])
    page = visit.open()
    row(page, "Implausible").get_by_role("button", name="Shelve:").click()
    dialog = page.get_by_role("dialog", name="Shelve")
    dialog.get_by_label("Minutes").fill("30")
    dialog.get_by_label("Reason").fill("meter is being replaced")
    dialog.get_by_role("button", name="Shelve").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#no-incidents")).to_be_visible()
    expect(page.locator("#shelved summary")).to_have_text("1 shelved")
    kept = json.loads(redis.hget(keys.alarm(attack["id"]), "shelve"))
    assert kept["note"] == "meter is being replaced"
    expect(page.locator("#drawing .flag")).to_have_count(0)
    expect(page.locator("#shelved summary")).to_be_focused()
    page.locator("#shelved summary").click()
    expect(row(page, "Implausible")).to_contain_text("shelved by local until")
    row(page, "Implausible").get_by_role("button", name="Unshelve:").click()
    expect(page.locator("#open-incidents li")).to_have_count(1)
    shelf = {**kept, "until": iso_ms(time.time_ns() + 3 * 10**9)}
    redis.hset(keys.alarm(attack["id"]), "shelve", dump(shelf))
    redis.xadd(keys.EVENTS, {"kind": "operator", "grid": attack["grid"], "json": dump(shelf)})
    expect(page.locator("#open-incidents li")).to_have_count(0)
    expect(page.locator("#open-incidents li")).to_have_count(1)  # its time is over; nothing told the page so
    expect(page.locator("#drawing .flag")).to_have_count(1)


def test_an_incident_is_acknowledged_by_keys_alone(stage: Stage, visit: Visit) -> None:
    first, second = stage.alarm(), stage.alarm("disturbance", place="")
    stage.scan("implausible", [first, second], buses=["WIND"])
    page = visit.open()
    expect(page.locator("#open-incidents li")).to_have_count(2)
    for _ in range(30):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"the focus cannot be seen at {name}"
        if name.startswith("Acknowledge: implausible"):
            break
    page.keyboard.press("Enter")
    expect(row(page, "Implausible")).to_contain_text("acknowledged by local")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("k")
    expect(row(page, "Disturbance").locator(".pick")).to_be_focused()
    page.keyboard.press("s")
    expect(page.get_by_role("dialog", name="Shelve")).to_be_visible()
    page.keyboard.press("Escape")
    expect(row(page, "Disturbance").locator(".pick")).to_be_focused()
    page.keyboard.press("a")
    expect(row(page, "Disturbance")).to_contain_text("acknowledged by local")
    page.keyboard.press("?")
    page.get_by_label("Single keys work").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    expect(page.locator("#scrub")).not_to_be_focused()


def test_past_scans_are_looked_at_and_left(stage: Stage, visit: Visit) -> None:
    attack = stage.alarm()
    stage.scan("implausible", [attack], buses=["WIND"], values={"FREQ": 49.871})
    stage.scan("normal", [{**attack, "state": "closed"}])
    stage.scans(3)
    page = visit.open()
    page.keyboard.press("t")
    expect(page.locator("#scrub")).to_be_focused()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#band")).to_contain_text("Past scan")
    expect(page.locator("#facts")).to_contain_text("Implausible")
    expect(page.locator("#drawing .flag[data-verdict=implausible]")).to_have_count(1)
    expect(page.locator(".plot", has_text="Frequency")).to_contain_text("49.87")
    assert "Implausible" in (page.locator("#scrub").get_attribute("aria-valuetext") or "")
    stage.scan()
    expect(page.locator("#band")).to_contain_text("Past scan")  # new scans do not pull one away
    page.keyboard.press("l")
    expect(page.locator("#band")).not_to_contain_text("Past scan")
    page.locator("#flag-back").click()
    expect(page.locator("#facts")).to_contain_text("Implausible")


def test_the_evidence_of_an_incident_is_shown(stage: Stage, visit: Visit) -> None:
    stage.scan("implausible", [stage.alarm()], buses=["WIND"])
    page = visit.open()
    evidence = page.locator("#evidence")
    for text in ("Residuals of the estimate", "3.10", "Scans 9 to 16", "P injected · WIND", "−6.2", "871.4",
                 "8 700.5 MW", "4.00 over 1.40"):  # fmt: skip
        expect(evidence).to_contain_text(text)


def test_a_name_is_text_whatever_it_says(stage: Stage, visit: Visit) -> None:
    name = "<img src=x onerror=alert(1)>"
    stage.scan("implausible", [stage.alarm(place=name)], buses=[name], note=name,
               quality={"meters": 3, "heard": 0.5, "streams": {name: "missing"}, "gap_scans": 2})  # fmt: skip
    page = visit.open()
    expect(row(page, "Implausible")).to_contain_text(name)
    expect(page.locator("#streams")).to_contain_text(f"{name} missing")
    expect(page.locator("#quality-facts")).to_contain_text("2 scans never came")
    assert page.locator("img").count() == 0


def test_another_grid_is_chosen_and_its_incidents_are_there_before(stage: Stage, visit: Visit, redis: Redis) -> None:
    other = Stage(redis, "southern")
    other.scans(2)
    other.scan("implausible", [other.alarm(place="CCGT")], buses=["CCGT"])
    page = visit.open(path="#grid=gb-balance")
    expect(page.locator("#map-head")).to_have_text("Grid gb-balance")
    expect(page.get_by_role("button", name="southern: 1 open incident, implausible")).to_be_visible()
    row(page, "southern").locator(".pick").click()
    expect(page.locator("#map-head")).to_have_text("Grid southern")
    expect(page.locator("#drawing .flag")).to_have_count(1)
    page.keyboard.press("g")
    expect(page.locator("#map-head")).to_have_text("Grid gb-balance")


def test_places_of_a_network_are_read_by_keys(redis: Redis, visit: Visit) -> None:
    stage = Stage(redis, "gb29", "gb29")
    stage.scans(3)
    stage.well()
    page = visit.open()
    expect(page.locator("#drawing circle.bus")).to_have_count(27)
    page.keyboard.press("m")
    expect(page.locator("#readout")).to_contain_text("1.010 p.u.")
    said = page.locator("#readout").inner_text()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#readout")).not_to_have_text(said)
    assert re.search(
        r"Bus \S+ · 275 kV · \w+ · 1.010 p.u. · 5 % suspected · reported", page.locator("#readout").inner_text()
    )
    page.keyboard.press("+")
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    expect(page.locator("#readout")).to_contain_text("p.u.")


def test_a_phone_shows_everything_without_sideways_scrolling(stage: Stage, visit: Visit) -> None:
    stage.scan("implausible", [stage.alarm(place="WIND AND A VERY LONG NAME THAT NO SCREEN HOLDS")], buses=["WIND"])
    page = visit.open(390, 844, is_mobile=True, has_touch=True)
    expect(row(page, "Implausible")).to_be_visible()
    expect(page.locator(".plot canvas").first).to_be_visible()
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide == [390, 390]
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, input, summary')].filter((n) => n.offsetParent)
        .map((n) => [n.id || n.textContent, n.getBoundingClientRect()]).filter(([, r]) => r.height < 36 || r.width < 24)
        .map(([name]) => name)"""
    )
    assert small == []
    row(page, "Implausible").get_by_role("button", name="Acknowledge:").tap()
    expect(row(page, "Implausible")).to_contain_text("acknowledged by local")


def test_every_control_has_a_name(stage: Stage, visit: Visit) -> None:
    stage.scan("implausible", [stage.alarm()], buses=["WIND"])
    page = visit.open()
    expect(page.locator("#open-incidents li")).to_have_count(1)
    seen = page.locator("body").aria_snapshot()
    for opens in ("#help-open", "#open-incidents button[aria-haspopup]"):
        page.locator(opens).first.click()
        seen += "\n" + page.locator("dialog[open]").aria_snapshot()
        page.keyboard.press("Escape")
    controls = re.findall(r"- (button|link|slider|textbox|spinbutton|checkbox|img|group|table|dialog)\b([^\n]*)", seen)
    assert len(controls) > 20
    assert [kind for kind, rest in controls if not re.search(r'"[^"]+"', rest)] == []
    for place in ('navigation "Grids"', 'list "Open incidents"', 'region "Timelines"', 'slider "Scan shown"', "alert"):
        assert place in seen, place


def test_with_keys_one_signs_in_and_posts_carry_the_token(
    browser: Browser, stage: Stage, socket_file: Path, tmp_path: Path
) -> None:
    path, cheap = tmp_path / "keys.json", {"n": 2, "r": 1, "p": 1}
    operator = add_key(path, "ann", ["read", "operate"], cheap)
    reader = add_key(path, "bob", ["read"], cheap)
    stage.scan("implausible", [stage.alarm()], buses=["WIND"])
    edge = Edge(socket_file, keys_file=path)
    edge.start()
    try:
        visit = Visit(browser, edge.address)
        page = visit.blank()
        page.goto(visit.origin)
        dialog = page.get_by_role("dialog", name="Sign in")
        for key, then in (("gg_000000000000_" + "x" * 40, "not known"), (reader, "")):
            dialog.get_by_label("Key").fill(key)
            dialog.get_by_role("button", name="Sign in").click()
            if then:
                expect(page.locator("#login-error")).to_contain_text(then)
        expect(page.locator("#who")).to_have_text("bob (reads only)")
        expect(row(page, "Implausible")).to_be_visible()
        expect(row(page, "Implausible").get_by_role("button", name="Acknowledge:")).to_be_hidden()
        page.get_by_role("button", name="Sign out").click()
        dialog.get_by_label("Key").fill(operator)
        dialog.get_by_role("button", name="Sign in").click()
        row(page, "Implausible").get_by_role("button", name="Acknowledge:").click()
        expect(row(page, "Implausible")).to_contain_text("acknowledged by ann")
        [sent] = [headers for path_, _, headers in edge.asked if path_.endswith("/ack")]
        assert sent["x-csrf-token"]
        visit.opened[0].close()
        assert [text for text in visit.errors if "401" not in text] == []  # the browser's own line on the wrong key
    finally:
        edge.stop()


def many(_: str) -> dict[str, Any]:
    """A chain of 1,200 buses: more than SVG is for."""
    count = 1_200
    buses = [
        {"name": f"b{i}", "x": (i % 40) / 39, "y": (i // 40) / 29, "kv": 400.0, "kind": "load", "region": 0}
        for i in range(count)
    ]
    branches = [
        {"name": f"b{i}-b{i + 1}", "from": i, "to": i + 1, "transformer": False, "rate_mva": None}
        for i in range(count - 1)
    ]
    return {**layout_of("gb-balance"), "case": "unknown", "geographic": False, "buses": buses, "branches": branches}


def test_a_large_grid_is_drawn_on_a_canvas(browser: Browser, redis: Redis, socket_file: Path) -> None:
    stage = Stage(redis, "large", "unknown")
    stage.buses, stage.branches = 1_200, 1_199
    stage.scans(2)
    stage.scan("implausible", [stage.alarm(place="b617")], buses=["b617"])
    edge = Edge(socket_file, layout=many)
    edge.start()
    try:
        visit = Visit(browser, edge.address)
        page = visit.open()
        expect(page.locator("#drawing canvas.grid")).to_be_visible()
        expect(page.locator("#readout")).to_contain_text("1200 buses, 1199 branches")
        assert until(lambda: colour(page, "#drawing canvas"), "the flagged bus is not coloured") > 50
        page.keyboard.press("m")
        expect(page.locator("#readout")).to_contain_text("Bus b617 · 400 kV")
        visit.opened[0].close()
        assert visit.errors == []
    finally:
        edge.stop()


def test_a_scan_every_few_milliseconds_is_drawn_five_times_a_second_at_most(
    stage: Stage, visit: Visit, edge: Edge
) -> None:
    page = visit.open()
    page.evaluate("""() => {
        window.drawn = [];
        new MutationObserver(() => window.drawn.push(performance.now())).observe(
            document.querySelector('#facts'), {subtree: true, childList: true, characterData: true, attributes: true});
    }""")
    before = len(edge.asked)
    stage.scans(300)
    newest = stage.scan(model="night/v4")
    expect(page.locator("#facts")).to_contain_text("night/v4")
    assert newest["model"] == "night/v4"
    apart = np.diff(page.evaluate("window.drawn"))
    assert (apart > 150).all() if apart.size else True
    maps = [path for path, *_ in edge.asked[before:] if path.endswith("/map")]
    assert 1 <= len(maps) <= 5
