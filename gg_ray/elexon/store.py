"""Rows on disk: one Parquet per stream and UTC day, written whole then renamed, its sha256 beside it.

Flow:    elexon.fetch, elexon.cache -> [store] -> elexon.check, elexon.replay, elexon.scans
Layout:  ROOT/STREAM/2024-06-04.parquet, ROOT/STREAM/2024-06-04.sha256; rows oldest first, one per key
Shapes:  R rows of a day
Limits:  one writer per folder. A day is some kilobytes; a year of FUELINST about 15 MB
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gg_ray.elexon.errors import ElexonError
from gg_ray.elexon.history import History
from gg_ray.elexon.rows import (
    FUEL_TYPES,
    DailyDemandRow,
    DemandRow,
    FrequencyRow,
    FuelRow,
    OneDemandRow,
    Row,
    WarningRow,
)
from gg_ray.elexon.scans import pivot
from gg_ray.elexon.source import Stream, stream_of
from gg_ray.elexon.times import EPOCH, ns_of
from gg_ray.files import write_atomic
from gg_ray.records import F64, I64

log = logging.getLogger(__name__)

DAMAGED = ".damaged"
_TIME = pa.timestamp("us", "UTC")
_FUEL = pa.dictionary(pa.int32(), pa.string())
_LABELS = {"settlement_date": pa.date32(), "settlement_period": pa.int64()}
_FIELDS: dict[type[Row], dict[str, Any]] = {
    FuelRow: {"start": _TIME, "fuel": _FUEL, "generation_mw": pa.int64(), "published": _TIME, **_LABELS},
    FrequencyRow: {"time": _TIME, "frequency_hz": pa.float64()},
    DemandRow: {"start": _TIME, "indo_mw": pa.int64(), "itsdo_mw": pa.int64(), "published": _TIME, **_LABELS},
    OneDemandRow: {"start": _TIME, "demand_mw": pa.int64(), "published": _TIME, **_LABELS},
    DailyDemandRow: {"settlement_date": pa.date32(), "demand_mwh": pa.int64(), "published": _TIME},
    WarningRow: {"published": _TIME, "kind": pa.string(), "text": pa.string()},
}
_VALUES = {
    FuelRow: ("generation_mw",), FrequencyRow: ("frequency_hz",), DemandRow: ("indo_mw", "itsdo_mw"),
    OneDemandRow: ("demand_mw",), DailyDemandRow: ("demand_mwh",),
}  # fmt: skip
_NAME = re.compile(r"(\d{4}-\d{2}-\d{2})\.parquet")
_FIRST = datetime.min.replace(tzinfo=UTC)


class StoreError(ElexonError):
    """A file of the store is torn, altered or not ours; the message names it and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DayInfo:
    """What a day's file says of itself: rows, distinct times (slots), and when it was last fetched."""

    rows: int
    slots: int
    fetched: datetime


