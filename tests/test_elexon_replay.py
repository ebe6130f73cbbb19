"""Replay and feed: the same rows twice, at the speed that was asked for, and only news when polling."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from elexon_fakes import FakeClock, FakeSource, run
from elexon_rows import DATA, with_data

from gg_ray.config import ConfigError
from gg_ray.elexon import feeding
from gg_ray.elexon.cache import CachedSource
from gg_ray.elexon.errors import NotCarried, Unavailable
from gg_ray.elexon.fetch import fetch_history
from gg_ray.elexon.replay import ReplaySource
from gg_ray.elexon.rows import DemandRow, FuelRow
from gg_ray.elexon.source import Fetched, GridSource, stream_of
from gg_ray.elexon.sources import make_source
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.tables import HistoryError

JUNE = DATA / "elexon_fuelinst_5min" / "fuelinst_2024-06.parquet"
START = datetime(2024, 6, 3, tzinfo=UTC)
DAY, SLOT = timedelta(days=1), timedelta(minutes=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DayStore:
    """Two days of four streams."""
    clock = FakeClock(START + 3 * DAY)
    held = DayStore(tmp_path_factory.mktemp("store"))
    for stream in ("FUELINST", "FUELHH", "DEMAND", "FREQ"):
        run(fetch_history(FakeSource(clock), stream, START, START + 2 * DAY - SLOT, held, now=clock.now))
    return held


def as_bytes(found: Fetched) -> bytes:
    return b"\n".join(row.model_dump_json(by_alias=True).encode() for row in found.rows)


def said(source: ReplaySource, **asked: Any) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    run(feeding.replay(source, asked.pop("streams", ("FUELINST",)), asked.pop("step_s", 300), out.append, **asked))
    return out


def test_the_same_span_gives_the_same_rows_byte_for_byte(store: DayStore) -> None:
    for stream in ("FUELINST", "DEMAND", "FREQ"):
        first, again = (run(ReplaySource(store).fetch(stream, START, START + DAY)) for _ in range(2))
        assert as_bytes(first) == as_bytes(again)
        assert first.origin == "replay"
        assert len(first.rows) > 48


@with_data
def test_real_month_replays_the_same_twice_and_as_the_service_would_send_it() -> None:
    window = datetime(2024, 6, 4, 12, tzinfo=UTC), datetime(2024, 6, 4, 13, tzinfo=UTC)
    first, again = (run(ReplaySource([JUNE]).fetch("FUELINST", *window)) for _ in range(2))
    assert as_bytes(first) == as_bytes(again)
    row = first.rows[0]
    assert FuelRow.model_validate_json(row.model_dump_json(by_alias=True)) == row
    assert isinstance(row, FuelRow)
    assert (row.start, row.published) == (window[0], window[0] + SLOT)
    assert (str(row.settlement_date), row.settlement_period) == ("2024-06-04", 27)  # 12:00Z is 13:00 in London
    assert len(first.rows) == 13 * 19


@with_data
def test_real_half_hours_and_frequency_become_their_streams() -> None:
    source = ReplaySource(
        [DATA / "elexon_fuelhh_indo" / "fuelhh_2019.csv", *(DATA / "neso_frequency").glob("*event-window.csv")]
    )
    assert set(source.streams) == {"FUELHH", "DEMAND", "FREQ"}
    at = datetime(2019, 8, 9, 15, 30, tzinfo=UTC)
    (demand,) = run(source.fetch("DEMAND", at, at)).rows
    assert isinstance(demand, DemandRow)
    assert demand.indo_mw == 28_100  # SP34 of 9 August
    messages = said(source, streams=("FUELHH", "DEMAND", "FREQ"), step_s=1800, start=at, end=at + timedelta(hours=1))
    assert [m["values"]["WIND"] for m in messages] == [8_889, 8_091]
    assert run(source.fetch("FREQ", at, at + timedelta(hours=1))).rows[1].time - at == timedelta(  # type: ignore[attr-defined]
        minutes=21, seconds=15
    )


def test_shift_moves_times_and_labels_and_stays_a_replay(store: DayStore) -> None:
    source = ReplaySource(store, shift=7 * DAY)
    assert source.span() == (START + 7 * DAY, START + 9 * DAY)
    found = run(source.fetch("FUELINST", START + 7 * DAY, START + 7 * DAY))
    (row, _) = found.rows
    assert isinstance(row, FuelRow)
    assert (row.start, row.published) == (START + 7 * DAY, START + 7 * DAY + SLOT + timedelta(seconds=20))
    assert found.origin == "replay"
    assert found.stale_s >= 7 * 86_400
    assert run(source.fetch("FUELINST", START, START)).rows == []


def test_speed_waits_on_the_clock_and_inf_does_not(store: DayStore) -> None:
    clock = FakeClock(datetime(2030, 1, 1, tzinfo=UTC))
    slow = ReplaySource(store, speed=60, start=START, clock=clock, sleep=clock.sleep)
    assert len(said(slow, start=START, end=START + timedelta(minutes=30))) == 6
    assert sum(clock.slept) == pytest.approx(30)
    assert slow.now() == START + timedelta(minutes=30)
    found = run(slow.latest("FUELINST"))
    assert max(row.start for row in found.rows if isinstance(row, FuelRow)) == START + timedelta(minutes=25)
    clock.slept.clear()
    assert len(said(ReplaySource(store, clock=clock, sleep=clock.sleep))) == 576
    assert clock.slept == []
    with pytest.raises(ValueError, match="more than 0"):
        ReplaySource(store, speed=0)


def test_what_is_not_recorded_is_refused_by_name(store: DayStore, tmp_path: Path) -> None:
    with pytest.raises(NotCarried, match="INDOD is not recorded there; recorded are FUELHH, FUELINST"):
        run(ReplaySource(store).fetch("INDOD", START, START))
    with pytest.raises(NotCarried, match=r"nothing is recorded in .*; gg-ray data fetch"):
        ReplaySource(DayStore(tmp_path))
    path = tmp_path / "embedded.csv"
    path.write_text(
        "settlement_date,settlement_period,period_start_utc,embedded_wind_mw\n2019-01-01,1,2019-01-01T00:00Z,1\n"
    )
    with pytest.raises(HistoryError, match="embedded is no stream"):
        ReplaySource([path])


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_message_holds_what_was_published_and_names_what_was_due(store: DayStore) -> None:
    messages = said(ReplaySource(store), streams=("FUELINST", "DEMAND", "FREQ"), end=START + timedelta(hours=1))
    assert len(messages) == 12
    assert list(messages[0]) == ["schema", "grid", "t0", "step_s", "origin", "values", "missing", "late"]
    assert messages[0] | {"values": 0, "missing": 0, "late": 0} == {
        "schema": 1, "grid": "gb-balance", "t0": "2024-06-03T00:00:00Z", "step_s": 300, "origin": "replay",
        "values": 0, "missing": 0, "late": 0,
    }  # fmt: skip
    assert messages[0]["values"].keys() == {"CCGT", "WIND", "FREQ"}
    assert messages[5]["values"].keys() == {"CCGT", "WIND", "FREQ", "INDO", "ITSDO"}  # the half-hour ends
    assert "INDO" not in messages[4]["missing"]  # nothing was due
    assert "NUCLEAR" in messages[4]["missing"]
    assert feeding.as_line(messages[0]) == feeding.as_line(
        said(ReplaySource(store), streams=("FUELINST", "DEMAND", "FREQ"), once=True)[0]
    )


@with_data
def test_real_burst_says_how_late_it_was() -> None:
    source = ReplaySource([DATA / "elexon_fuelinst_5min" / "fuelinst_2022-03.parquet"])
    start = datetime(2022, 3, 17, 10, 30, tzinfo=UTC)
    before, dead = said(source, start=start, end=start + 2 * SLOT)
    assert before["late"] == {}
    assert dead["values"]["CCGT"] == 0  # the detector must see it
    assert dead["late"]["CCGT"] == 11_220
    (missing,) = said(
        source, start=datetime(2022, 3, 18, 16, 25, tzinfo=UTC), end=datetime(2022, 3, 18, 16, 30, tzinfo=UTC)
    )
    assert (missing["values"], missing["late"]["CCGT"]) == ({}, 300)


def test_streams_without_a_channel_are_refused() -> None:
    with pytest.raises(ValueError, match="INDOD has no channel"):
        feeding.fed(("INDOD",))


# --- polling ---------------------------------------------------------------------------------------------------------


def polled(
    source: GridSource, clock: FakeClock, minutes: float, feed: feeding.Feed
) -> tuple[list[dict[str, Any]], list[str]]:
    out: list[dict[str, Any]] = []
    failed: list[str] = []
    run(
        feeding.poll(
            source, feed, out.append, now=clock.now, sleep=clock.sleep, rng=random.Random(0),
            failed=lambda stream, _error: failed.append(stream), until=clock.t + timedelta(minutes=minutes),
        )
    )  # fmt: skip
    return out, failed


def test_only_news_is_said_and_a_scan_again_when_it_changed() -> None:
    clock = FakeClock(START + timedelta(hours=12))
    feed = feeding.Feed(("FUELINST", "DEMAND"), 300)
    out, failed = polled(FakeSource(clock), clock, 120, feed)
    assert failed == []
    lines = [feeding.as_line(message) for message in out]
    assert len(set(lines)) == len(lines)
    times = [message["t0"] for message in out]
    assert times[0] == "2024-06-03T11:25:00Z"  # from the first scan of the first answer's fuels on
    assert len(set(times)) == 31
    # demand came 15 min after its half-hour, so those scans changed once; no other did
    assert {t[11:16] for t in times if times.count(t) > 1} == {"11:55", "12:25", "12:55", "13:25"}
    assert max(times.count(t) for t in times) == 2


def test_an_outage_is_said_scan_by_scan_and_mends_itself() -> None:
    clock = FakeClock(START + timedelta(hours=12))
    source = FakeSource(clock)
    source.never = {("FUELINST", START + timedelta(hours=12, minutes=5 * i)) for i in range(4)}
    out, _ = polled(source, clock, 60, feeding.Feed(("FUELINST",), 300))
    silent = [message for message in out if not message["values"]]
    assert [message["t0"][11:16] for message in silent] == ["12:00", "12:05", "12:10", "12:15"]
    assert silent[-1]["late"]["CCGT"] == 4 * 300
    source.fails = lambda _stream, _start: Unavailable("down")
    _, failed = polled(source, clock, 11, feeding.Feed(("FUELINST",), 300))
    assert failed == ["FUELINST"] * 4  # it goes on asking


def test_polls_follow_their_marks_with_jitter() -> None:
    rng = random.Random(0)
    now = START + timedelta(minutes=2)
    waits = [(feeding.next_poll(stream_of("FUELINST"), now, rng) - START).total_seconds() for _ in range(50)]
    assert all(330 <= wait <= 340 for wait in waits)  # 30 to 40 s after the mark
    assert len(set(waits)) == 50
    freq = feeding.next_poll(stream_of("FREQ"), now, rng)
    assert timedelta(0) < freq - now <= timedelta(seconds=160)


def test_half_a_day_of_polling_holds_no_more_than_its_horizon() -> None:
    clock = FakeClock(START)
    feed = feeding.Feed(("FUELINST",), 300)
    polled(FakeSource(clock), clock, 12 * 60, feed)
    assert len(feed._held["FUELINST"]) <= 2 * (feeding.HORIZON // SLOT + 1)
    assert len(feed._said) <= feeding.HORIZON // SLOT + 1


def test_the_least_live_origin_is_said() -> None:
    clock = FakeClock(START + timedelta(hours=1))
    feed = feeding.Feed(("FUELINST", "DEMAND"), 300)
    for stream, origin in (("FUELINST", "live"), ("DEMAND", "cache")):
        found = run(FakeSource(clock).latest(stream))
        found.origin = origin  # type: ignore[assignment]
        feed.take(found)
    assert {message["origin"] for message in feed.news(clock.t)} == {"cache"}


# --- sources by name -------------------------------------------------------------------------------------------------


def test_names_and_their_misspellings(store: DayStore) -> None:
    assert make_source("replay", store=store).name == "replay"
    with pytest.raises(ConfigError, match="unknown source 'insight'; did you mean insights"):
        make_source("insight")
    with pytest.raises(ConfigError, match="name files or a store"):
        make_source("replay")


def test_auto_remembers_in_a_week_of_its_own(store: DayStore, tmp_path: Path) -> None:
    week = DayStore(tmp_path / "week")
    auto = make_source("auto", store=store, week=week)
    assert isinstance(auto, CachedSource)
    assert (auto.name, auto.store) == ("insights", week)
