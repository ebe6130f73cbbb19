"""The law between INDO and INDOD: half the sum of a day's half-hourly demands is the day's energy.

Flow:    elexon.store -> [energy] -> elexon.check, data_commands (fetch, sync)
Source:  docs/gb-data.md, traps
Shapes:  S half-hours in time order; a missing one is NaN or not there
Units:   MW (INDO, 30-min means), MWh (INDOD)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date
from typing import cast

import numpy as np

from gg_ray.elexon.rows import DailyDemandRow
from gg_ray.elexon.scans import from_columns
from gg_ray.elexon.settlement import HALF_HOUR_NS, midnight_ns, periods_in_day
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import DAY, INSTANT, at_ns, midnight, ns_of
from gg_ray.records import F64, I64

CARRIERS = ("DEMAND", "INDO")
"""Streams that carry INDO; where both do, the later publication counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DayEnergy:
    """The two figures of one settlement day.

    indo_mwh  half the sum of the INDO that are there;  periods, due  how many are there, and how many the day has
    settled   the day was over when INDOD was published, or nobody says when that was
    """

    day: date
    indod_mwh: int | None
    indo_mwh: float
    periods: int
    due: int
    settled: bool

    @property
    def comparable(self) -> bool:
        """Both figures are there and speak of the whole day."""
        return self.indod_mwh is not None and self.settled and self.periods == self.due

    @property
    def rounding_mwh(self) -> float:
        """Most by which whole numbers may differ: half an INDOD, and half an INDO for half an hour in each period."""
        return 0.5 + 0.25 * self.due

    @property
    def differs(self) -> bool:
        """The day is comparable and its figures are further apart than rounding can bring them."""
        return self.comparable and abs(self.indo_mwh - cast(int, self.indod_mwh)) > self.rounding_mwh

    def __str__(self) -> str:
        return f"{self.day}: INDOD {self.indod_mwh:,} MWh, half of its {self.periods} INDO {self.indo_mwh:,.1f} MWh"


def energies(daily: Iterable[DailyDemandRow], t0_ns: I64, indo_S: F64) -> list[DayEnergy]:
    """Each INDOD beside the INDO of its day.

    Args:    t0_ns  starts of half-hours, increasing [S];  indo_S  MW, NaN where none was published
    """
    found = []
    for row in daily:
        start, due = midnight_ns(row.settlement_date), periods_in_day(row.settlement_date)
        first, last = np.searchsorted(t0_ns, (start, start + due * HALF_HOUR_NS))
        indo = indo_S[first:last]
        found.append(DayEnergy(
            day=row.settlement_date, indod_mwh=row.demand_mwh, indo_mwh=float(np.nansum(indo)) / 2,
            periods=int(np.isfinite(indo).sum()), due=due,
            settled=row.published is None or ns_of(row.published) >= start + due * HALF_HOUR_NS,
        ))  # fmt: skip
    return found


def stored_energies(store: DayStore, first: date, last: date) -> list[DayEnergy]:
    """The days in [first, last] of which a store holds INDOD, oldest first.  Raises: StoreError when strict."""
    daily = [cast(DailyDemandRow, row) for row in store.read("INDOD", midnight(first), midnight(last))]
    if not daily:
        return []
    start = at_ns(midnight_ns(daily[0].settlement_date)).astimezone(UTC)
    end = at_ns(midnight_ns(daily[-1].settlement_date + DAY)).astimezone(UTC)
    scans = from_columns([store.read_columns(name, start, end - INSTANT) for name in CARRIERS], 1800, start, end)
    return energies(daily, scans.t0_ns, scans.channel("INDO"))
