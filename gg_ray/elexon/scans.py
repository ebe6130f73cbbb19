"""Scans: what was published of every channel at each step of a regular clock, with its age; nothing is carried over.

Flow:    rows of a source or columns of a history -> [scans] -> elexon.feeding, scenario, evaluate
Source:  docs/gb-data.md, scans
Shapes:  H periods of a table, S scans, C channels (CHANNELS)
Units:   MW (means over the period, import positive, PS negative while pumping), Hz; times are UTC nanoseconds

Where a value stands, for a clock of step_s:
    period = step     in the scan that begins with the period
    period > step     in the last scan of its period, since only then can it be known; the others are NaN and age
    period < step     the mean of the scan's periods, if every one of them is there; NaN otherwise
    FREQ              mean, least and greatest of the samples in the scan, if at least half of those due are there
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gg_ray.elexon.rows import FUEL_TYPES, FUELS, FrequencyRow, FuelRow, OneDemandRow, PeriodRow, Row
from gg_ray.elexon.source import stream_of
from gg_ray.elexon.times import SECOND_NS, ns_of
from gg_ray.records import F64, I64, U8, Bool

CHANNELS = (*FUEL_TYPES, "INDO", "ITSDO", "FREQ")
"""MW for the fuels, interconnectors and demands, Hz for FREQ. In this order everywhere."""
CHANNEL_AT = {name: i for i, name in enumerate(CHANNELS)}
STEPS = (1800, 300, 15)
"""Clocks that scans run on, seconds: half-hours, five minutes, frequency samples."""
SAMPLE_S = 15
"""FREQ publishes a sample each 15 s."""
NEVER = 255
"""Age of a channel that has published nothing yet."""
_FREQ = CHANNEL_AT["FREQ"]
_FUELS = np.array([CHANNEL_AT[name] for name in FUELS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One stream as a wide table.

    Invariant: t0_ns strictly increasing, in steps that are multiples of period_s; rows that are not there are gaps.
    period_s         what one value stands for, s; for frequency the spacing of the samples
    published_ns_HC  when each value was published, 0 unknown; None where the table never says
    """

    period_s: int
    channels: tuple[str, ...]
    t0_ns: I64
    value_HC: F64
    published_ns_HC: I64 | None = None

    def channel(self, name: str) -> F64:
        """One column [H].  Raises: KeyError with the channels there are."""
        if name not in self.channels:
            raise KeyError(f"{name}: not among {', '.join(self.channels)}")
        out: F64 = self.value_HC[:, self.channels.index(name)]
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Scans:
    """S scans on a regular clock; a scan in which nothing was published is a row of NaN.

    t0_ns            start of each scan, t0_ns[i] = t0_ns[0] + i * step_s
    value_SC         NaN where nothing was published for that scan; never invented, never carried over
    age_SC           scans since the channel was last published: 0 now, 254 that many or more, 255 never
    published_ns_SC  0 unknown
    freq_min_S, freq_max_S  least and greatest frequency sample of the scan, Hz
    counts           what was met while building: duplicate, superseded, null, off_grid, unknown_fuel:NAME
    """

    step_s: int
    t0_ns: I64
    value_SC: F64
    age_SC: U8
    published_ns_SC: I64
    freq_min_S: F64
    freq_max_S: F64
    counts: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return int(self.t0_ns.size)

    def channel(self, name: str) -> F64:
        """One channel [S].  Raises: KeyError."""
        out: F64 = self.value_SC[:, CHANNEL_AT[name]]
        return out

    @property
    def all_zero(self) -> Bool:
        """Dead publications [S]: every generation code 0 or absent, at least one there; interconnectors may live."""
        fuels = self.value_SC[:, _FUELS]
        there = np.isfinite(fuels)
        out: Bool = there.any(axis=1) & ~(there & (fuels != 0)).any(axis=1)
        return out

    def without_dead(self) -> Scans:
        """The same scans with dead publications taken out whole (NaN), for contexts that must be believable."""
        dead = self.all_zero
        return self._masked(np.broadcast_to(dead[:, None], self.value_SC.shape), dead)

    def as_known(self, t_ns: int) -> Scans:
        """What a reader at t_ns could have had: scans begun before t_ns, values published by then.

        A value without publish time is taken as known at the end of its scan. A value that was replaced later is
        absent: only its successor is held. Build with known_at_ns to have the predecessor.
        """
        count = int(np.searchsorted(self.t0_ns, t_ns, side="left"))
        cut = self[:count]
        ended = cut.t0_ns + self.step_s * SECOND_NS
        known_at = np.where(cut.published_ns_SC > 0, cut.published_ns_SC, ended[:, None])
        late = known_at > t_ns
        return cut._masked(late, late[:, _FREQ])

    def __getitem__(self, part: slice) -> Scans:
        """A run of scans; ages keep what the whole run knew, so cut after `as_known` and `without_dead`.

        Raises: ValueError for a step other than 1.
        """
        if part.step not in (None, 1):
            raise ValueError(f"scans are cut in runs, not with step {part.step}")
        names = ("t0_ns", "value_SC", "age_SC", "published_ns_SC", "freq_min_S", "freq_max_S")
        return replace(self, **{name: getattr(self, name)[part] for name in names})

    def _masked(self, gone_SC: NDArray[np.bool_], freq_gone_S: Bool) -> Scans:
        value = np.where(gone_SC, np.nan, self.value_SC)
        return replace(
            self,
            value_SC=value,
            age_SC=ages(value),
            published_ns_SC=np.where(gone_SC, 0, self.published_ns_SC),
            freq_min_S=np.where(freq_gone_S, np.nan, self.freq_min_S),
            freq_max_S=np.where(freq_gone_S, np.nan, self.freq_max_S),
        )


