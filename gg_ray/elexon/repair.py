"""What publication does to rows, undone or counted: repeats, late versions, wrong labels, dead batches, frozen samples.

Flow:    elexon.parse -> [repair] -> Fetched.rows, Fetched.counts
Source:  defects seen in the published files; docs/gb-data.md
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import cast

import numpy as np

from gg_ray.elexon.rows import FUEL_TYPES, FUELS, FrequencyRow, FuelRow, PeriodRow, Row
from gg_ray.elexon.settlement import settlement_label
from gg_ray.elexon.source import Reject, Stream
from gg_ray.elexon.times import SECOND_NS, ns_of
from gg_ray.records import F64

log = logging.getLogger(__name__)

LOWEST_HZ, HIGHEST_HZ = 45.0, 55.0
"""Outside this the sample is no frequency of a running system: machines trip at 47 and 52 Hz."""
BATCH = 8
"""FREQ samples of one publication (2 min of 15 s): a batch sent twice under new times, or one value held as long,
does not happen by chance with three decimals."""
TEN_FUELS_SINCE = datetime(2018, 1, 1, tzinfo=UTC)
"""Since then every batch should hold all of FUELS (BIOMASS got a code of its own in November 2017)."""

OF_THE_ROWS = frozenset(
    ("off_grid", "missing", "unknown_fuel", "all_zero_batch", "partial_batch", "null_generation", "frozen")
)
"""Counts that are properties of the rows that are kept, so they are counted anew when answers are joined; the others
count what was taken out or changed, and add up."""

_KNOWN = frozenset(FUEL_TYPES)
_GENERATION = frozenset(FUELS)


def repair(stream: Stream, rows: Sequence[Row], counts: Counter[str]) -> tuple[list[Row], list[Reject]]:
    """Rows oldest first, one per key, labels derived from the start; adds to counts.

    Returns: the rows, and those that were taken out with the reason (frequency out of range).
    """
    kept = _one_per_key(rows, counts)
    rejects: list[Reject] = []
    if stream.row is FrequencyRow:
        kept, rejects = _frequency(cast(list[FrequencyRow], kept), counts)
    if stream.by_fuel:
        _batches(stream, cast(list[FuelRow], kept), counts)
    if issubclass(stream.row, PeriodRow):
        kept = _labelled(cast(list[PeriodRow], kept), counts)
    if issubclass(stream.row, PeriodRow | FrequencyRow):
        _grid(stream, kept, counts)
    return kept, rejects


def _one_per_key(rows: Sequence[Row], counts: Counter[str]) -> list[Row]:
    best: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = row.key
        held = best.setdefault(key, row)
        if held is row:
            continue
        new, old = getattr(row, "published", None), getattr(held, "published", None)
        if new == old:  # the service's list is newest first: of two values with one publication time the first stays
            counts["duplicates" if row == held else "conflicting"] += 1
            continue
        counts["superseded"] += 1
        if old is None or (new is not None and new > old):
            best[key] = row
    return [best[key] for key in sorted(best)]


@lru_cache(maxsize=4096)
def _label(start: datetime) -> tuple[date, int]:
    return settlement_label(ns_of(start))


def _labelled(rows: list[PeriodRow], counts: Counter[str]) -> list[Row]:
    """A label that disagrees with the start time is replaced: the SP48 rows of 2019 and 2021 carry the next day."""
    out: list[Row] = []
    start, label = None, None
    for row in rows:
        if row.start is not start:
            start, label = row.start, _label(row.start)
        given = (row.settlement_date, row.settlement_period)
        if given != label:
            counts["unlabelled" if given == (None, None) else "label_repaired"] += 1
            row = row.model_copy(update={"settlement_date": label[0], "settlement_period": label[1]})  # type: ignore[index]
        out.append(row)
    return out


def _grid(stream: Stream, rows: list[Row], counts: Counter[str]) -> None:
    """Counts rows off the stream's cadence (kept) and steps of it that have no row between the first and the last."""
    cadence_s = int(stream.cadence.total_seconds())
    rows_at = Counter(row.at for row in rows)
    times = np.array([ns_of(at) for at in rows_at], dtype=np.int64)
    on_grid = times % (cadence_s * SECOND_NS) == 0
    counts["off_grid"] += int(np.array(list(rows_at.values()), dtype=np.int64)[~on_grid].sum())
    if on_grid.any():
        first, last = times[on_grid].min(), times[on_grid].max()
        counts["missing"] += int((last - first) // (cadence_s * SECOND_NS)) + 1 - int(on_grid.sum())


def _frequency(rows: list[FrequencyRow], counts: Counter[str]) -> tuple[list[Row], list[Reject]]:
    kept: list[Row] = []
    rejects = []
    for row in rows:
        if LOWEST_HZ <= row.frequency_hz <= HIGHEST_HZ:
            kept.append(row)
        else:
            reason = f"frequency {row.frequency_hz:g} Hz is outside {LOWEST_HZ:g} to {HIGHEST_HZ:g} Hz"
            rejects.append(Reject(reason, row.model_dump(mode="json", by_alias=True)))
    counts["out_of_range"] += len(rejects)
    values = np.array([row.frequency_hz for row in cast(list[FrequencyRow], kept)])
    counts["frozen"] += _frozen(values)
    return kept, rejects


def _frozen(values_hz: F64) -> int:
    """Samples [N] that repeat: one value held for a batch or longer, or a batch equal to the one before it."""
    stale = np.zeros(values_hz.size, dtype=bool)
    for lag in (1, BATCH):
        if values_hz.size <= lag:
            continue
        edges = np.diff(np.concatenate(([0], (values_hz[lag:] == values_hz[:-lag]).astype(np.int8), [0])))
        for first, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            if stop - first >= BATCH - (lag == 1):
                stale[first + lag : stop + lag] = True
    return int(stale.sum())


@lru_cache(maxsize=1024)
def _warn_unknown(stream: str, code: str) -> None:
    """Once per stream and code: the cache forgets nothing until 1,024 codes came, and then we have other worries."""
    log.warning("%s: unknown fuel code %r; its rows are kept and counted as unknown_fuel", stream, code)


def _batches(stream: Stream, rows: list[FuelRow], counts: Counter[str]) -> None:
    """Counts what is wrong with the rows of one start as a whole; all stay, elexon.check decides what to believe.

    all_zero_batch   every generation code is 0 (interconnectors may drift on): a dead publication, not 0 MW
    partial_batch    a code that most batches of this answer have, or one of FUELS, is absent
    """
    batches = {start: list(batch) for start, batch in groupby(rows, attrgetter("start"))}
    seen = Counter(row.fuel for row in rows)
    usual = {code for code, times in seen.items() if 2 * times > len(batches)}
    for code in seen.keys() - _KNOWN:
        counts["unknown_fuel"] += seen[code]
        _warn_unknown(stream.name, code)
    for start, batch in batches.items():
        due = usual | _GENERATION if start >= TEN_FUELS_SINCE else usual
        codes = {row.fuel for row in batch}
        counts["partial_batch"] += not due <= codes
        outputs = [row.generation_mw for row in batch if row.fuel in _GENERATION]
        counts["all_zero_batch"] += len(outputs) > len(FUELS) // 2 and not any(mw != 0 for mw in outputs)
        counts["null_generation"] += sum(row.generation_mw is None for row in batch)
