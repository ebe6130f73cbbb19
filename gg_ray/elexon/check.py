"""Quality of a history or store: what is missing, dead, late, mislabelled or out of balance, counted and placed.

Flow:    elexon.history, elexon.store -> [check] -> data_commands (table, JSON)
Source:  docs/gb-data.md, traps; r = sum of fuels + PS + sum of interconnectors - INDO; elexon.energy on INDOD
Shapes:  H periods of a table on its regular clock, missing ones as NaN
Units:   MW, Hz, s

A finding is a fact about the publication, not a verdict on the grid: a real disturbance can stand in the list.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gg_ray.elexon.energy import stored_energies
from gg_ray.elexon.history import History, read_any
from gg_ray.elexon.rows import FUEL_TYPES, FUELS, INTERCONNECTOR_MW
from gg_ray.elexon.settlement import DAY_NS, HALF_HOUR_NS, midnight_ns, periods_in_day, settlement_label
from gg_ray.elexon.source import STREAMS, stream_of
from gg_ray.elexon.store import DayStore
from gg_ray.elexon.times import DAY, INSTANT, SECOND_NS, iso, midnight
from gg_ray.records import F64, I64, Bool

DEAD_MW = -6_000.0
"""Residual under which a half-hour's generation was not published: the rule of the labelled list."""
SHORT_MW = -2_000.0
"""Residual under which part of a half-hour was not published, usually one or two dead five-minute records."""
WINDOW = 14 * 48
"""Half-hours of the rolling median and median absolute deviation, backwards only: 14 days."""
WINDOW_LEAST = 48
OUTLIER_SIGMA = 8.0
SIGMA_FLOOR_MW = 40.0
OVER_NOMINAL = 1.1
"""Share of an interconnector's nominal capacity above which a flow is no measurement."""
FROZEN_S = 60
FROZEN_SAMPLES = 8
"""Frequency is frozen when it repeats for so long and so often; noise moves it by some mHz each second."""
POSSIBLE_HZ = (45.0, 55.0)
OPERATIONAL_HZ = (49.8, 50.2)
LATE_S = 60
"""Seconds after its period's end, and after the usual lag of its stream, at which a publication is late."""
BURST = 3
"""Late slots that one moment published, from which they are a burst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One stretch: what, from the start of its first period to the start of its last, UTC ns, and how many periods."""

    kind: str
    first_ns: int
    last_ns: int
    count: int
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class Quality:
    """Report on one file or stream.

    counts    what was met, by name; 0 is left out
    findings  stretches in time order within a kind
    """

    name: str
    form: str
    period_s: int
    rows: int
    first_ns: int | None
    last_ns: int | None
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def of(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]

    def as_json(self) -> dict[str, Any]:
        """Plain values, times as ISO text."""
        out = dataclasses.asdict(self) | {"counts": dict(sorted(self.counts.items()))}
        for item in (out, *out["findings"]):
            for name in ("first", "last"):
                t_ns = item.pop(f"{name}_ns")
                item[name] = None if t_ns is None else iso(t_ns)
        return out


def check_path(path: Path, zone: str | None = None) -> list[Quality]:
    """Reports on a history file, or on every stream of a store's folder.

    Raises: HistoryError, StoreError.
    """
    if not path.is_dir():
        return [check(read_any(path, zone))]
    store = DayStore(path)
    return [check_store(store, stream) for stream in streams_in(store)]


def check_store(store: DayStore, stream: str) -> Quality:
    """Report on one stream of a store, its whole span. Damaged files are set aside and counted (`damaged_file`)."""
    days = store.days(stream)
    if not days:
        return Quality(name=f"{store.root}: {stream}", form="store", period_s=0, rows=0, first_ns=None, last_ns=None)
    end = midnight(days[-1]) + DAY - INSTANT
    if stream == "INDOD":
        found = _daily_energy(store, days)
    else:
        found = check(store.read_columns(stream, midnight(days[0]), end), stream_of(stream).lag)
    if damaged := store.damaged[stream]:
        found.counts["damaged_file"] = damaged
    return found


