"""Settlement dates and periods: always derived from the start time, never believed from a label.

Flow:    start times (UTC) -> [settlement] -> elexon.rows, elexon.history, scenario.history
Source:  Balancing and Settlement Code: periods of 30 minutes from London midnight; 46 and 50 on clock-change days
"""

from __future__ import annotations

from datetime import date, datetime
from functools import cache
from zoneinfo import ZoneInfo

from gg_ray.elexon.times import DAY, at_ns, ns_of

LONDON = ZoneInfo("Europe/London")
HALF_HOUR_NS = 1_800_000_000_000
DAY_NS = 48 * HALF_HOUR_NS


@cache
def midnight_ns(day: date) -> int:
    """UTC nanoseconds at which the London day begins."""
    start = datetime(day.year, day.month, day.day, tzinfo=LONDON)
    return ns_of(start)


def periods_in_day(day: date) -> int:
    """Settlement periods of a London day: 46, 48 or 50."""
    return (midnight_ns(day + DAY) - midnight_ns(day)) // HALF_HOUR_NS


def settlement_label(t0_ns: int) -> tuple[date, int]:
    """London settlement date and period (from 1) of the half-hour that holds t0_ns (UTC)."""
    day = at_ns(t0_ns).astimezone(LONDON).date()
    return day, (t0_ns - midnight_ns(day)) // HALF_HOUR_NS + 1


def settlement_start_ns(day: date, period: int) -> int | None:
    """UTC start of a labelled half-hour; None if the day has no such period (period 50 of a 48-period day)."""
    if not 1 <= period <= periods_in_day(day):
        return None
    return midnight_ns(day) + (period - 1) * HALF_HOUR_NS
