"""gg_ray.elexon.portal: the unmodified package carries today's rows, and says so where it cannot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from elexon_fakes import FakeClock
from elexon_rows import HOUR, MINUTE, T0, batch, body, demand, freq, fuel, half_hours, label, wobble, z
from elexon_server import ElexonServer, client, problem, serving, timeless

from gg_ray.elexon.errors import BadAnswer, BadRequest, ElexonError, NotCarried, RateLimited
from gg_ray.elexon.http import HttpClient
from gg_ray.elexon.insights import InsightsSource
from gg_ray.elexon.legacy_xml import LEGACY, envelope, items_of
from gg_ray.elexon.parse import parse
from gg_ray.elexon.portal import ElexonDataPortalSource, carried, half_hour_table, read_legacy_xml
from gg_ray.elexon.rows import FuelRow
from gg_ray.elexon.source import STREAMS, Fetched

pytest.importorskip("ElexonDataPortal", reason="no ElexonDataPortal")

server = pytest.fixture(serving)
ALWAYS = (T0 - timedelta(days=4000), T0 + timedelta(days=4000))
pytestmark = pytest.mark.filterwarnings("ignore:Data request was")


def rows_of(name: str, rows: list[dict[str, Any]]) -> Fetched:
    return parse(STREAMS[name], body(rows), *ALWAYS)


def sample(name: str) -> list[dict[str, Any]]:
    days = [*half_hours("2024-10-26"), *half_hours("2024-10-27"), *half_hours("2024-10-28")]
    if name == "FUELHH":
        return [row for start in days for row in batch(start, minutes=30)]
    if name == "DEMAND":
        return [demand(start, 20_000 + n, 21_000 + n) for n, start in enumerate(days)]
    if name == "FREQ":
        return freq(days[0], wobble(240))
    if name == "INDOD":
        return [{"settlementDate": "2024-10-27", "publishTime": "2024-10-27T23:15:00Z", "demand": 676_741}]
    starts = [days[0] + 5 * n * MINUTE for n in range(30)]
    return [{"startTime": z(start), "publishTime": z(start + 5 * MINUTE), "demand": 20_000 + n}
            for n, start in enumerate(starts)]  # fmt: skip


def fetch(server: ElexonServer, name: str, start: datetime, end: datetime) -> Fetched:
    clock = FakeClock(end)

    async def work() -> Fetched:
        insights = InsightsSource(server.base_url, http=client(server, clock), now=clock.now)
        source = ElexonDataPortalSource(insights, now=clock.now)
        try:
            return await source.fetch(name, start, end)
        finally:
            await source.aclose()

    return asyncio.run(work())


@pytest.mark.parametrize("name", list(LEGACY))
def test_the_package_carries_the_same_rows_as_the_client(server: ElexonServer, name: str) -> None:
    server.rows[STREAMS[name].path] = sample(name)
    start, end = half_hours("2024-10-26")[0], half_hours("2024-10-28")[-1]
    fetched = fetch(server, name, start, end)
    plain = [row.model_copy(update={"published": None}) for row in rows_of(name, sample(name)).rows]
    assert list(fetched.rows) == (plain if name != "FREQ" else rows_of(name, sample(name)).rows)
    assert fetched.rejects == []


def test_a_clock_day_has_fifty_periods_and_null_and_negative_values_stay(server: ElexonServer) -> None:
    starts = half_hours("2024-10-27")
    rows = [row for start in starts for row in batch(start, -500, minutes=30)]
    rows[7]["generation"] = None
    rows = [row for row in rows if (row["startTime"], row["fuelType"]) != (z(starts[3]), "OIL")]
    server.rows["/datasets/FUELHH"] = [
        *rows,
        fuel(starts[0], "INTELE", 7, minutes=30),
        fuel(starts[0], "a b<", 7, minutes=30),
    ]
    fetched = fetch(server, "FUELHH", starts[0], starts[-1])
    kept = cast(Sequence[FuelRow], fetched.rows)
    assert len({row.settlement_period for row in kept}) == 50
    assert len(kept) == 50 * 20 - 1 + 1
    assert fetched.counts["null_generation"] == 1
    assert kept[0].generation_mw == -500
    assert "INTELE" in {row.fuel for row in kept}


def test_one_item_takes_another_path_through_the_package(server: ElexonServer) -> None:
    server.rows["/datasets/FUELHH"] = batch(half_hours("2024-07-01")[0], minutes=30)
    day = half_hours("2024-07-01")
    assert len(fetch(server, "FUELHH", day[0], day[-1]).rows) == 20
    server.rows["/datasets/FREQ"] = freq(T0, [50.001])
    assert len(fetch(server, "FREQ", T0, T0 + HOUR).rows) == 1


@pytest.mark.parametrize("name", list(LEGACY))
def test_an_empty_window_is_an_answer(server: ElexonServer, name: str) -> None:
    assert fetch(server, name, T0, T0 + HOUR).rows == []


def test_errors_keep_their_type_and_are_not_tried_three_times(server: ElexonServer) -> None:
    server.script.append(problem(400))
    with pytest.raises(BadRequest, match="must not exceed 1 day"):
        fetch(server, "FREQ", T0, T0 + HOUR)
    assert len(server.questions) == 1
    server.always = problem(429)
    with pytest.raises(RateLimited, match="after 5 tries"):
        fetch(server, "FREQ", T0, T0 + HOUR)
    assert len(server.questions) == 1 + 5


def test_other_streams_name_the_way(server: ElexonServer) -> None:
    with pytest.raises(NotCarried, match=r"FUELINST: .* path /datasets/FUELINST"):
        fetch(server, "FUELINST", T0, T0 + HOUR)
    with pytest.raises(NotCarried, match=r"INDO: .* path /datasets/INDO"):
        fetch(server, "INDO", T0, T0 + HOUR)


def test_latest_and_health(server: ElexonServer) -> None:
    clock = FakeClock(T0 + HOUR)
    server.rows["/datasets/FREQ"] = freq(T0, wobble(241))

    async def work() -> None:
        http = HttpClient(server.base_url, buckets=timeless(clock))
        source = ElexonDataPortalSource(InsightsSource(server.base_url, http=http, now=clock.now), now=clock.now)
        latest = await source.latest("FREQ")
        assert len(latest.rows) == 42
        assert latest.rows[-1].at == clock.now()
        health = await source.health()
        assert not health.usable
        assert "carried by insights" in health.detail
        await source.aclose()

    asyncio.run(work())


def test_without_a_base_it_says_that_the_api_is_closed() -> None:
    async def work() -> None:
        source = ElexonDataPortalSource()
        health = await source.health()
        assert not health.usable
        assert health.detail.startswith("decommissioned 2024-05-31")
        with pytest.raises(NotCarried, match=r"decommissioned 2024-05-31.*insights"):
            await source.fetch("FREQ", T0, T0 + HOUR)
        await source.aclose()

    asyncio.run(work())


def given(name: str, rows: list[dict[str, Any]]) -> Any:
    def fetch(stream: str, start: datetime, end: datetime) -> Fetched:
        assert stream == name
        return parse(STREAMS[name], body(rows), start, end)

    return fetch


def test_the_package_by_hand_inside_the_shim_and_both_names_restored() -> None:
    from ElexonDataPortal.api import Client
    from ElexonDataPortal.dev import raw, utils

    before = raw.requests, utils.dt_rng_to_SPs
    with carried(given("FUELHH", sample("FUELHH"))):
        frame = Client("any key").get_FUELHH("2024-10-27", "2024-10-27")
        assert (raw.requests, utils.dt_rng_to_SPs) != before
    assert (raw.requests, utils.dt_rng_to_SPs) == before
    assert len(frame) == 50
    assert list(frame.columns[:4]) == ["local_datetime", "recordType", "startTimeOfHalfHrPeriod", "settlementPeriod"]
    assert frame["local_datetime"].is_monotonic_increasing
    assert frame["local_datetime"].is_unique
    with pytest.raises(RuntimeError), carried(given("FUELHH", [])):
        raise RuntimeError
    assert (raw.requests, utils.dt_rng_to_SPs) == before


def test_rolling_demand_may_be_asked_without_a_time_of_day() -> None:
    from ElexonDataPortal.api import Client

    rows = [{"startTime": z(T0 + n * 12 * HOUR), **label(T0), "demand": n} for n in range(4)]
    with carried(given("ROLSYSDEM", rows)):
        frame = Client("any key").get_ROLSYSDEM("2026-05-06", "2026-05-06")
    assert list(frame["demand"]) == ["0", "1"]


def test_errors_reach_a_user_of_the_package_as_its_own() -> None:
    from ElexonDataPortal.api import Client
    from ElexonDataPortal.dev.utils import RequestError

    def fetch(stream: str, start: datetime, end: datetime) -> Fetched:
        raise BadAnswer("HTML & <b>more</b>")

    with carried(fetch) as carrier:
        with pytest.raises(RequestError) as caught:
            Client("any key").get_FREQ("2026-05-06 00:00:00", "2026-05-06 01:00:00")
        assert "500 - BadAnswer\nHTML & <b>more</b>" in str(caught.value)
        assert isinstance(carrier.failure, BadAnswer)
        with pytest.raises(RequestError, match="400 - BadRequest"):
            Client("any key").get_FREQ("yesterday", "today")
    with carried(fetch), pytest.raises(NotCarried, match=r"B1610: .*/datasets/B1610"):
        Client("any key").get_B1610("2026-05-06", "2026-05-06 01:00")


def test_two_threads_carry_one_after_the_other() -> None:
    from ElexonDataPortal.api import Client

    found: list[list[str]] = []

    def work(hz: float) -> None:
        with carried(given("FREQ", freq(T0, [hz] * 3))):
            found.append(list(Client("any key").get_FREQ("2026-05-06 00:00:00", "2026-05-06 01:00:00")["frequency"]))

    threads = [threading.Thread(target=work, args=(49.9 + n / 100,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [[repr(49.9 + n / 100)] * 3 for n in range(8)]


@pytest.mark.parametrize(("day", "periods"), [("2019-03-31", 46), ("2023-10-29", 50), ("2024-07-01", 48)])
def test_half_hours_are_numbered_by_what_has_elapsed(day: str, periods: int) -> None:
    table = half_hour_table(f"{day} 00:00", f"{day} 23:30", tz="Europe/London")
    assert list(table["SP"]) == list(range(1, periods + 1))
    assert set(table["date"]) == {day}
    assert table.index.name == "datetime_europe_london"
    assert [start.tz_convert("UTC").to_pydatetime() for start in table.index] == half_hours(day)


def archived(name: str, report: str = "") -> str:
    rows = rows_of(name, sample(name)).rows
    return envelope(items_of(name, rows)).replace("<recordType>FREQ<", f"<recordType>{report or 'FREQ'}<")


@pytest.mark.parametrize("name", list(LEGACY))
def test_archived_xml_is_read_by_the_package(name: str) -> None:
    fetched = read_legacy_xml(archived(name))
    assert fetched.stream == name
    assert fetched.origin == "replay"
    assert [row.key for row in fetched.rows] == [row.key for row in rows_of(name, sample(name)).rows]


def test_zeros_that_the_legacy_feed_may_have_clipped_are_unknown() -> None:
    start = half_hours("2019-07-01")[0]
    rows = [fuel(start, code, mw, minutes=30) for code, mw in (("PS", 0), ("INTFR", 0), ("OIL", 0), ("INTNED", 228))]
    fetched = read_legacy_xml(envelope(items_of("FUELHH", rows_of("FUELHH", rows).rows)))
    values = {row.fuel: row.generation_mw for row in cast(Sequence[FuelRow], fetched.rows)}
    assert values == {"PS": None, "INTFR": None, "OIL": 0, "INTNED": 228}
    assert fetched.counts["clipped"] == 2


@pytest.mark.parametrize(
    "text",
    ["", "<html><body>429</body></html>", '{"data": []}', "<response/>", envelope([], code=500, description="no"),
     archived("FREQ")[:-30]],
)  # fmt: skip
def test_what_is_no_legacy_answer_is_named(text: str) -> None:
    with pytest.raises(BadAnswer, match="no legacy answer"):
        read_legacy_xml(text)


def test_archived_answers_without_rows_and_of_other_reports() -> None:
    assert read_legacy_xml(envelope([])).rows == []
    with pytest.raises(NotCarried, match="B1610"):
        read_legacy_xml(archived("FREQ", "B1610"))


def test_a_number_that_is_none_is_rejected() -> None:
    xml = archived("FREQ").replace("<frequency>50.0<", "<frequency>fifty<")
    fetched = read_legacy_xml(xml)
    assert {reject.raw["frequency"] for reject in fetched.rejects} == {"fifty"}
    assert len(fetched.rows) + len(fetched.rejects) == 240


def test_a_naive_window_is_refused() -> None:
    with pytest.raises(ValueError, match="naive"):
        asyncio.run(ElexonDataPortalSource().fetch("FREQ", T0.replace(tzinfo=None), T0))


def test_every_error_is_ours(server: ElexonServer) -> None:
    server.always = problem(500)
    with pytest.raises(ElexonError):
        fetch(server, "DEMAND", T0, T0 + HOUR)
