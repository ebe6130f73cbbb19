"""gg_ray.elexon.energy: half of a day's INDO is its INDOD, and a day that cannot be compared is no finding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elexon_fakes import FakeClock, FakeSource, run
from elexon_rows import fuelhh_year, with_data
from hypothesis import given
from hypothesis import strategies as st

from gg_ray.elexon.check import check_path, check_store
from gg_ray.elexon.energy import DayEnergy, energies, stored_energies
from gg_ray.elexon.fetch import sync
from gg_ray.elexon.rows import DailyDemandRow, DemandRow, OneDemandRow
from gg_ray.elexon.settlement import HALF_HOUR_NS, midnight_ns, periods_in_day
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import at_ns
from gg_ray.records import F64

SPRING, AUTUMN, PLAIN = date(2024, 3, 31), date(2024, 10, 27), date(2024, 6, 4)
DAYS = st.sampled_from([(SPRING, 46), (AUTUMN, 50), (PLAIN, 48)])


def indod(day: date, mwh: int | None, **other: Any) -> DailyDemandRow:
    return DailyDemandRow(settlement_date=day, demand_mwh=mwh, **other)


def clock(day: date, before: int = 3, after: int = 3) -> np.ndarray:
    """Starts of the half-hours of a London day, and some on either side."""
    return midnight_ns(day) + np.arange(-before, periods_in_day(day) + after, dtype=np.int64) * HALF_HOUR_NS


def around(indo: Sequence[float], beside: float = 99_999.0) -> F64:
    return np.array([beside] * 3 + list(indo) + [beside] * 3, dtype=np.float64)


@given(days=DAYS, data=st.data())
def test_whole_numbers_of_one_truth_never_differ(days: tuple[date, int], data: st.DataObject) -> None:
    day, due = days
    truth = data.draw(st.lists(st.floats(0, 60_000), min_size=due, max_size=due))
    [one] = energies([indod(day, round(sum(truth) / 2))], clock(day), around([round(mw) for mw in truth]))
    assert (one.periods, one.due, one.comparable, one.differs) == (due, due, True, False)
    assert one.indo_mwh == sum(round(mw) for mw in truth) / 2


@given(days=DAYS, wrong_mwh=st.integers(-900_000, 900_000), lacking=st.sets(st.integers(0, 45), max_size=3))
def test_other_energies_differ_unless_a_period_lacks(days: tuple[date, int], wrong_mwh: int, lacking: set[int]) -> None:
    day, due = days
    indo = np.full(due, 30_000.0)
    [whole] = energies([indod(day, 15_000 * due + wrong_mwh)], clock(day), around(indo))
    assert whole.differs == (abs(wrong_mwh) > 0.5 + due / 4)
    indo[list(lacking)] = np.nan
    [one] = energies([indod(day, 15_000 * due + wrong_mwh)], clock(day), around(indo))
    assert (one.periods, one.comparable) == (due - len(lacking), not lacking)
    assert one.differs == (whole.differs and not lacking)


@pytest.mark.parametrize(
    ("indod_row", "comparable"),
    [
        (indod(PLAIN, None), False),
        (indod(PLAIN, 1), True),
        (indod(PLAIN, 1, published=datetime.fromisoformat("2024-06-04T22:59:59Z")), False),
        (indod(PLAIN, 1, published=datetime.fromisoformat("2024-06-04T23:15:00Z")), True),
        (indod(date(2024, 12, 4), 1, published=datetime.fromisoformat("2024-12-04T23:15:00Z")), False),
    ],
    ids=["null", "time unknown", "early", "after the day", "early in winter"],
)
def test_a_figure_that_is_absent_or_came_before_the_day_was_over_is_not_compared(
    indod_row: DailyDemandRow, comparable: bool
) -> None:
    day = indod_row.settlement_date
    [one] = energies([indod_row], clock(day), around([30_000.0] * 48))
    assert (one.comparable, one.differs) == (comparable, comparable)


def test_days_that_the_half_hours_do_not_reach_are_not_compared() -> None:
    found = energies([indod(PLAIN, 1), indod(date(2020, 1, 1), 1)], clock(PLAIN, 0, 0)[:20], np.full(20, 3e4))
    assert [(one.periods, one.comparable) for one in found] == [(20, False), (0, False)]


@with_data
@pytest.mark.parametrize(("year", "whole"), [(2021, 325), (2024, 366)])
def test_real_days_that_lack_a_demand_are_not_compared_and_the_others_have_a_days_energy(year: int, whole: int) -> None:
    table, first = fuelhh_year(year), date(year, 1, 1)
    days = [first + timedelta(days=i) for i in range((date(year + 1, 1, 1) - first).days)]
    found = [
        one for one in energies([indod(day, 1) for day in days], table.t0_ns, table.channel("INDO")) if one.comparable
    ]
    assert len(found) == whole
    assert ({one.periods for one in found} == {46, 48, 50}) == (
        year == 2024
    )  # 2021 has a defect at either clock change
    assert all(one.differs and 400_000 < one.indo_mwh < 1_000_000 for one in found)  # 676,741 MWh on 1 April 2026


# --- in a store ------------------------------------------------------------------------------------------------------


def half_hours(store: DayStore, day: date, mw: float, stream: str = "DEMAND", skip: int = -1, **other: Any) -> None:
    starts = [at_ns(midnight_ns(day) + i * HALF_HOUR_NS) for i in range(periods_in_day(day)) if i != skip]
    rows = [
        DemandRow(start=t, indo_mw=mw, itsdo_mw=mw, **other) if stream == "DEMAND"
        else OneDemandRow(start=t, demand_mw=mw, **other) for t in starts
    ]  # fmt: skip
    store.merge(stream, rows, starts[-1])


def test_a_store_is_checked_day_by_day_and_names_both_figures(tmp_path: Path) -> None:
    store, later = DayStore(tmp_path), datetime.fromisoformat("2024-11-02T00:00:00Z")
    for day in (SPRING, AUTUMN, PLAIN):
        half_hours(store, day, 20_000)
        store.merge("INDOD", [indod(day, 10_000 * periods_in_day(day) + (500 if day == AUTUMN else 0))], later)
    half_hours(store, date(2024, 6, 5), 20_000, skip=47)
    store.merge("INDOD", [indod(date(2024, 6, 5), 1)], later)
    out = check_store(store, "INDOD")
    assert out.counts == {
        "days_compared": 3, "days_not_comparable": 1, "days_off_their_energy": 1, "missing_slots": 207,
    }  # fmt: skip
    [found] = out.of("daily_energy")
    assert found.detail == "2024-10-27: INDOD 500,500 MWh, half of its 50 INDO 500,000.0 MWh"
    assert found.first_ns == midnight_ns(AUTUMN)
    assert len(out.of("gap")) == 207
    assert [one.name.rpartition("/")[2] for one in check_path(tmp_path)] == ["DEMAND", "INDOD"]


def test_indo_as_a_dataset_of_its_own_serves_and_the_later_publication_counts(tmp_path: Path) -> None:
    store, early = DayStore(tmp_path), at_ns(midnight_ns(PLAIN) + 50 * HALF_HOUR_NS)
    store.merge("INDOD", [indod(PLAIN, 480_000)], early)
    assert [one.periods for one in stored_energies(store, PLAIN, PLAIN)] == [0]
    half_hours(store, PLAIN, 20_000, "INDO", published=early + timedelta(hours=1))
    half_hours(store, PLAIN, 19_000, published=early)
    assert [(one.indo_mwh, one.differs) for one in stored_energies(store, PLAIN, PLAIN)] == [(480_000.0, False)]
    half_hours(store, PLAIN, 19_000, published=early + timedelta(hours=2))
    assert [one.differs for one in stored_energies(store, PLAIN, PLAIN)] == [True]


def test_a_day_is_frozen_and_says_what_it_is() -> None:
    one = DayEnergy(day=PLAIN, indod_mwh=676_741, indo_mwh=676_740.5, periods=48, due=48, settled=True)
    assert (one.differs, one.rounding_mwh) == (False, 12.5)
    assert str(dataclasses.replace(one, indo_mwh=0.0)).startswith("2024-06-04: INDOD 676,741 MWh, half of its 48 INDO")


def test_a_sync_of_consistent_streams_gives_days_that_agree(tmp_path: Path) -> None:
    fake_clock = FakeClock(datetime.fromisoformat("2024-04-03T12:00:00Z"))
    store = DayStore(tmp_path)
    run(sync(FakeSource(fake_clock), ("DEMAND", "INDOD"), store, fake_clock.now(), 5))
    found = stored_energies(store, date(2024, 3, 29), date(2024, 4, 3))
    assert [one.day for one in found if one.comparable] == [date(2024, 3, 29) + timedelta(days=i) for i in range(5)]
    assert not any(one.differs for one in found)