def ages(value_SC: F64) -> U8:
    """Scans since each channel last had a value [S, C]: 0 now, 254 that many or more, 255 never."""
    scans = np.arange(value_SC.shape[0])[:, None]
    last = np.maximum.accumulate(np.where(np.isfinite(value_SC), scans, -1), axis=0)
    out: U8 = np.where(last < 0, NEVER, np.minimum(scans - last, NEVER - 1)).astype(np.uint8)
    return out


def from_columns(
    tables: Iterable[Columns], step_s: int, start: datetime | int, end: datetime | int,
    counts: Counter[str] | None = None, known_at_ns: int | None = None,
) -> Scans:  # fmt: skip
    """Scans from wide tables, without a loop over rows.

    Args:    tables  any streams, in any number of files; where they carry a channel with different periods, only those
             with the period nearest the step are taken, and where they overlap, the later publication, then the later
             table;
             start, end  aware times or UTC nanoseconds, rounded outwards to the clock; end is not included;
             known_at_ns  leaves out what was published later
    Returns: Scans of all channels; columns that are no channel are left out.
    Raises:  ValueError for an unknown step, an empty span or a time without zone.
    """
    if step_s not in STEPS:
        raise ValueError(f"step {step_s} s; scans run on {', '.join(map(str, STEPS))} s")
    step = step_s * SECOND_NS
    first, last = _ns(start) // step, -(-_ns(end) // step)
    if last <= first:
        raise ValueError(f"the span ends ({end}) before it starts ({start})")
    size = last - first
    out = Scans(
        step_s=step_s,
        t0_ns=np.arange(first, last, dtype=np.int64) * step,
        value_SC=np.full((size, len(CHANNELS)), np.nan),
        age_SC=np.empty((0, len(CHANNELS)), dtype=np.uint8),
        published_ns_SC=np.zeros((size, len(CHANNELS)), dtype=np.int64),
        freq_min_S=np.full(size, np.nan),
        freq_max_S=np.full(size, np.nan),
        counts=Counter() if counts is None else Counter(counts),
    )
    found = list(tables)
    nearest: dict[str, tuple[bool, float]] = {}
    for table in found:
        for name in set(table.channels) & CHANNEL_AT.keys():
            nearest[name] = min(_far(table, step_s), nearest.get(name, _far(table, step_s)))
    for table in found:
        names = [name for name in table.channels if nearest.get(name) == _far(table, step_s)]
        if names:
            _place(out, table, names, first, step_s, known_at_ns)
    return replace(out, age_SC=ages(out.value_SC))


def _far(table: Columns, step_s: int) -> tuple[bool, float]:
    """Preference among tables of one channel: the step itself, then finer ones (averaged), then coarser ones."""
    return table.period_s > step_s, abs(np.log(table.period_s / step_s))