def _daily_energy(store: DayStore, days: Sequence[date]) -> Quality:
    """INDOD against half the sum of INDO. A day that lacks a period, or whose figure came early, is not compared."""
    found = stored_energies(store, days[0], days[-1])
    starts = [midnight_ns(one.day) for one in found]
    out = Quality(
        name=str(store.root / "INDOD"), form="store", period_s=DAY // timedelta(seconds=1), rows=len(found),
        first_ns=starts[0] if found else None, last_ns=starts[-1] if found else None,
    )  # fmt: skip
    out.counts["days_compared"] = sum(one.comparable for one in found)
    out.counts["days_not_comparable"] = len(found) - out.counts["days_compared"]
    out.counts["days_off_their_energy"] = sum(one.differs for one in found)
    absent = sorted({midnight_ns(days[0] + i * DAY) for i in range((days[-1] - days[0]).days + 1)} - set(starts))
    out.counts["missing_slots"] = len(absent)
    out.findings += [Finding(kind="gap", first_ns=at, last_ns=at, count=1) for at in absent]
    out.findings += [
        Finding(kind="daily_energy", first_ns=start, last_ns=start, count=1, detail=str(one))
        for one, start in zip(found, starts, strict=True) if one.differs
    ]  # fmt: skip
    out.counts = +out.counts
    return out


def check(history: History, lag: timedelta = timedelta(0)) -> Quality:
    """All checks that apply to a table; those that need a channel it lacks are passed over.

    Args:    lag  usual time from the end of a period to its publication
    """
    size = history.t0_ns.size
    out = Quality(
        name=str(history.path), form=history.form, period_s=history.period_s, rows=size, counts=Counter(history.counts),
        first_ns=int(history.t0_ns[0]) if size else None, last_ns=int(history.t0_ns[-1]) if size else None,
    )  # fmt: skip
    if not size:
        return out
    grid = _Grid(history, int(lag.total_seconds()))
    for test in (_gaps, _short_days, _dead, _partial, _late, _balance, _over_nominal, _frequency):
        for finding in test(history, grid, out.counts):
            out.findings.append(finding)
    out.counts = +out.counts
    return out


class _Grid:
    """A history on its regular clock: t_ns [H], value by channel with NaN where nothing was published."""

    def __init__(self, history: History, lag_s: int) -> None:
        step = history.period_s * SECOND_NS
        first = int(history.t0_ns[0])
        self._history, self.lag_s = history, lag_s
        self._at = (history.t0_ns - first) // step
        self.t_ns: I64 = first + np.arange(int(self._at[-1]) + 1, dtype=np.int64) * step
        self.there: Bool = np.zeros(self.t_ns.size, dtype=np.bool_)
        self.there[self._at] = np.isfinite(history.value_HC).any(axis=1)

    def _spread(self, value: F64) -> F64:
        out: F64 = np.full((self.t_ns.size, *value.shape[1:]), np.nan)
        out[self._at] = value
        return out

    def values(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], F64]:
        """The channels of `names` that the table has, and their values [H, C]."""
        used = tuple(name for name in names if name in self._history.channels)
        at = [self._history.channels.index(name) for name in used]
        return used, self._spread(self._history.value_HC[:, at])

    def published(self) -> I64 | None:
        """Newest publish time of each slot [H], 0 unknown."""
        table = self._history.published_ns_HC
        if table is None:
            return None
        out: I64 = np.zeros(self.t_ns.size, dtype=np.int64)
        out[self._at] = np.max(table, axis=1, initial=0)
        return out

    def findings(self, kind: str, mask: NDArray[np.bool_], detail: str = "") -> Iterator[Finding]:
        """One finding per run of True."""
        edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            first, last = int(self.t_ns[begin]), int(self.t_ns[end - 1])
            yield Finding(kind=kind, first_ns=first, last_ns=last, count=end - begin, detail=detail)


def _gaps(history: History, grid: _Grid, counts: Counter[str]) -> Iterator[Finding]:
    counts["missing_slots"] = int(np.sum(~grid.there))
    yield from grid.findings("gap", ~grid.there)


