"""gg_ray.elexon.insights against a local server: what each stream is asked for, and what becomes of the answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from elexon_fakes import FakeClock
from elexon_rows import HOUR, MINUTE, T0, batch, body, demand, freq, fuel, fuels, half_hours, label, wobble, z
from elexon_server import HTML, ElexonServer, Reply, client, ok, problem, serving
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.elexon.errors import BadAnswer, ElexonError, UnknownStream
from gg_ray.elexon.failed import FailedFolder
from gg_ray.elexon.insights import InsightsSource, requests_of
from gg_ray.elexon.source import STREAMS, GridSource

Result = TypeVar("Result")
server = pytest.fixture(serving)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(T0 + 12 * HOUR)


@pytest.fixture
def source(server: ElexonServer, clock: FakeClock, tmp_path: Path) -> InsightsSource:
    http = client(server, clock)
    return InsightsSource(server.base_url, http=http, failed=tmp_path / "failed", now=clock.now)


def run(source: InsightsSource, work: Coroutine[Any, Any, Result]) -> Result:
    """One event loop per call; the connection belongs to it, so it is closed with it."""

    async def whole() -> Result:
        try:
            return await work
        finally:
            await source.aclose()

    return asyncio.run(whole())


def test_it_is_a_grid_source(source: InsightsSource) -> None:
    held: GridSource = source
    assert held.streams == tuple(STREAMS)


def test_instantaneous_fuels_are_asked_by_publication_and_cut_by_start(
    source: InsightsSource, server: ElexonServer
) -> None:
    server.rows["/datasets/FUELINST"] = fuels(T0 - HOUR, T0 + 3 * HOUR)
    fetched = run(source, source.fetch("FUELINST", T0, T0 + HOUR))
    assert [fetched.rows[0].at, fetched.rows[-1].at] == [T0, T0 + HOUR]
    assert len(fetched.rows) == 13 * 20
    assert fetched.origin == "live"
    [question] = server.questions
    assert question.params == {"publishDateTimeFrom": z(T0), "publishDateTimeTo": z(T0 + 5 * HOUR + 5 * MINUTE),
                               "format": "json"}  # fmt: skip
    assert question.headers["user-agent"].startswith("grid-guardian/")


def test_a_row_published_three_hours_late_is_found(source: InsightsSource, server: ElexonServer) -> None:
    late = z(T0 + 3 * HOUR + 12 * MINUTE)
    server.rows["/datasets/FUELINST"] = [
        row for m in range(0, 60, 5) for row in batch(T0 + m * MINUTE, publishTime=late)
    ]
    assert len(run(source, source.fetch("FUELINST", T0, T0 + HOUR)).rows) == 12 * 20


def test_half_hourly_fuels_are_asked_by_whole_london_days(source: InsightsSource, server: ElexonServer) -> None:
    starts = [*half_hours("2024-06-30"), *half_hours("2024-07-01")]
    server.rows["/datasets/FUELHH"] = [row for start in reversed(starts) for row in batch(start, minutes=30)]
    start = datetime(2024, 6, 30, 23, tzinfo=UTC)  # SP1 of 1 July, summer time
    fetched = run(source, source.fetch("FUELHH", start, start + HOUR))
    assert server.questions[0].params == {"settlementDateFrom": "2024-07-01", "settlementDateTo": "2024-07-01",
                                          "format": "json"}  # fmt: skip
    assert len(fetched.rows) == 3 * 20
    assert fetched.counts == {"outside": 45 * 20}


@pytest.mark.parametrize(("name", "path"), [("INDO", "/datasets/INDO"), ("ROLSYSDEM", "/generation/outturn")])
def test_single_demands(source: InsightsSource, server: ElexonServer, name: str, path: str) -> None:
    step = STREAMS[name].cadence
    starts = [T0 + n * step for n in range(8)]
    server.rows[path] = [{"startTime": z(at), "publishTime": z(at + step), **label(at), "demand": 5} for at in starts]
    fetched = run(source, source.fetch(name, starts[2], starts[5]))
    assert [row.at for row in fetched.rows] == starts[2:6]


def test_demand_frequency_daily_demand_and_warnings(source: InsightsSource, server: ElexonServer) -> None:
    server.rows["/demand/outturn"] = [demand(start) for start in half_hours("2026-05-06")]
    server.rows["/datasets/FREQ"] = freq(T0, wobble(241))
    server.rows["/datasets/INDOD"] = [
        {"publishTime": "2026-05-06T23:15:00Z", "settlementDate": "2026-05-06", "demand": 676_741}
    ]
    server.rows["/system/warnings"] = [{"publishTime": z(T0), "warningType": "SYSTEM WARNING", "warningText": "x"}]
    day = datetime(2026, 5, 5, 23, tzinfo=UTC)
    for name, rows in (("DEMAND", 48), ("FREQ", 241), ("INDOD", 1), ("WARNINGS", 1)):
        assert len(run(source, source.fetch(name, day, day + 24 * HOUR)).rows) == rows, name


@pytest.mark.parametrize("name", list(STREAMS))
def test_windows_cover_the_time_and_stay_within_what_may_be_asked(name: str) -> None:
    stream = STREAMS[name]
    start, end = T0 - timedelta(days=40, seconds=13), T0 + timedelta(seconds=0.25)
    requests = requests_of(stream, start, end)
    assert requests[0].asked.start - requests[0].asked.slack <= start
    assert requests[-1].asked.end + requests[-1].asked.slack >= end
    for this, following in pairwise(requests):
        assert following.asked.start <= this.asked.end + stream.cadence
    for request in requests:
        # the day on which the clock goes back has 25 hours
        assert request.asked.end - request.asked.start <= stream.longest + HOUR * (stream.asks == "settlement")


def test_windows_with_microseconds_keep_the_rows_on_their_edge(source: InsightsSource, server: ElexonServer) -> None:
    server.rows["/datasets/FREQ"] = freq(T0, wobble(9))
    fetched = run(source, source.fetch("FREQ", T0 + timedelta(seconds=0.5), T0 + timedelta(seconds=59.5)))
    assert len(fetched.rows) == 3


def test_neighbouring_windows_repeat_a_row_that_counts_once(source: InsightsSource, server: ElexonServer) -> None:
    server.rows["/datasets/FREQ"] = freq(T0, wobble(2 * 5760 + 1))
    fetched = run(source, source.fetch("FREQ", T0, T0 + 48 * HOUR))
    assert len(server.questions) == 2
    assert len(fetched.rows) == 2 * 5760 + 1
    assert fetched.counts["duplicates"] == 1


def test_one_source_lives_through_several_event_loops(source: InsightsSource, server: ElexonServer) -> None:
    server.rows["/datasets/FREQ"] = freq(T0, wobble(4))
    for _ in range(3):
        assert len(asyncio.run(source.fetch("FREQ", T0, T0 + HOUR)).rows) == 4
    run(source, source.health())


@given(
    name=st.sampled_from(["FUELHH", "FUELINST", "FREQ", "DEMAND", "INDO", "ROLSYSDEM"]),
    start=st.datetimes(datetime(2024, 3, 25), datetime(2024, 11, 5)),
    hours=st.floats(0, 24 * 20),
    late=st.floats(0, 3.2),
)
def test_every_row_of_a_window_lies_in_one_of_its_questions(
    name: str, start: datetime, hours: float, late: float
) -> None:
    """Around both clock changes, for rows published up to 3.2 h late."""
    stream = STREAMS[name]
    low = start.replace(tzinfo=UTC)
    high = low + timedelta(hours=hours)
    requests = requests_of(stream, low, high)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    first = epoch + -((epoch - low) // stream.cadence) * stream.cadence
    step = max(1, int((high - first) / stream.cadence) // 50) * stream.cadence
    at = first
    while at <= high:
        publication = at + stream.cadence + timedelta(hours=late)
        assert any(
            asked.start - asked.slack <= (publication if asked.by_publish else at) <= asked.end + asked.slack
            for asked in (request.asked for request in requests)
        ), at
        at += step


def test_latest_asks_the_overlap(source: InsightsSource, server: ElexonServer, clock: FakeClock) -> None:
    server.rows["/datasets/FREQ"] = freq(clock.now() - HOUR, wobble(241))
    fetched = run(source, source.latest("freq"))
    assert fetched.rows[0].at == clock.now() - 10 * MINUTE - timedelta(seconds=15)
    assert fetched.rows[-1].at == clock.now()


def test_an_empty_window_is_an_answer(source: InsightsSource) -> None:
    assert run(source, source.fetch("FREQ", T0, T0)).rows == []


@pytest.mark.parametrize(
    ("start", "end"), [(T0.replace(tzinfo=None), T0), (T0, T0.replace(tzinfo=None)), (T0, T0 - MINUTE)]
)
def test_windows_that_mean_nothing_are_refused(source: InsightsSource, start: datetime, end: datetime) -> None:
    with pytest.raises(ValueError, match="window"):
        run(source, source.fetch("FREQ", start, end))


def test_unknown_stream(source: InsightsSource) -> None:
    with pytest.raises(UnknownStream, match="did you mean FUELHH"):
        run(source, source.fetch("FUELHR", T0, T0))


def ask(source: InsightsSource) -> Any:
    return run(source, source.fetch("FREQ", T0, T0 + HOUR))


def test_an_ignored_parameter_is_noticed_and_the_answer_kept(
    source: InsightsSource, server: ElexonServer, tmp_path: Path
) -> None:
    server.script.append(ok(freq(T0 + 24 * HOUR, wobble(5761))))
    with pytest.raises(BadAnswer, match="does not know"):
        ask(source)
    [raw] = (tmp_path / "failed").glob("*.raw")
    assert raw.name.startswith("FREQ-20260506T120000Z-")
    assert len(json.loads(raw.read_bytes())["data"]) == 5761
    assert "asked for 2026-05-06T00:00:00Z" in raw.with_suffix(".txt").read_text()


@pytest.mark.parametrize("answer", [HTML, b'{"data": [{"measurementTime": "20', b'{"data": null}', b""])
def test_what_cannot_be_read_is_kept_with_the_reason(
    source: InsightsSource, server: ElexonServer, tmp_path: Path, answer: bytes
) -> None:
    server.script.append(Reply(body=answer))
    with pytest.raises(BadAnswer):
        ask(source)
    [raw] = (tmp_path / "failed").glob("*.raw")
    assert raw.read_bytes() == answer
    assert len(server.questions) == 1


def test_bad_rows_leave_the_good_ones_and_a_copy(source: InsightsSource, server: ElexonServer, tmp_path: Path) -> None:
    server.script.append(Reply(body=body(freq(T0, [50.0, 49.9])).replace(b"49.9", b"NaN")))
    fetched = ask(source)
    assert len(fetched.rows) == 1
    assert fetched.counts["rejected"] == 1
    assert len(list((tmp_path / "failed").glob("*.raw"))) == 1


def test_settlement_days_that_were_not_asked_for_are_noticed(source: InsightsSource, server: ElexonServer) -> None:
    server.script.append(ok([row for start in half_hours("2026-05-08") for row in batch(start, minutes=30)]))
    with pytest.raises(BadAnswer, match="FUELHH: asked for 2026-05-05T23:00:00Z to 2026-05-06T22:30:00Z"):
        run(source, source.fetch("FUELHH", T0, T0 + HOUR))


def test_many_questions_keep_to_the_rate(source: InsightsSource, server: ElexonServer, clock: FakeClock) -> None:
    start = clock.seconds
    run(source, source.fetch("FREQ", T0, T0 + timedelta(days=12)))
    assert len(server.questions) == 12
    assert clock.seconds - start >= (12 - 5) / 2


def test_health_says_what_the_service_holds(source: InsightsSource, server: ElexonServer) -> None:
    server.script.append(
        ok([{"settlementDate": "2026-05-06", "settlementPeriod": n, "dataPointCount": 120} for n in (7, 8)])
    )
    health = run(source, source.health())
    assert (health.usable, health.detail) == (True, "FREQ has 120 samples for 2026-05-06 SP8")
    for reply in (ok([]), Reply(body=HTML), ok([{"settlementDate": "2026-05-06"}]), problem(404), Reply(body=b"[]")):
        server.script.append(reply)
        health = run(source, source.health())
        assert not health.usable
        assert health.detail


def test_random_bytes_never_leave_as_anything_but_our_errors(source: InsightsSource, server: ElexonServer) -> None:
    rng = random.Random(3)
    good = body(freq(T0, wobble(20)))
    for _ in range(25):
        at = rng.randrange(len(good))
        server.script.append(Reply(body=good[:at] + rng.randbytes(3) + good[at + rng.randrange(4) :]))
        try:
            ask(source)
        except ElexonError:
            continue


def test_the_folder_of_failed_answers_is_bounded(tmp_path: Path) -> None:
    folder = FailedFolder(tmp_path, files=3, largest_bytes=1_000)
    for n in range(6):
        assert folder.keep("FREQ", bytes([n]) * 100, "why", T0 + n * MINUTE) is not None
    assert sorted(path.read_bytes()[0] for path in tmp_path.glob("*.raw")) == [3, 4, 5]
    assert len(list(tmp_path.glob("*.txt"))) == 3
    for n in range(3):
        folder.keep("FREQ", bytes([n]) * 10_000, "why", T0 + HOUR + n * MINUTE)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.raw")) <= 1_000


def test_a_disk_that_refuses_does_not_hide_the_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert FailedFolder(tmp_path / "file").keep("FREQ", b"x", "why", T0) is None
    assert "could not be kept" in caplog.text


def test_an_unknown_code_comes_through_the_whole_client(source: InsightsSource, server: ElexonServer) -> None:
    server.rows["/datasets/FUELINST"] = [*fuels(T0, T0 + HOUR), fuel(T0, "INTELE", 5)]
    fetched = run(source, source.fetch("FUELINST", T0, T0 + HOUR))
    assert fetched.counts == {"unknown_fuel": 1}
