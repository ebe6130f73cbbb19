"""Messages of the Elexon feed as scans: one by one they are what the whole record gives offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elexon_rows import body, demand, fuels, with_data
from elexon_rows import real as real_file
from hypothesis import given, settings
from hypothesis import strategies as st

from gg_ray.elexon.feeding import fed, messages
from gg_ray.elexon.parse import read
from gg_ray.elexon.scans import from_columns
from gg_ray.elexon.settlement import HALF_HOUR_NS
from gg_ray.elexon.source import stream_of
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import iso, ns_of
from gg_ray.grid import balance as b
from gg_ray.scenario.balance_record import from_statistics, usual_of
from gg_ray.scenario.balance_windows import readings, streams_of, windows
from serve.balance_scans import NOTHING_KNOWN, PLAN_OF_STEP, BalanceScans, Clocked, Usual, usual_from
from serve.wire import ScanMessage, decode, encode

RECORD = from_statistics()
PUBLISHED = b.CHANNELS[: b.FREQ + 1]


def said(t0_ns: int, step_s: int, stream_C: np.ndarray, **other: Any) -> dict[str, Any]:
    """A message of the feed with what is finite of a row of streams."""
    values = {n: float(v) for n, v in zip(PUBLISHED, stream_C[: b.FREQ + 1], strict=True) if np.isfinite(v)}
    known = {"schema": 1, "grid": b.NAME, "t0": iso(t0_ns), "step_s": step_s, "origin": "replay", "values": values}
    return known | {"missing": [], "late": {}} | other


def stacked(scans: Sequence[ScanMessage]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([scan.z_M for scan in scans]), np.stack([scan.age_M for scan in scans])


def offline(t0_ns: np.ndarray, stream_SC: np.ndarray, step_s: int) -> np.ndarray:
    """[S, M] readings of the whole record; half-hours of finer scans count when all of their scans are there."""
    per = 1_800 // step_s
    first = t0_ns[0] // HALF_HOUR_NS
    hours = np.full((int(t0_ns[-1] // HALF_HOUR_NS - first) + 1, len(b.CHANNELS)), np.nan)
    for row in range(hours.shape[0]):
        inside = stream_SC[t0_ns // HALF_HOUR_NS == first + row]
        if len(inside) == per:
            hours[row] = inside[-1]
            hours[row, : b.N_SUPPLY] = inside[:, : b.N_SUPPLY].mean(axis=0)
    usual = usual_of((first + np.arange(len(hours))) * HALF_HOUR_NS, hours)
    return readings(stream_SC, usual[t0_ns // HALF_HOUR_NS - first], float(step_s))


@settings(max_examples=12)
@given(
    start=st.integers(0, 500), step_s=st.sampled_from([1_800, 300]), seed=st.integers(0, 2**32 - 1),
    silent=st.floats(0.0, 0.4),
)  # fmt: skip
def test_scans_one_by_one_are_those_of_the_whole_record(start: int, step_s: int, seed: int, silent: float) -> None:
    rng = np.random.default_rng(seed)
    per = 1_800 // step_s
    stream = np.repeat(np.round(RECORD.stream_HC[start : start + 40 // per]), per, axis=0)
    stream[:, b.EMBEDDED_WIND :] = np.nan
    if per > 1:
        stream[np.arange(len(stream)) % per != per - 1, b.INDO : b.FREQ] = np.nan
    stream[rng.random(stream.shape) < silent] = np.nan
    stream[rng.random(len(stream)) < silent] = np.nan
    t0_ns = int(RECORD.t0_ns[start]) + step_s * 10**9 * np.arange(len(stream))
    feed = BalanceScans(step_s)
    scans = [feed.scan(said(int(t), step_s, row)) for t, row in zip(t0_ns, stream, strict=True)]
    z, age = stacked(scans)
    wanted = offline(t0_ns, stream, step_s)
    np.testing.assert_array_equal(np.isnan(z), np.isnan(wanted))
    np.testing.assert_allclose(z, wanted, rtol=0, atol=1e-12)
    for ends, chunk in windows(wanted, t0_ns, 16, PLAN_OF_STEP[step_s], least=2):
        for end, window in zip(ends.tolist(), chunk, strict=True):
            mine = slice(end - 15, end + 1)
            np.testing.assert_allclose(z[mine], window.z_TM, rtol=0, atol=1e-12)
            within = np.where(age[mine] > np.arange(16)[:, None], 255, age[mine])  # a window knows its own scans only
            np.testing.assert_array_equal(within, window.age_TM)
            assert scans[end - 15].time_ns == window.t0_ns
    assert encode(decode(encode(scans[-1]))) == encode(scans[-1])


def test_frequency_scans_need_no_record_at_all() -> None:
    feed = BalanceScans(15)
    row = np.full(len(b.CHANNELS), np.nan)
    start = 15 * 10**9 * 100_000_000
    for number, hz in enumerate((50.0, 49.9, np.nan, 49.7)):
        row[b.FREQ] = hz
        scan = feed.scan(said(start + number * 15 * 10**9, 15, row))
    heard = np.isfinite(scan.z_M)
    assert scan.z_M[b.M_FREQUENCY] == pytest.approx(49.7 / 50)
    assert not heard[b.M_SUPPLY].any()
    np.testing.assert_allclose(scan.z_M[b.M_STATION_USUAL : b.M_UNREPORTED_USUAL + 1], NOTHING_KNOWN[:2] / b.BASE_MVA)
    assert scan.age_M[b.M_FREQUENCY] == 0
    assert set(scan.age_M[b.M_SUPPLY]) == {255}
    assert dict(scan.values) == {"FREQ": 49.7}
    assert {int(b.cadence_of(plan)): plan for plan in b.CADENCE_PLANS} == PLAN_OF_STEP


def test_a_scan_said_again_replaces_its_first_form_for_all_that_follow() -> None:
    t0_ns, stream = RECORD.t0_ns[:60], np.round(RECORD.stream_HC[:60])
    late = stream[50].copy()
    late[b.INDO : b.FREQ] = np.nan
    feed = BalanceScans(1_800)
    for t, row in zip(t0_ns[:50], stream[:50], strict=True):
        feed.scan(said(int(t), 1_800, row))
    first = feed.scan(said(int(t0_ns[50]), 1_800, late, missing=["INDO", "ITSDO"]))
    assert np.isnan(first.z_M[b.M_INDO])
    assert np.isnan(first.z_M[list(b.LAWS)]).all()
    feed.scan(said(int(t0_ns[51]), 1_800, stream[51]))
    again = feed.scan(said(int(t0_ns[50]), 1_800, stream[50], late={"INDO": 2_700}))
    wanted = offline(t0_ns, stream, 1_800)
    np.testing.assert_allclose(again.z_M, wanted[50], rtol=0, atol=1e-12)
    assert again.time_ns == first.time_ns
    assert (first.streams["INDO"], first.streams["CCGT"]) == ("missing", "replayed")
    assert (again.streams["INDO"], again.streams["CCGT"]) == ("late", "replayed")
    later = feed.scan(said(int(t0_ns[52]), 1_800, stream[52]))
    np.testing.assert_allclose(later.z_M, wanted[52], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("origin", "word"), [("live", "live"), ("cache", "cached"), ("replay", "replayed"), ("simulated", "simulated")]
)
def test_streams_say_where_each_channel_came_from(origin: str, word: str) -> None:
    scan = BalanceScans(1_800).scan(said(int(RECORD.t0_ns[0]), 1_800, RECORD.stream_HC[0], origin=origin))
    assert set(scan.streams.values()) == {word}
    assert scan.origin == origin


def test_a_message_of_another_step_is_refused() -> None:
    with pytest.raises(ValueError, match="a scan of 300 s in a feed of 1800 s"):
        BalanceScans(1_800).scan(said(int(RECORD.t0_ns[0]), 300, RECORD.stream_HC[0]))
    with pytest.raises(ValueError, match="step 60 s; the grid has plans for 1800, 300, 15 s"):
        BalanceScans(60)


@given(ticks=st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_rows_stand_at_their_tick_whatever_their_order(ticks: Sequence[int]) -> None:
    held, model, newest = Clocked(10, 1), dict[int, float](), -1
    for number, tick in enumerate(ticks):
        if newest < 0 or abs(tick - newest) >= 10:
            model, newest = {}, tick
        newest = max(newest, tick)
        held.put(tick, np.array([float(number)]))
        model[tick] = float(number)
        wanted = [model.get(t, np.nan) if t > newest - 10 else np.nan for t in range(newest - 14, newest + 3)]
        np.testing.assert_array_equal(held.upto(newest + 2, 17)[:, 0], wanted)


def test_what_is_usual_comes_from_a_store(tmp_path: Path) -> None:
    start, end = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 4, tzinfo=UTC)
    store = DayStore(tmp_path)
    assert usual_from(store, end).at(ns_of(end)) is NOTHING_KNOWN
    times = [start + timedelta(minutes=30 * n) for n in range(144)]
    for name, rows in (("FUELHH", fuels(start, times[-1], minutes=30)), ("DEMAND", [demand(t) for t in times])):
        store.merge(name, read(stream_of(name), body(rows)).rows, fetched=end)
    known = usual_from(store, end).at(ns_of(end))
    assert known[b.U_STATION] == 1_000, "ITSDO - INDO, the two days before"
    assert known[b.U_STATION_SIGMA] == 40.0
    assert not np.array_equal(known, NOTHING_KNOWN)


@with_data
def test_a_real_day_at_five_minutes_after_a_real_fortnight() -> None:
    history = real_file("elexon_fuelinst_5min/fuelinst_2024-06.parquet")
    day = int(np.datetime64("2024-06-04T00:00", "ns").astype(np.int64))
    table = from_columns([history], 300, day, day + 86_400 * 10**9)
    record = from_columns([real_file("elexon_fuelhh_indo/fuelhh_2024.csv")], 1_800, day - 30 * 86_400 * 10**9, day)
    feed = BalanceScans(300, Usual(record.t0_ns, streams_of(record)))
    scans = [feed.scan(message) for message in messages(table, fed(["FUELINST"]), "replay")]
    z, _ = stacked(scans)
    clock = np.concatenate([record.t0_ns, day + HALF_HOUR_NS * np.arange(48)])
    hours = np.full((48, len(b.CHANNELS)), np.nan)
    hours[:, : b.N_SUPPLY] = streams_of(table)[:, : b.N_SUPPLY].reshape(48, 6, -1).mean(axis=1)
    usual = usual_of(clock, np.concatenate([streams_of(record), hours]))[-48:]
    wanted = readings(streams_of(table), np.repeat(usual, 6, axis=0), 300.0)
    np.testing.assert_array_equal(np.isnan(z), np.isnan(wanted))
    np.testing.assert_allclose(z, wanted, rtol=0, atol=1e-12)
    dead = [scan for scan in scans if scan.values and not any(scan.values.values())]
    assert len(dead) == 7, "everything zero from 12:35 to 13:05"


def test_messages_of_the_feed_are_what_scans_takes() -> None:
    """Guards the names that both sides use."""
    keys: Mapping[str, Any] = said(int(RECORD.t0_ns[0]), 1_800, RECORD.stream_HC[0])
    table = from_columns([real_scan()], 1_800, int(RECORD.t0_ns[0]), int(RECORD.t0_ns[0]) + HALF_HOUR_NS)
    [message] = messages(table, fed(["FUELHH"]), "replay")
    assert message.keys() == keys.keys()
    assert BalanceScans(1_800).scan(message).values["CCGT"] == 7.0


def real_scan() -> Any:
    from gg_ray.elexon.scans import Columns

    return Columns(period_s=1_800, channels=("CCGT",), t0_ns=RECORD.t0_ns[:1], value_HC=np.array([[7.0]]))