def latest_of(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """One row per key: the latest publication; among equal ones the last, unless it is null and the other is not."""
    out: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = row.key
        if key not in out or _replaces(row, out[key]):
            out[key] = row
    return out


def _replaces(new: Row, old: Row) -> bool:
    then, now = (getattr(row, "published", None) or _FIRST for row in (old, new))
    if now != then:
        return bool(now > then)
    return new != old and _numbers_in(new) >= _numbers_in(old)


def _numbers_in(row: Row) -> int:
    return sum(getattr(row, name) is not None for name in _VALUES.get(type(row), ()))


class DayStore:
    """Rows by stream and UTC day.

    Invariant: a file is the whole of what was written or the whole of what stood before; what is read had its sha256
    verified. A damaged file is renamed to *.damaged, counted in `damaged` and treated as absent; with strict=True it
    raises StoreError instead and stays.
    """

    def __init__(self, root: Path | str, *, strict: bool = False) -> None:
        self.root = Path(root)
        self.strict = strict
        self.damaged: Counter[str] = Counter()
        """Files set aside, by stream."""

    def path(self, stream: str, day: date) -> Path:
        return self.root / stream_of(stream).name / f"{day.isoformat()}.parquet"

    def write(self, stream: str, day: date, rows: Sequence[Row], fetched: datetime) -> Path:
        """Replace a day.  Raises: StoreError for rows of another day or kind; OSError naming the file."""
        kind = stream_of(stream).row
        for row in rows:
            if type(row) is not kind or row.at.date() != day:
                raise StoreError(f"{stream} {day}: {row!r} belongs elsewhere; merge() finds the day of each row")
        found = sorted(latest_of(rows).items(), key=lambda item: item[0])
        path = self.path(stream, day)
        data = _to_parquet(stream_of(stream), day, [row for _, row in found], fetched)
        # The old hash stays beside the new one: whichever file a crash leaves behind, its hash is there.
        hashes = [hashlib.sha256(data).hexdigest()]
        if path.exists():
            hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
        write_atomic(path.with_suffix(".sha256"), "".join(f"{line}\n" for line in hashes))
        return write_atomic(path, data)

    def merge(self, stream: str, rows: Sequence[Row], fetched: datetime) -> int:
        """Add rows to their days; the latest publication of a key wins.

        Returns: rows that are new or changed; merging the same rows again gives 0 and only moves the fetch time.
        Raises:  as write.
        """
        by_day: dict[date, list[Row]] = {}
        for row in rows:
            by_day.setdefault(row.at.date(), []).append(row)
        news = 0
        for day, found in sorted(by_day.items()):
            held = latest_of(self._read_day(stream, day))
            changed = 0
            for key, row in latest_of(found).items():
                if key not in held or _replaces(row, held[key]):
                    held[key] = row
                    changed += 1
            info = self.info(stream, day)
            if changed or info is None or info.fetched < fetched:
                self.write(stream, day, list(held.values()), fetched)
            news += changed
        return news

    def read(self, stream: str, start: datetime, end: datetime) -> list[Row]:
        """Rows whose time lies in [start, end], oldest first.  Raises: StoreError when strict."""
        return [
            row for day in self._days_in(stream, start, end) for row in self._read_day(stream, day)
            if start <= row.at <= end
        ]  # fmt: skip

    def read_columns(self, stream: str, start: datetime, end: datetime) -> History:
        """The same span as one wide table, for scans.from_columns: no loop over rows.

        Raises: StoreError when strict, or for a stream that has no channel (INDOD, WARNINGS).
        """
        known = stream_of(stream)
        names = {DemandRow: ("INDO", "ITSDO"), OneDemandRow: (known.name,), FrequencyRow: ("FREQ",)}
        channels = FUEL_TYPES if known.row is FuelRow else names.get(known.row)
        if channels is None:
            raise StoreError(f"{known.name} has no channel; read() gives its rows")
        counts: Counter[str] = Counter()
        parts: list[tuple[I64, I64, F64, I64]] = []
        for day in self._days_in(stream, start, end):
            table = self._load(stream, day)
            if table is not None and table.num_rows:
                parts += _points(known, table, channels, counts)
        t_R, channel_R, value_R, published_R = (
            (np.concatenate([part[i] for part in parts]) for i in range(4))
            if parts else (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
        )  # fmt: skip
        inside = (t_R >= ns_of(start)) & (t_R <= ns_of(end)) & (channel_R >= 0)
        if not inside.all():
            t_R, channel_R, value_R, published_R = (x[inside] for x in (t_R, channel_R, value_R, published_R))
        period = int(known.cadence.total_seconds())
        wide, met = pivot(t_R, channel_R, value_R, published_R, channels, period)
        return History(
            path=self.root / known.name, form="store", unit="Hz" if channels == ("FREQ",) else "MW", period_s=period,
            channels=channels, t0_ns=wide.t0_ns, value_HC=wide.value_HC, published_ns_HC=wide.published_ns_HC,
            counts=counts + met, shifted=np.empty(0, dtype=np.int64),
        )  # fmt: skip

    def days(self, stream: str) -> list[date]:
        """Days that have a file, oldest first."""
        folder = self.root / stream_of(stream).name
        found = (_NAME.fullmatch(path.name) for path in folder.glob("*.parquet"))
        return sorted(date.fromisoformat(name[1]) for name in found if name)

    def info(self, stream: str, day: date) -> DayInfo | None:
        """What the day's file says of itself, from its footer; None without a readable file of ours."""
        path = self.path(stream, day)
        try:
            meta = pq.read_metadata(path).metadata or {}
            return DayInfo(
                rows=int(meta[b"gg.rows"]), slots=int(meta[b"gg.slots"]),
                fetched=datetime.fromisoformat(meta[b"gg.fetched"].decode()),
            )  # fmt: skip
        except (pa.ArrowInvalid, OSError, KeyError, ValueError):
            return None

    def trim(self, keep_days: int, now: datetime) -> None:
        """Delete the days, damaged ones too, that lie more than keep_days before now's."""
        oldest = now.astimezone(UTC).date() - timedelta(days=keep_days)
        for path in self.root.glob("*/*-*-*.*"):
            try:
                day = date.fromisoformat(path.name[:10])
            except ValueError:
                continue
            if day < oldest:
                path.unlink(missing_ok=True)

    def _days_in(self, stream: str, start: datetime, end: datetime) -> list[date]:
        first, last = (t.astimezone(UTC).date() for t in (start, end))
        return [day for day in self.days(stream) if first <= day <= last]

    def _read_day(self, stream: str, day: date) -> list[Row]:
        table = self._load(stream, day)
        return [] if table is None else _to_rows(stream_of(stream), table)

    def _load(self, stream: str, day: date) -> Any | None:
        """The verified table of a day, None where there is none."""
        path = self.path(stream, day)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _verified(path, data, stream_of(stream))
        except StoreError as error:
            if self.strict:
                raise
            self.damaged[stream_of(stream).name] += 1
            log.warning("%s; set aside as %s%s", error, path.name, DAMAGED)
            path.replace(path.with_name(path.name + DAMAGED))
            return None


def _verified(path: Path, data: bytes, stream: Stream) -> Any:
    """Raises: StoreError naming the file."""
    try:
        hashes = path.with_suffix(".sha256").read_text(encoding="utf-8").split()
    except (FileNotFoundError, UnicodeDecodeError):
        raise StoreError(f"{path}: no readable sha256 beside it; not written by us, fetch the day again") from None
    if hashlib.sha256(data).hexdigest() not in hashes:
        raise StoreError(f"{path}: damaged, its {len(data)} bytes do not match their sha256; fetch the day again")
    try:
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
    except pa.ArrowInvalid as error:
        raise StoreError(f"{path}: no readable Parquet ({error}); fetch the day again") from None
    meta = table.schema.metadata or {}
    if meta.get(b"gg.stream") != stream.name.encode() or not table.schema.equals(_schema(stream)):
        raise StoreError(f"{path}: holds {meta.get(b'gg.stream', b'something else').decode()}, not {stream.name}")
    return table


def _schema(stream: Stream) -> Any:
    return pa.schema(list(_FIELDS[stream.row].items()))


def _to_parquet(stream: Stream, day: date, rows: Sequence[Row], fetched: datetime) -> bytes:
    arrays = []
    for name, kind in _FIELDS[stream.row].items():
        values = [getattr(row, name) for row in rows]
        if kind == _TIME:
            array = pa.array([None if t is None else ns_of(t) // 1000 for t in values], pa.int64()).cast(_TIME)
        else:
            array = pa.array(values, pa.string()).dictionary_encode() if kind == _FUEL else pa.array(values, kind)
        arrays.append(array)
    meta = {
        "gg.stream": stream.name, "gg.day": day.isoformat(), "gg.fetched": fetched.astimezone(UTC).isoformat(),
        "gg.rows": str(len(rows)), "gg.slots": str(len({row.at for row in rows})),
    }  # fmt: skip
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays(arrays, schema=_schema(stream).with_metadata(meta))
    pq.write_table(table, sink, compression="zstd", row_group_size=2**20, write_statistics=False)
    return bytes(sink.getvalue())


def _to_rows(stream: Stream, table: Any) -> list[Row]:
    """Rows as they were written; their hash was verified, so they are not validated again."""
    columns = {}
    for name, kind in _FIELDS[stream.row].items():
        column = table[name]
        if kind == _TIME:
            columns[name] = [
                None if us is None else EPOCH + timedelta(microseconds=us) for us in column.cast(pa.int64()).to_pylist()
            ]
        else:
            columns[name] = column.to_pylist()
    names = list(columns)
    return [
        stream.row.model_construct(**dict(zip(names, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


def _points(
    stream: Stream, table: Any, channels: tuple[str, ...], counts: Counter[str]
) -> list[tuple[I64, I64, F64, I64]]:
    """(time ns, channel or -1, value, publish time ns or 0) of a day, one part per value column."""
    t_ns = _ns_of(table["time" if stream.row is FrequencyRow else "start"])
    published = _ns_of(table["published"]) if "published" in table.column_names else np.zeros_like(t_ns)
    if stream.row is not FuelRow:
        return [
            (t_ns, np.full(t_ns.size, i, dtype=np.int64), _float(table[name]), published)
            for i, name in enumerate(_VALUES[stream.row])
        ]
    fuel = table["fuel"].combine_chunks()
    names = fuel.dictionary.to_pylist()
    at = np.array([channels.index(name) if name in channels else -1 for name in names], dtype=np.int64)
    channel: I64 = at[fuel.indices.to_numpy()]
    for i in np.flatnonzero(at < 0):
        counts[f"unknown_fuel:{names[i]}"] += int(np.sum(fuel.indices.to_numpy() == i))
    return [(t_ns, channel, _float(table["generation_mw"]), published)]


def _float(column: Any) -> F64:
    out: F64 = column.to_numpy().astype(np.float64)  # null becomes NaN on the way
    return out


def _ns_of(column: Any) -> I64:
    raw = column.cast(pa.int64())
    out: I64 = (raw.fill_null(0) if raw.null_count else raw).to_numpy() * 1000
    return out
