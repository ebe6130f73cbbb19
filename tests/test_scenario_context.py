"""Contexts cut from the record or from the shipped statistics: whole, plausible, inside their split, repeatable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from elexon_rows import DATA, with_data
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_sources import SOURCES, artificial, ns

from gg_ray.elexon.settlement import DAY_NS, HALF_HOUR_NS
from gg_ray.records import Context
from gg_ray.scenario import climatology as clim
from gg_ray.scenario import history as hist
from gg_ray.scenario.context import (
    RARE_EVERY,
    SPLITS,
    ClimatologySource,
    ContextError,
    ContextSource,
    HistorySource,
    context_source,
    split_of,
)
from gg_ray.scenario.history import HistoryError


def check(context: Context, scans: int, split: str) -> None:
    for name in ("load_T", "wind_T", "shape_T"):
        values = getattr(context, name)
        assert values.shape == (scans,)
        assert np.all(np.isfinite(values))
    assert context.load_T.min() > 0.4
    assert context.load_T.max() < 1.8
    for values in (context.wind_T, context.shape_T):
        assert values.min() >= 0
        assert values.max() <= 1
    last = context.t0_ns + int((scans - 1) * context.step_s * 1e9)
    assert {split_of(t) for t in range(context.t0_ns, last + 1, HALF_HOUR_NS)} | {split_of(last)} == {split}


@pytest.mark.parametrize("make", SOURCES)
@settings(max_examples=60, deadline=None)
@given(
    context_id=st.integers(0, 2**63 - 1),
    split=st.sampled_from(SPLITS),
    scans=st.sampled_from([1, 16, 24, 48, 96]),
    step_s=st.sampled_from([4.0, 60.0, 300.0, 1_800.0]),
)
def test_windows_are_finite_plausible_and_stay_in_their_split(
    make: Callable[[], ContextSource], context_id: int, split: str, scans: int, step_s: float
) -> None:
    source = make()
    check(source.window(context_id, scans, step_s, split), scans, split)


@pytest.mark.parametrize("make", SOURCES)
def test_days_are_whole_distinct_and_stay_in_their_split(make: Callable[[], ContextSource]) -> None:
    source = make()
    starts: set[int] = set()
    for split in SPLITS:
        for index in range(0, source.days(split), 7):
            context = source.day(index, 60.0, split)
            check(context, 1_440, split)
            assert context.t0_ns % DAY_NS == 0
            assert context.t0_ns not in starts
            starts.add(context.t0_ns)


def test_calendar_rule() -> None:
    expected = {"2024-03-01": 2, "2024-12-31": 2, "2024-01-21": 0, "2024-01-22": 1, "2024-02-29": 1, "2024-07-01": 0}
    assert {day: SPLITS.index(split_of(ns(day))) for day in expected} == expected


@pytest.mark.parametrize("make", SOURCES)
def test_number_decides_the_window_whatever_was_asked_before(make: Callable[[], ContextSource]) -> None:
    used = make()
    fresh = HistorySource(DATA) if used.origin == "history" else ClimatologySource()
    for context_id in (0, 1, 2**40):
        used.window(7, 48, 300.0, "test")
        a, b = (s.window(context_id, 16, 60.0, "train") for s in (used, fresh))
        assert a.t0_ns == b.t0_ns
        assert a.context_id == context_id
        for name in ("load_T", "wind_T", "shape_T"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert len({used.window(i, 16, 60.0, "train").t0_ns for i in range(500)}) > 450


def stepped(gap: int | None = None) -> ContextSource:
    """Two January days whose load rises by 0.001 a half-hour."""
    t0 = ns("2024-01-02") + np.arange(96, dtype=np.int64) * HALF_HOUR_NS
    load = 0.9 + 0.001 * np.arange(96)
    keep = np.arange(96) != gap
    bounds = clim.Extremes(load_low=0.92, load_high=0.98, ramp_low=-0.002, ramp_high=0.002)
    flat = np.full(96, 0.5)
    return ContextSource(t0[keep], load[keep], flat[keep], flat[keep], bounds, origin="made")


def test_values_are_linear_between_half_hour_centres() -> None:
    source = stepped()
    for context_id in range(20):
        context = source.window(context_id, 16, 60.0, "train")
        centre = (context.t0_ns - ns("2024-01-02T00:15")) / HALF_HOUR_NS
        np.testing.assert_allclose(context.load_T, 0.9 + 0.001 * (centre + np.arange(16) / 30), atol=1e-12)


def test_day_edges_are_held_where_the_neighbour_is_missing() -> None:
    days = {source.t0_ns: source for source in (stepped().day(i, 900.0, "train") for i in range(2))}
    first, second = (days[t].load_T for t in sorted(days))
    assert first[0] == first[1] == 0.9
    assert second[0] == pytest.approx(0.9475)
    np.testing.assert_allclose(first[1:4], [0.9, 0.9005, 0.901])


def test_a_gap_is_never_bridged() -> None:
    source = stepped(gap=60)
    assert source.days("train") == 1
    inside = ns("2024-01-02T00:15") + 59 * HALF_HOUR_NS, ns("2024-01-02T00:15") + 61 * HALF_HOUR_NS
    for context_id in range(300):
        context = source.window(context_id, 48, 60.0, "train")
        assert context.t0_ns + 47 * 60 * 10**9 <= inside[0] or context.t0_ns >= inside[1]
    with pytest.raises(ContextError, match=r"longest unbroken train run of made has 29\.5 h"):
        source.window(0, 61, 1_800.0, "train")


def test_extremes_are_load_or_ramp_in_the_outer_percent() -> None:
    source = stepped()
    flags = {source.is_extreme(source.window(i, 16, 60.0, "train")) for i in range(50)}
    assert flags == {True, False}  # the ramp is normal, the load is low early and high late

    def context(load: list[float], step_s: float = 60.0) -> Context:
        values = np.array(load)
        return Context(
            context_id=0,
            t0_ns=0,
            step_s=step_s,
            load_T=values,
            wind_T=values,
            shape_T=values,
            split="train",
            origin="x",
        )

    assert not source.is_extreme(context([0.95, 0.95]))
    assert source.is_extreme(context([0.95, 0.951]))  # 0.03 per half-hour
    assert not source.is_extreme(context([0.95, 0.951], step_s=1_800.0))
    assert source.is_extreme(context([0.91]))


@pytest.mark.parametrize("make", SOURCES)
def test_few_but_some_contexts_are_extreme(make: Callable[[], ContextSource]) -> None:
    source = make()
    numbers = np.arange(1_600)
    flags = np.array([[source.is_extreme(source.window(i, 16, 60.0, s)) for i in numbers.tolist()] for s in SPLITS])
    rare = numbers % RARE_EVERY == RARE_EVERY - 1
    assert 0.005 < flags[:, ~rare].mean() < 0.06, "drawn evenly"
    assert flags[:, rare].mean() > 0.99, "every 16th number draws until it is extreme"


@pytest.mark.parametrize("make", SOURCES)
def test_rare_contexts_are_many_and_of_all_kinds(make: Callable[[], ContextSource]) -> None:
    source = make()
    found = [source.window(i, 16, 60.0, "train") for i in range(RARE_EVERY - 1, 100 * RARE_EVERY, RARE_EVERY)]
    assert len({context.t0_ns for context in found}) > 90
    load = np.array([context.load_T.mean() for context in found])
    assert load.min() < 0.7 < 1.3 < load.max()


def test_arguments_out_of_range_are_named() -> None:
    source = artificial()
    with pytest.raises(ContextError, match="split 'dev'"):
        source.window(0, 16, 60.0, "dev")
    with pytest.raises(ContextError, match="context_id -1"):
        source.window(-1, 16, 60.0, "train")
    with pytest.raises(ContextError, match="scans 0"):
        source.window(0, 0, 60.0, "train")
    with pytest.raises(ContextError, match="step_s nan"):
        source.window(0, 16, float("nan"), "train")
    with pytest.raises(ContextError, match=r"day_index 99999: climatology has whole test days 0 to \d+"):
        source.day(99_999, 60.0, "test")
    with pytest.raises(ContextError, match="step_s 0"):
        source.day(0, 0.0, "test")
    good = np.array([0.9])
    with pytest.raises(ContextError, match="not finite"):
        ContextSource(np.array([0]), good * np.nan, good, good, source.bounds, origin="made")
    with pytest.raises(ContextError, match="on the half-hour"):
        ContextSource(np.array([7]), good, good, good, source.bounds, origin="made")


def test_factory_takes_history_only_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert context_source(None).origin == "climatology"
    assert "packaged climatology" in caplog.text
    assert context_source(tmp_path).origin == "climatology"
    assert str(tmp_path) in caplog.text
    (tmp_path / hist.FOLDER).mkdir()
    with pytest.raises(HistoryError, match=r"fuelhh_2019\.csv"):
        context_source(str(tmp_path))


@with_data
def test_factory_reads_the_record() -> None:
    assert context_source(str(DATA)).origin == "history"