def _short_days(history: History, grid: _Grid, counts: Counter[str]) -> Iterator[Finding]:
    """Half-hours per London day against 46, 48 or 50; the first and last day of a table may be cut by its edges."""
    if history.period_s * SECOND_NS != HALF_HOUR_NS:
        return
    days = Counter(settlement_label(int(t))[0] for t in grid.t_ns[grid.there])
    first, last = settlement_label(int(grid.t_ns[0]))[0], settlement_label(int(grid.t_ns[-1]))[0]
    for i in range((last - first).days + 1):
        day = first + timedelta(days=i)
        start, due = midnight_ns(day), periods_in_day(day)
        if start < grid.t_ns[0] or start + (due - 1) * HALF_HOUR_NS > grid.t_ns[-1]:
            continue
        if due != 48:
            counts[f"days_of_{days[day]}_periods"] += 1
        if days[day] != due:
            counts["short_days"] += 1
            detail = f"{day}: {days[day]} of {due} periods"
            yield Finding(kind="short_day", first_ns=start, last_ns=start, count=due - days[day], detail=detail)


def _dead(history: History, grid: _Grid, counts: Counter[str]) -> Iterator[Finding]:
    """Every generation code exactly 0: a dead publication, whatever the interconnectors say."""
    names, mw = grid.values(FUELS)
    if len(names) < 2:  # one code alone may well be 0
        return
    there = np.isfinite(mw)
    dead: Bool = there.any(axis=1) & ~(there & (mw != 0)).any(axis=1)
    counts["all_zero_slots"] = int(dead.sum())
    yield from grid.findings("all_zero", dead)


def _partial(history: History, grid: _Grid, counts: Counter[str]) -> Iterator[Finding]:
    """Slots that lack a code which was published before and after: partial batches, or a code that pauses for days."""
    names, mw = grid.values(FUEL_TYPES)
    if not names or history.form == "fuelinst_legacy":  # its clipped values are unknown by design
        return
    there = np.isfinite(mw)
    begun = np.logical_or.accumulate(there, axis=0)
    not_ended = np.logical_or.accumulate(there[::-1], axis=0)[::-1]
    lacking: Bool = begun & not_ended & ~there & np.any(there, axis=1, keepdims=True)
    for i, name in enumerate(names):
        for finding in grid.findings("absent_code", lacking[:, i], name):
            if finding.last_ns - finding.first_ns >= DAY_NS:
                counts["absent_code_slots"] += finding.count
                lacking[(grid.t_ns >= finding.first_ns) & (grid.t_ns <= finding.last_ns), i] = False
                yield finding
    partial: Bool = np.logical_or.reduce(lacking, axis=1)
    counts["partial_slots"] = int(partial.sum())
    for finding in grid.findings("partial", partial):
        rows = (grid.t_ns >= finding.first_ns) & (grid.t_ns <= finding.last_ns)
        absent = ", ".join(names[i] for i in np.flatnonzero(lacking[rows].any(axis=0)))
        yield dataclasses.replace(finding, detail=f"without {absent}")


def _late(history: History, grid: _Grid, counts: Counter[str]) -> Iterator[Finding]:
    """Slots published more than a minute after their end, and moments that published several of them at once."""
    published = grid.published()
    if published is None:
        return
    period = history.period_s * SECOND_NS
    delay = published - grid.t_ns - period
    late = (published > 0) & (delay > (grid.lag_s + LATE_S) * SECOND_NS)
    counts["late_slots"] = int(late.sum())
    if not late.any():
        return
    counts["longest_delay_s"] = int(delay[late].max()) // SECOND_NS
    moments = published[late] // (60 * SECOND_NS)
    for moment in np.unique(moments):
        slots = grid.t_ns[late][moments == moment]
        if slots.size >= BURST:
            counts["bursts"] += 1
            detail = f"published together at {iso(int(moment) * 60 * SECOND_NS)}"
            yield Finding(
                kind="burst", first_ns=int(slots[0]), last_ns=int(slots[-1]), count=int(slots.size), detail=detail
            )


