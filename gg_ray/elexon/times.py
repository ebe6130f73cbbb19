"""Instants in both of our forms, aware UTC datetimes and UTC nanoseconds, one into the other without rounding.

Flow:    [times] -> every module of elexon
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta

SECOND_NS = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)
"""The least step of a datetime: midnight less an instant is the end of a window that is closed at both ends."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def midnight(day: date) -> datetime:
    """Beginning of a UTC day."""
    return datetime.combine(day, time(), tzinfo=UTC)


def ns_of(t: datetime) -> int:
    """UTC nanoseconds of an aware time.  Raises: ValueError for a time without zone."""
    if t.tzinfo is None:
        raise ValueError(f"{t}: a time without zone; say which")
    return (t - EPOCH) // INSTANT * 1000


def at_ns(t_ns: int) -> datetime:
    """The time, UTC; what is below a microsecond is cut off."""
    return EPOCH + timedelta(microseconds=int(t_ns) // 1000)


def aware(text: str) -> datetime | None:
    """The time of ISO text with `Z` or an offset, UTC; None for any other text."""
    try:
        t = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if t.tzinfo is None else t.astimezone(UTC)


def z(t: datetime) -> str:
    """ISO text of an aware time, UTC, in whole seconds with `Z`: as the service writes times, and as we do."""
    return t.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso(t_ns: int) -> str:
    """The same of UTC nanoseconds."""
    return z(at_ns(t_ns))