def _place(out: Scans, table: Columns, names: Sequence[str], first: int, step_s: int, known_at_ns: int | None) -> None:
    """Write a table's channels into the scans."""
    period, step = table.period_s * SECOND_NS, step_s * SECOND_NS
    at = [table.channels.index(name) for name in names]
    to = np.array([CHANNEL_AT[name] for name in names])
    # a slow value is known when its period ends: its scan is the last that the period holds
    scan = (table.t0_ns + max(period - step, 0)) // step - first
    inside = (scan >= 0) & (scan < len(out))
    scan, value = scan[inside], table.value_HC[inside][:, at]
    published: I64 = np.zeros(value.shape, dtype=np.int64)
    if table.published_ns_HC is not None:
        published = table.published_ns_HC[inside][:, at]
    if known_at_ns is not None:
        ends = table.t0_ns[inside] + period
        value = np.where(np.where(published > 0, published, ends[:, None]) > known_at_ns, np.nan, value)
    published = np.where(np.isfinite(value), published, 0)
    if not scan.size:
        return
    if _FREQ in to:
        column = int(np.flatnonzero(to == _FREQ)[0])
        _place_samples(out, scan, value[:, column], step_s)
        keep = to != _FREQ
        to, value, published = to[keep], value[:, keep], published[:, keep]
        if not to.size:
            return
    if period < step:
        begin = np.flatnonzero(np.diff(scan, prepend=-1))
        there = np.add.reduceat(np.isfinite(value), begin, axis=0)
        mean = np.add.reduceat(np.nan_to_num(value), begin, axis=0) / np.maximum(there, 1)
        value = np.where(there == step // period, mean, np.nan)
        scan, published = scan[begin], np.maximum.reduceat(published, begin, axis=0)
    at_SC = np.ix_(scan, to)  # strictly increasing times: no two rows share a scan
    new = np.isfinite(value) & (np.isnan(out.value_SC[at_SC]) | (published >= out.published_ns_SC[at_SC]))
    out.value_SC[at_SC] = np.where(new, value, out.value_SC[at_SC])
    out.published_ns_SC[at_SC] = np.where(new, published, out.published_ns_SC[at_SC])


def _place_samples(out: Scans, scan: I64, hz: F64, step_s: int) -> None:
    there = np.isfinite(hz)
    scan, hz = scan[there], hz[there]
    if not scan.size:
        return
    begin = np.flatnonzero(np.diff(scan, prepend=-1))
    count = np.diff(begin, append=scan.size)
    enough = 2 * count * SAMPLE_S >= step_s
    rows = scan[begin][enough]
    out.value_SC[rows, _FREQ] = (np.add.reduceat(hz, begin) / count)[enough]
    out.freq_min_S[rows] = np.minimum.reduceat(hz, begin)[enough]
    out.freq_max_S[rows] = np.maximum.reduceat(hz, begin)[enough]


def scans_from(
    rows_by_stream: Mapping[str, Sequence[Row]], step_s: int, start: datetime, end: datetime,
    known_at_ns: int | None = None,
) -> Scans:  # fmt: skip
    """Scans from rows in any order; the same rows in another order give the same scans.

    FUELHH, FUELINST, FREQ, DEMAND, INDO and ITSDO are used; other streams have no channel and are left out.
    known_at_ns leaves out rows published later, before the latest publication of a key is chosen.
    Raises:  UnknownStream; ValueError as from_columns.
    """
    counts: Counter[str] = Counter()
    parts: dict[int, list[_Points]] = {}
    for name, rows in rows_by_stream.items():
        stream = stream_of(name)
        # the rolling demand is a sum of FUELINST, not a channel
        if stream.name != "ROLSYSDEM" and issubclass(stream.row, _PLACED) and rows:
            period = int(stream.cadence.total_seconds())
            parts.setdefault(period, []).extend(_points(stream.name, rows, counts))
    tables = []
    for period, found in parts.items():
        channel_R, t_R, value_R, published_R = (np.concatenate([part[k] for part in found]) for k in range(4))
        keep = channel_R >= 0
        if known_at_ns is not None:
            keep &= published_R <= known_at_ns
        used = np.unique(channel_R[keep])
        table, met = pivot(
            t_R[keep], np.searchsorted(used, channel_R[keep]), value_R[keep], published_R[keep],
            tuple(CHANNELS[i] for i in used), period,
        )  # fmt: skip
        counts += met
        tables.append(table)
    return from_columns(tables, step_s, start, end, counts, known_at_ns)


_PLACED = (PeriodRow, FrequencyRow)
_Points = tuple[I64, I64, F64, I64]
"""Channel (-1 unknown), UTC ns, value (NaN for null) and publish time (0 unknown), each [R]."""


def _points(stream: str, rows: Sequence[Any], counts: Counter[str]) -> list[_Points]:
    """Rows of one stream as arrays, one part per value of a row; unknown fuels are counted."""
    if stream == "FREQ":
        return [(_all(_FREQ, rows), _times(rows, "time"), _values(rows, "frequency_hz"), _all(0, rows))]
    t_ns, published = _times(rows, "start"), _times(rows, "published")
    if stream_of(stream).row is FuelRow:
        fuels = _column(rows, "fuel")
        at = {name: CHANNEL_AT.get(name, -1) for name in set(fuels)}
        channel = np.fromiter(map(at.__getitem__, fuels), np.int64, len(fuels))
        if -1 in at.values():
            counts.update(f"unknown_fuel:{name}" for name in fuels if at[name] < 0)
        return [(channel, t_ns, _values(rows, "generation_mw"), published)]
    if stream_of(stream).row is OneDemandRow:
        return [(_all(CHANNEL_AT[stream], rows), t_ns, _values(rows, "demand_mw"), published)]
    return [
        (_all(CHANNEL_AT["INDO"], rows), t_ns, _values(rows, "indo_mw"), published),
        (_all(CHANNEL_AT["ITSDO"], rows), t_ns, _values(rows, "itsdo_mw"), published),
    ]


def _all(value: int, rows: Sequence[Any]) -> I64:
    return np.full(len(rows), value, dtype=np.int64)


def _column(rows: Sequence[Any], name: str) -> list[Any]:
    return list(map(attrgetter(name), rows))


def _values(rows: Sequence[Any], name: str) -> F64:
    return np.array(_column(rows, name), dtype=np.float64)  # None becomes NaN


def _times(rows: Sequence[Any], name: str) -> I64:
    """UTC ns; None is 0. Each distinct time is turned once: the rows of a batch share theirs."""
    times = _column(rows, name)
    ns = {t: 0 if t is None else ns_of(t) for t in set(times)}
    return np.fromiter(map(ns.__getitem__, times), np.int64, len(times))


def pivot(
    t_ns: I64, channel_R: I64, value_R: F64, published_R: I64, channels: tuple[str, ...], period_s: int
) -> tuple[Columns, Counter[str]]:
    """Long form to wide form: of each (time, channel) the latest publication; equal ones in favour of the number.

    Args:    R values: t_ns, channel_R index into channels, value_R (NaN for null), published_R (0 unknown)
    Returns: the table, and counts of duplicate (same publication again), superseded, null and off_grid values;
             values off the period's grid are left out, except frequency samples, which stand at their own second.
    """
    counts: Counter[str] = Counter()
    if channels[-1:] != ("FREQ",) or not np.all(channel_R == len(channels) - 1):
        on_grid = t_ns % (period_s * SECOND_NS) == 0
        if not on_grid.all():
            counts["off_grid"] = int(np.sum(~on_grid))
            t_ns, channel_R, value_R, published_R = (x[on_grid] for x in (t_ns, channel_R, value_R, published_R))
    t0_ns, at = np.unique(t_ns, return_inverse=True)
    cell = at.astype(np.int64) * len(channels) + channel_R
    size = t0_ns.size * len(channels)
    if cell.size and np.bincount(cell, minlength=size).max() > 1:
        # ties end with the greatest value, so that the order of the rows cannot matter
        order = np.lexsort((np.nan_to_num(value_R), np.isfinite(value_R), published_R, cell))
        cell, value_R, published_R = cell[order], value_R[order], published_R[order]
        repeats = cell[1:] == cell[:-1]
        later = published_R[1:] > published_R[:-1]
        counts["superseded"] = int(np.sum(repeats & later))
        counts["duplicate"] = int(np.sum(repeats & ~later))
        keep = np.append(~repeats, True)
        cell, value_R, published_R = cell[keep], value_R[keep], published_R[keep]
    if nulls := int(np.sum(np.isnan(value_R))):
        counts["null"] = nulls
    value: F64 = np.full(size, np.nan)
    published: I64 = np.zeros(size, dtype=np.int64)
    value[cell] = value_R
    published[cell] = published_R
    shape = (t0_ns.size, len(channels))
    table = Columns(
        period_s=period_s, channels=channels, t0_ns=t0_ns, value_HC=value.reshape(shape),
        published_ns_HC=published.reshape(shape) if published.any() else None,
    )  # fmt: skip
    return table, +counts


def _ns(t: datetime | int) -> int:
    return t if isinstance(t, int) else ns_of(t)