def _balance(history: History, grid: _Grid, counts: Counter[str]) -> Iterator[Finding]:
    """Residual of the half-hours: unpublished generation by its size, and outliers against the two weeks before."""
    names, mw = grid.values(FUEL_TYPES)
    demand, indo = grid.values(("INDO",))
    if not demand or not set(FUELS) <= set(names):
        return
    residual = np.where(np.isfinite(mw).any(axis=1), np.nansum(mw, axis=1), np.nan) - indo[:, 0]
    counts["without_demand"] = int(np.sum(grid.there & np.isnan(indo[:, 0])))
    dead, short = residual < DEAD_MW, (residual >= DEAD_MW) & (residual < SHORT_MW)
    counts["dead_generation"], counts["short_generation"] = int(dead.sum()), int(short.sum())
    yield from grid.findings("dead_generation", dead, f"residual below {DEAD_MW:,.0f} MW")
    yield from grid.findings("short_generation", short, f"residual {DEAD_MW:,.0f} to {SHORT_MW:,.0f} MW")
    outlier = residual_outliers(residual)
    counts["residual_outliers"] = int(outlier.sum())
    yield from grid.findings("residual", outlier & ~dead & ~short, f"more than {OUTLIER_SIGMA:g} sigma off its median")


def residual_outliers(residual: F64) -> Bool:
    """True where |r - median| > 8 sigma of the 14 days before it [H]; sigma is 1.4826 MAD, at least 40 MW."""
    series = pd.Series(residual)
    off = (series - series.rolling(WINDOW, min_periods=WINDOW_LEAST).median()).abs()
    sigma = 1.4826 * off.rolling(WINDOW, min_periods=WINDOW_LEAST).median()
    out: Bool = (off > OUTLIER_SIGMA * sigma.clip(lower=SIGMA_FLOOR_MW)).to_numpy(dtype=np.bool_)
    return out


def _over_nominal(history: History, grid: _Grid, counts: Counter[str]) -> Iterator[Finding]:
    names, mw = grid.values(tuple(INTERCONNECTOR_MW))
    nominal = np.array([INTERCONNECTOR_MW[name] for name in names], dtype=np.float64)
    over = np.abs(mw) > OVER_NOMINAL * nominal
    counts["over_nominal_slots"] = int(over.any(axis=1).sum())
    for i, name in enumerate(names):
        for finding in grid.findings("over_nominal", over[:, i]):
            rows = (grid.t_ns >= finding.first_ns) & (grid.t_ns <= finding.last_ns)
            most = mw[rows, i][np.argmax(np.abs(mw[rows, i]))]
            yield dataclasses.replace(finding, detail=f"{name} {most:,.0f} MW on {nominal[i]:,.0f}")


def _frequency(history: History, grid: _Grid, counts: Counter[str]) -> Iterator[Finding]:
    names, values = grid.values(("FREQ",))
    if not names:
        return
    hz = values[:, 0]
    there = np.isfinite(hz)
    impossible = there & ((hz < POSSIBLE_HZ[0]) | (hz > POSSIBLE_HZ[1]))
    counts["impossible_frequency"] = int(impossible.sum())
    yield from grid.findings("impossible_frequency", impossible)
    same: Bool = np.zeros(hz.size, dtype=np.bool_)
    same[1:] = hz[1:] == hz[:-1]
    for finding in grid.findings("frozen_frequency", same):
        samples = finding.count + 1  # a run of repeats begins one sample earlier
        if samples >= FROZEN_SAMPLES and samples * history.period_s >= FROZEN_S:
            counts["frozen_samples"] += samples
            yield dataclasses.replace(finding, count=samples, first_ns=finding.first_ns - history.period_s * SECOND_NS)
    low, high = OPERATIONAL_HZ
    for kind, mask in (("below", there & (hz < low)), ("above", there & (hz > high))):
        counts[f"s_{kind}_operational"] = int(mask.sum()) * history.period_s
        yield from grid.findings(f"{kind}_operational", mask, f"{low if kind == 'below' else high} Hz")


def streams_in(store: DayStore) -> list[str]:
    """Streams with numbers of which the store holds days."""
    return [name for name in STREAMS if name != "WARNINGS" and store.days(name)]
