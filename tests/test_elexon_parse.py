"""gg_ray.elexon.parse and repair: every defect that was seen in published rows, on real rows where we hold them."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from elexon_rows import (
    MINUTE,
    T0,
    batch,
    body,
    data_file,
    demand,
    freq,
    fuel,
    fuelhh_rows,
    fuelinst_rows,
    fuels,
    half_hours,
    utc,
    wobble,
    z,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.elexon import repair
from gg_ray.elexon.errors import BadAnswer
from gg_ray.elexon.parse import Asked, merge, parse, read, to_json
from gg_ray.elexon.rows import DemandRow, FrequencyRow, FuelRow
from gg_ray.elexon.settlement import periods_in_day
from gg_ray.elexon.source import STREAMS, Fetched

ALWAYS = (datetime(2016, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC))
FUELHH, FUELINST, FREQ, DEMAND = (STREAMS[name] for name in ("FUELHH", "FUELINST", "FREQ", "DEMAND"))


def fuel_rows(fetched: Fetched) -> Sequence[FuelRow]:
    return cast(Sequence[FuelRow], fetched.rows)


def parsed(rows: Any, name: str = "FUELINST") -> Fetched:
    return parse(STREAMS[name], body(rows), *ALWAYS)


@pytest.mark.parametrize("name", ["FUELHH", "FUELINST", "FREQ", "INDO", "ITSDO", "INDOD"])
def test_captured_answers_are_read_field_by_field(name: str) -> None:
    captured = json.loads(data_file("api_captured_excerpts/excerpts.json").read_text())[name]["body"]
    fetched = parsed(captured["data"], name)
    assert len(fetched.rows) == len(captured["data"])
    assert not fetched.rejects
    kept = json.loads(to_json(STREAMS[name], fetched.rows))["data"]
    sent = [{field: value for field, value in row.items() if field != "dataset"} for row in captured["data"]]
    assert sorted(kept, key=str) == sorted(sent, key=str)


def test_empty_answer_and_bare_array() -> None:
    assert parse(FREQ, b'{"data":[]}', *ALWAYS).rows == []
    assert parse(FREQ, b" [] ", *ALWAYS).rows == []
    rows = freq(T0, wobble(3))
    assert parse(FREQ, json.dumps(rows).encode(), *ALWAYS).rows == parsed(rows, "FREQ").rows


def test_byte_order_mark_is_taken_off() -> None:
    assert len(parse(FREQ, b"\xef\xbb\xbf" + body(freq(T0, wobble(3))), *ALWAYS).rows) == 3


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<!DOCTYPE html><html>Too many</html>", "HTML"),
        (b'{"data": [{"measurementTime": "2026-05', "no JSON"),
        (b"", "no JSON"),
        (b'{"data": null}', "no list"),
        (b'{"data": {}}', "no list"),
        (b'{"title": "One or more validation errors occurred.", "status": 400}', "'status', 'title'"),
        (b'"text"', "str"),
        (b"12", "int"),
        (b'\xff\xfe{"data": []}', "no JSON"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_answer_is_named(answer: bytes, says: str) -> None:
    with pytest.raises(BadAnswer, match=says):
        parse(FREQ, answer, *ALWAYS)


@pytest.mark.parametrize("bad", ["1e3", "true", '"12"', "12.5", "12.0", "NaN", "99999999999999999999"])
def test_generation_is_a_whole_number_or_the_row_is_rejected(bad: str) -> None:
    rows = batch(T0)
    answer = body(rows).replace(b'"generation": 103', b'"generation": ' + bad.encode())
    fetched = parse(FUELINST, answer, *ALWAYS)
    assert len(fetched.rows) == len(rows) - 1
    assert fetched.counts["rejected"] == 1
    [reject] = fetched.rejects
    assert reject.reason.startswith("generation:")
    assert reject.raw["fuelType"] == rows[3]["fuelType"]


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "true", '"50.0"', "null"])
def test_frequency_is_a_finite_number_or_the_row_is_rejected(bad: str) -> None:
    answer = body(freq(T0, [50.0, 49.9])).replace(b"49.9", bad.encode())
    fetched = parse(FREQ, answer, *ALWAYS)
    assert [row.frequency_hz for row in cast(Sequence[FrequencyRow], fetched.rows)] == [50.0]
    assert len(fetched.rejects) == 1


@pytest.mark.parametrize("raw", [None, 3, "row", [], {}, {"startTime": z(T0)}])
def test_a_row_that_is_no_row_is_rejected_and_the_others_live(raw: Any) -> None:
    fetched = parsed([fuel(T0, "WIND", 1), raw])
    assert len(fetched.rows) == 1
    assert fetched.rejects[0].raw == raw


def test_an_answer_without_one_readable_row_is_no_answer() -> None:
    with pytest.raises(BadAnswer, match=r"none of 20 rows can be read; the first: generation"):
        parsed(batch(T0, generation="101"))


@pytest.mark.parametrize("time", ["2026-05-06T00:00:00Z", "2026-05-06T01:00:00+01:00", "2026-05-05T19:00:00-05:00"])
def test_times_with_z_or_offset_are_one_instant(time: str) -> None:
    [row] = parsed([fuel(T0, "WIND", 1, startTime=time)]).rows
    assert row.at == T0
    assert row.at.tzinfo is UTC


@pytest.mark.parametrize(
    "time",
    ["2026-05-06T00:00:00", "2026-05-06", "06-MAY-2026", 1_778_025_600, "yesterday", None, "0001-01-01T00:00:00+05:00"],
)
def test_times_without_a_zone_are_refused(time: Any) -> None:
    fetched = parsed([fuel(T0, "WIND", 1, startTime=time), fuel(T0, "OIL", 1)])
    assert [row.fuel for row in fuel_rows(fetched)] == ["OIL"]
    assert fetched.rejects[0].reason.startswith("startTime")


def test_order_does_not_matter() -> None:
    rows = fuels(T0, T0 + 60 * MINUTE)
    expected = parsed(rows)
    random.Random(1).shuffle(rows)
    assert parsed(rows).rows == expected.rows
    keys = [row.key for row in expected.rows]
    assert keys == sorted(keys)


def test_a_row_twice_is_one_row() -> None:
    rows = fuels(T0, T0 + 5 * MINUTE)
    fetched = parsed(rows + rows[:20])
    assert len(fetched.rows) == 40
    assert fetched.counts == {"duplicates": 20}


@pytest.mark.parametrize("turned", [False, True])
def test_the_later_publication_wins_wherever_it_stands(turned: bool) -> None:
    late, early = fuel(T0, "WIND", 2, publishTime=z(T0 + 9 * MINUTE)), fuel(T0, "WIND", 1)
    unpublished = {**fuel(T0, "WIND", 3), "publishTime": None}
    rows = [early, late, unpublished]
    fetched = parsed(rows[::-1] if turned else rows)
    assert [row.generation_mw for row in fuel_rows(fetched)] == [2]
    assert fetched.counts["superseded"] == 2


def test_two_values_with_one_publication_time_are_counted_and_the_first_stays() -> None:
    fetched = parsed([fuel(T0, "WIND", 2), fuel(T0, "WIND", 1)])
    assert [row.generation_mw for row in fuel_rows(fetched)] == [2]
    assert fetched.counts["conflicting"] == 1


def test_joined_answers_count_the_boundary_once() -> None:
    edge = T0 + 30 * MINUTE
    parts = [read(FUELINST, body(fuels(T0, edge))), read(FUELINST, body(fuels(edge, edge + 30 * MINUTE)))]
    fetched = merge(FUELINST, T0, edge + 30 * MINUTE, parts)
    assert len(fetched.rows) == 13 * 20
    assert fetched.counts == {"duplicates": 20}
    again = merge(FUELINST, T0, edge + 30 * MINUTE, [fetched])
    assert again.rows == fetched.rows
    assert again.counts == fetched.counts


def test_rows_are_cut_to_the_window_closed_at_both_ends() -> None:
    fetched = parse(FUELINST, body(fuels(T0, T0 + 60 * MINUTE)), T0 + 10 * MINUTE, T0 + 20 * MINUTE)
    assert {row.at for row in fetched.rows} == {T0 + m * MINUTE for m in (10, 15, 20)}
    assert fetched.counts["outside"] == 10 * 20


def test_a_parameter_that_was_ignored_is_noticed() -> None:
    asked = Asked(start=T0, end=T0 + 60 * MINUTE)
    newest = freq(T0 + timedelta(days=2), wobble(5))
    with pytest.raises(
        BadAnswer, match=r"FREQ: asked for 2026-05-06T00:00:00Z to 2026-05-06T01:00:00Z, got .*05-08T00"
    ):
        parse(FREQ, body(newest), *ALWAYS, asked=asked)
    parse(FREQ, body(freq(T0, wobble(241))), *ALWAYS, asked=asked)


def test_the_window_of_a_publish_stream_is_about_publication() -> None:
    rows = fuels(T0, T0 + 55 * MINUTE)
    parse(FUELINST, body(rows), *ALWAYS, asked=Asked(start=T0 + 5 * MINUTE, end=T0 + 60 * MINUTE, by_publish=True))
    with pytest.raises(BadAnswer, match="publishTime"):
        parse(FUELINST, body(rows), *ALWAYS, asked=Asked(start=T0, end=T0 + 55 * MINUTE, by_publish=True))
    foreign = [fuel(T0 + timedelta(days=1), "SOLAR", 5, publishTime=None)]
    with pytest.raises(BadAnswer, match="got a row of time"):
        parse(FUELINST, body(foreign), *ALWAYS, asked=Asked(start=T0, end=T0 + 60 * MINUTE, by_publish=True))


@pytest.mark.parametrize(
    ("day", "labelled", "periods"),
    [("2019-03-31", 46, 45), ("2023-03-26", 46, 46), ("2023-10-29", 50, 50), ("2024-10-27", 50, 50),
     ("2019-10-27", 49, 50), ("2021-10-31", 49, 50)],
)  # fmt: skip
def test_clock_days_of_the_files_by_label_and_by_start(day: str, labelled: int, periods: int) -> None:
    """The labels of 2019 and 2021 are a day late at the end of the day, so autumn days show 49 of 50. By start they are
    whole; of 2019-03-31 the last period is lost (the file has its values under a start of the day after)."""
    neighbours = {day, str(datetime.fromisoformat(day).date() + timedelta(days=1))}
    starts = half_hours(day)
    rows = fuelhh_rows(int(day[:4]), neighbours)
    fetched = parse(FUELHH, body(rows), starts[0], starts[-1])
    labels = sorted({(str(row.settlement_date), row.settlement_period) for row in fuel_rows(fetched)})
    assert len({row["settlementPeriod"] for row in rows if row["settlementDate"] == day}) == labelled
    assert labels == [(day, period + 1) for period in range(periods)]
    assert len(starts) == periods_in_day(datetime.fromisoformat(day).date())


def test_a_period_that_was_never_published_is_counted() -> None:
    starts = [start for start in half_hours("2024-10-27") if start != utc("2024-10-27T01:00:00Z")]
    fetched = parsed([row for start in starts for row in batch(start, minutes=30)], "FUELHH")
    assert len(fetched.rows) == 49 * 20
    assert fetched.counts == {"missing": 1}


def test_summer_day_starts_an_hour_before_midnight_utc() -> None:
    rows = [row for start in half_hours("2024-07-01") for row in batch(start, minutes=30, settlementPeriod=None)]
    fetched = parsed([{**row, "settlementDate": None} for row in rows], "FUELHH")
    first = fuel_rows(fetched)[0]
    assert (first.at, str(first.settlement_date), first.settlement_period) == (
        utc("2024-06-30T23:00:00Z"),
        "2024-07-01",
        1,
    )
    assert fetched.counts["unlabelled"] == len(fetched.rows) == 48 * 20


def test_real_rows_of_2019_get_the_label_of_their_start() -> None:
    """In 2019 SP48 carries the date after; the file is ordered by label, so the row stands first of the wrong day."""
    rows = fuelhh_rows(2019, {"2019-08-09", "2019-08-10"})
    starts = half_hours("2019-08-09")
    fetched = parse(FUELHH, body(rows), starts[0], starts[-1])
    assert fetched.counts["label_repaired"] == len([row for row in fetched.rows if row.at == starts[-1]]) == 15
    last = fuel_rows(fetched)[-1]
    assert (str(last.settlement_date), last.settlement_period) == ("2019-08-09", 48)


def test_first_rows_of_a_labelled_year_lie_in_the_year_before() -> None:
    rows = fuelhh_rows(2019, {"2019-01-01"})
    assert min(row["startTime"] for row in rows) == "2018-12-31T23:30:00Z"
    first = fuel_rows(parsed(rows, "FUELHH"))[0]
    assert (str(first.settlement_date), first.settlement_period) == ("2018-12-31", 48)


def test_dead_batches_of_march_2022_are_counted_and_kept() -> None:
    """15 slots with every fuel at 0 while the interconnectors drift on; published in one burst three hours late."""
    rows = fuelinst_rows("2022-03", "2022-03-17T10:00:00Z", "2022-03-17T13:45:00Z")
    fetched = parsed(rows)
    assert fetched.counts["all_zero_batch"] == 15
    assert len(fetched.rows) == len({(row["startTime"], row["fuelType"]) for row in rows})
    late = [row for row in fuel_rows(fetched) if row.published and row.published - row.at > timedelta(hours=1)]
    assert len({row.published for row in late}) < 3
    assert len({row.at for row in late}) > 20
    assert any(row.generation_mw is not None and row.generation_mw < -1000 for row in fuel_rows(fetched))


def test_dead_batches_of_june_2024_are_counted() -> None:
    rows = fuelinst_rows("2024-06", "2024-06-04T12:00:00Z", "2024-06-04T13:55:00Z")
    assert parsed(rows).counts == {"all_zero_batch": 7}


def test_partial_batch_and_null_generation() -> None:
    rows = fuels(T0, T0 + 25 * MINUTE)
    rows = [row for row in rows if (row["startTime"], row["fuelType"]) != (z(T0), "CCGT")]
    rows[0]["generation"] = None
    fetched = parsed(rows)
    assert fetched.counts == {"partial_batch": 1, "null_generation": 1}
    assert None in [row.generation_mw for row in fuel_rows(fetched)]
    assert parsed(batch(T0)[3:]).counts == {"partial_batch": 1}
    del rows[1]["generation"]
    assert parsed(rows).counts["null_generation"] == 2


def test_negative_pumping_and_exports_are_kept() -> None:
    fetched = parsed([fuel(T0, "PS", -621), fuel(T0, "INTFR", -1_998)])
    assert [row.generation_mw for row in fuel_rows(fetched)] == [-1_998, -621]


def test_an_unknown_code_is_kept_counted_and_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    repair._warn_unknown.cache_clear()
    rows = [*fuels(T0, T0 + 10 * MINUTE), fuel(T0, "INTELE", 5), fuel(T0 + 5 * MINUTE, "INTELE", 6)]
    rows.append(fuel(T0, "SOLAR", 7, publishTime=None))
    with caplog.at_level(logging.WARNING):
        fetched = parsed(rows)
        parsed(rows)
    assert fetched.counts["unknown_fuel"] == 3
    assert len(fetched.rows) == len(rows)
    assert sorted(record.message.split("'")[1] for record in caplog.records) == ["INTELE", "SOLAR"]


def test_rows_off_the_grid_are_kept_and_counted() -> None:
    fetched = parsed([*fuels(T0, T0 + 5 * MINUTE), *batch(T0 + 7 * MINUTE)])
    assert fetched.counts["off_grid"] == 20
    assert len(fetched.rows) == 60


def test_missing_steps_are_counted() -> None:
    rows = [row for row in fuels(T0, T0 + 60 * MINUTE) if row["startTime"] != z(T0 + 20 * MINUTE)]
    assert parsed(rows).counts == {"missing": 1}
    samples = freq(T0, wobble(40))
    assert parsed(samples[:8] + samples[16:], "FREQ").counts == {"missing": 8}


def test_frequency_out_of_range_is_taken_out_with_its_reason() -> None:
    fetched = parsed(freq(T0, [50.0, 44.9, 45.0, 0.0, 55.0, 55.1]), "FREQ")
    assert [row.frequency_hz for row in cast(Sequence[FrequencyRow], fetched.rows)] == [50.0, 45.0, 55.0]
    assert fetched.counts["out_of_range"] == 3
    assert fetched.rejects[0].reason == "frequency 44.9 Hz is outside 45 to 55 Hz"
    assert fetched.rejects[0].raw == {"measurementTime": z(T0 + timedelta(seconds=15)), "frequency": 44.9}


def test_frozen_and_repeated_frequency_batches_are_counted() -> None:
    values = wobble(40)
    assert parsed(freq(T0, [*values, *[50.012] * 9, *values]), "FREQ").counts == {"frozen": 8}
    assert parsed(freq(T0, [*values[:16], *values[8:16], *values[16:]]), "FREQ").counts == {"frozen": 8}
    assert parsed(freq(T0, [*values[:16], *[50.012] * 7, *values[16:]]), "FREQ").counts == {}
    assert parsed(freq(T0, values) * 2, "FREQ").counts == {"duplicates": 40}


def test_half_hourly_demand_that_was_not_published_is_none() -> None:
    [row] = cast(Sequence[DemandRow], parsed([demand(T0, None)], "DEMAND").rows)
    assert (row.indo_mw, row.itsdo_mw) == (None, 26_000)


def test_a_stored_answer_gives_the_same_bytes_twice() -> None:
    once = to_json(FUELINST, parsed(fuels(T0, T0 + 60 * MINUTE)).rows)
    assert to_json(FUELINST, parse(FUELINST, once, *ALWAYS).rows) == once
    warning = {"publishTime": z(T0), "warningType": "SYSTEM WARNING", "warningText": "text"}
    kept = to_json(STREAMS["WARNINGS"], parsed([warning], "WARNINGS").rows)
    assert to_json(STREAMS["WARNINGS"], parse(STREAMS["WARNINGS"], kept, *ALWAYS).rows) == kept


def test_a_real_day_through_the_parser_twice_is_byte_for_byte_the_same() -> None:
    rows = fuelinst_rows("2022-03", "2022-03-03T00:00:00Z", "2022-03-03T23:55:00Z")
    once = to_json(FUELINST, parsed(rows).rows)
    again = parse(FUELINST, once, *ALWAYS)
    assert to_json(FUELINST, again.rows) == once
    assert not again.counts.keys() & {"duplicates", "superseded", "label_repaired"}


@given(
    rows=st.lists(
        st.one_of(
            st.builds(
                fuel,
                st.sampled_from([T0 + m * MINUTE for m in (0, 5, 7, 60)]),
                st.sampled_from(["WIND", "PS", "INTFR", "INTELE"]),
                st.one_of(st.none(), st.integers(-9, 9), st.floats(), st.booleans(), st.text(max_size=2)),
                publishTime=st.one_of(st.none(), st.sampled_from([z(T0 + m * MINUTE) for m in (5, 6, 90)])),
            ),
            st.recursive(st.one_of(st.none(), st.integers(), st.text(max_size=3)), lambda x: st.lists(x, max_size=2)),
        ),
        max_size=12,
    ),
    seed=st.integers(0, 9),
)
def test_every_row_is_accounted_for(rows: list[Any], seed: int) -> None:
    low, high = T0, T0 + 10 * MINUTE
    try:
        fetched = parse(FUELINST, body(rows), low, high)
    except BadAnswer:
        return
    counts = fetched.counts
    gone = sum(counts[name] for name in ("rejected", "duplicates", "superseded", "conflicting", "outside"))
    assert len(fetched.rows) + gone == len(rows)
    assert len(fetched.rejects) == counts["rejected"]
    keys = [row.key for row in fetched.rows]
    assert keys == sorted(set(keys))
    assert all(low <= row.at <= high for row in fetched.rows)
    if not counts["conflicting"]:
        random.Random(seed).shuffle(rows)
        assert parse(FUELINST, body(rows), low, high).rows == fetched.rows
    assert parse(FUELINST, to_json(FUELINST, fetched.rows), low, high).rows == fetched.rows


def test_rejects_are_bounded_but_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gg_ray.elexon.parse.MAX_REJECTS", 5)
    fetched = parsed([fuel(T0, "WIND", 1), *batch(T0, generation="x")])
    assert (len(fetched.rejects), fetched.counts["rejected"]) == (5, 20)
