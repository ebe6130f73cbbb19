"""Fetching histories: oldest first, resumed, polite, and an honest count of what is missing."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from elexon_fakes import FakeClock, FakeSource, run

from gg_ray.elexon.errors import Unavailable, UnknownStream
from gg_ray.elexon.fetch import Progress, fetch_history, is_done, sync
from gg_ray.elexon.rows import FuelRow
from gg_ray.elexon.source import STREAMS, stream_of
from gg_ray.elexon.store import DayStore

FIRST = datetime(2024, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LAST = FIRST + 10 * DAY - timedelta(microseconds=1)


def made(tmp_path: Path, now: datetime = FIRST + 30 * DAY) -> tuple[FakeClock, FakeSource, DayStore]:
    clock = FakeClock(now)
    return clock, FakeSource(clock), DayStore(tmp_path)


def test_windows_go_oldest_first_and_never_wider_than_the_stream_allows(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path)
    shown: list[Progress] = []
    found = run(fetch_history(source, "FUELHH", FIRST, LAST, store, shown.append, now=clock.now))
    assert [(start, end) for _, start, end in source.asked] == [
        (FIRST, FIRST + 7 * DAY - timedelta(microseconds=1)), (FIRST + 7 * DAY, LAST),
    ]  # fmt: skip
    assert (found.requests, found.asked, found.skipped, found.news) == (2, 10, 0, 10 * 48 * 2)
    assert found.missing == {}
    assert [(p.done, p.total, p.news) for p in shown] == [(1, 2, 672), (2, 2, 288)]
    assert str(found) == (
        "FUELHH: 960 rows new or changed; 2 windows for 10 days, 0 days already whole; no gap in 480 periods"
    )


def test_whole_days_are_skipped_and_incomplete_recent_ones_asked_again(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path, FIRST + 10 * DAY + timedelta(hours=12))
    source.never = {("FUELINST", FIRST + 9 * DAY + timedelta(hours=3)), ("FUELINST", FIRST + timedelta(hours=3))}
    run(fetch_history(source, "FUELINST", FIRST, clock.t, store, now=clock.now))
    source.asked.clear()
    again = run(fetch_history(source, "FUELINST", FIRST, clock.t, store, now=clock.now))
    # the old incomplete day has settled; yesterday's may still come, today's goes on
    assert [start for _, start, _ in source.asked] == [FIRST + 9 * DAY, FIRST + 10 * DAY]
    assert again.news == 0
    assert again.missing == {FIRST.date(): 1, (FIRST + 9 * DAY).date(): 1}
    source.never.clear()
    clock.t += timedelta(hours=3)
    more = run(fetch_history(source, "FUELINST", FIRST, clock.t, store, now=clock.now))
    assert more.news == 2 + 36 * 2
    assert more.missing == {FIRST.date(): 1}
    assert "1 of 3,059 periods missing: 2024-05-01 (1)" in str(more)


def test_an_error_ends_the_call_and_the_next_goes_on_from_there(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path)
    source.fails = lambda _stream, start: Unavailable("503 after five tries") if start == FIRST + 4 * DAY else None
    found = run(fetch_history(source, "FUELINST", FIRST, LAST, store, now=clock.now))
    assert found.error == "2024-05-05 to 2024-05-05: 503 after five tries"
    assert store.days("FUELINST") == [(FIRST + i * DAY).date() for i in range(4)]
    assert sum(found.missing.values()) == 6 * 288
    source.fails = lambda _stream, _start: None
    source.asked.clear()
    found = run(fetch_history(source, "FUELINST", FIRST, LAST, store, now=clock.now))
    assert len(source.asked) == 6
    assert (found.error, found.missing, found.skipped) == (None, {}, 4)


def test_a_partial_batch_keeps_its_day_open(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path, FIRST + DAY + timedelta(hours=2))
    run(fetch_history(source, "FUELINST", FIRST, FIRST, store, now=clock.now))
    assert is_done(store, stream_of("FUELINST"), FIRST.date(), clock.t)
    rows = store.read("FUELINST", FIRST, FIRST + DAY)
    store.write("FUELINST", FIRST.date(), rows[1:], clock.t)  # one code of one batch is gone
    assert not is_done(store, stream_of("FUELINST"), FIRST.date(), clock.t)


def test_days_without_rows_are_remembered(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path)
    run(fetch_history(source, "WARNINGS", FIRST, LAST, store, now=clock.now))
    assert len(source.asked) == 2
    assert len(store.days("WARNINGS")) == 10
    assert len(store.read("WARNINGS", FIRST, LAST)) == 1
    run(fetch_history(source, "WARNINGS", FIRST, LAST, store, now=clock.now))
    assert len(source.asked) == 2


def test_the_row_on_the_boundary_starts_no_new_day(tmp_path: Path) -> None:
    clock, _, store = made(tmp_path)

    class Wide(FakeSource):
        async def fetch(self, stream, start, end):  # type: ignore[no-untyped-def]
            found = await super().fetch(stream, start, end)
            found.rows = [*found.rows, FuelRow(start=FIRST + DAY, fuel="CCGT", generation_mw=1)]
            return found

    run(fetch_history(Wide(clock), "FUELINST", FIRST, FIRST, store, now=clock.now))
    assert store.days("FUELINST") == [FIRST.date()]


def test_the_future_is_not_asked_for(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path, FIRST + timedelta(hours=6))
    found = run(fetch_history(source, "DEMAND", FIRST, FIRST + 5 * DAY, store, now=clock.now))
    assert source.asked == [("DEMAND", FIRST, clock.t)]
    assert (found.due, found.missing) == (11, {})
    with pytest.raises(ValueError, match="ends"):
        run(fetch_history(source, "DEMAND", LAST, FIRST, store, now=clock.now))
    with pytest.raises(UnknownStream, match="FUELINST"):
        run(fetch_history(source, "FUELINS", FIRST, LAST, store, now=clock.now))


def test_a_fortnight_of_daily_syncs_is_polite_and_whole(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path, datetime(2024, 5, 1, 4, 17, tzinfo=UTC))
    source.per_minute, source.codes = 30, ("CCGT",)
    streams = ("FUELHH", "DEMAND", "INDOD", "FUELINST")
    counts = []
    for _ in range(15):
        before = len(source.asked)
        found = run(sync(source, streams, store, clock.t, days_back=7))
        assert [summary.error for summary in found] == [None] * 4  # no 429
        counts.append(len(source.asked) - before)
        clock.t += DAY
    # the first day brings the week before: FUELINST a day at a time, the others in one or two windows;
    # after it each run asks yesterday, which was not over, and today
    assert counts[0] == 8 + 2 + 1 + 1
    assert set(counts[1:]) == {2 + 1 + 1 + 1}
    assert len(source.asked) == 12 + 14 * 5
    start = datetime(2024, 4, 24, tzinfo=UTC)
    whole = [store.info("FUELINST", (start + i * DAY).date()) for i in range(21)]
    assert [info.slots for info in whole if info] == [288] * 21


def test_a_stream_that_fails_stops_no_other(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path)
    source.fails = lambda stream, _start: Unavailable("down") if stream == "FREQ" else None
    found = run(sync(source, ("FREQ", "DEMAND"), store, clock.t, days_back=2))
    assert [summary.error is None for summary in found] == [False, True]
    assert "stopped: 2024-05-29 to 2024-05-29: down" in str(found[0])
    with pytest.raises(ValueError, match="at least 1"):
        run(sync(source, ("FREQ",), store, clock.t, days_back=0))


def test_a_damaged_day_is_asked_for_again(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path)
    run(fetch_history(source, "DEMAND", FIRST, LAST, store, now=clock.now))
    store.path("DEMAND", date(2024, 5, 3)).write_bytes(b"PAR1 torn")
    source.asked.clear()
    found = run(fetch_history(source, "DEMAND", FIRST, LAST, store, now=clock.now))
    assert source.asked == [("DEMAND", FIRST + 2 * DAY, FIRST + 3 * DAY - timedelta(microseconds=1))]
    assert (found.news, found.missing) == (48, {})


def test_every_stream_can_be_fetched_and_comes_back(tmp_path: Path) -> None:
    clock, source, store = made(tmp_path)
    for stream in STREAMS:
        found = run(fetch_history(source, stream, FIRST, FIRST + DAY, store, now=clock.now))
        assert found.error is None
        assert found.news == len(store.read(stream, FIRST, FIRST + 2 * DAY))
