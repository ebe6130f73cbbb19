"""Every history file of the data folder as one wide table, its defects repaired and counted.

Flow:    data folder (CSV, Parquet) -> [history: read_any] -> elexon.scans, elexon.check, elexon.replay
Source:  the data folder's README.md and PROVENANCE.md (known defects, by number in the comments below)
Shapes:  H periods that the file holds, C columns; a period that is not there is a gap
Units:   MW (means over the period), Hz, kWh or Wh for low-voltage meters; times are UTC nanoseconds

A file is known by its header, not by its name. Lists of events are read by elexon.events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gg_ray.elexon.halfhours import read_half_hours
from gg_ray.elexon.rows import FUEL_TYPES, INTERCONNECTOR_MW
from gg_ray.elexon.scans import CHANNEL_AT, CHANNELS, Columns, pivot
from gg_ray.elexon.settlement import settlement_label, settlement_start_ns
from gg_ray.elexon.tables import HistoryError, Table, csv_header, instants, labels, numbers, read_table
from gg_ray.elexon.times import SECOND_NS
from gg_ray.records import F64, I64

__all__ = ["History", "HistoryError", "UnknownForm", "read_any", "sample"]

PARQUET_MAGIC = b"PAR1"
SOLAR_SOURCE = "Sheffield Solar PVLive"
"""Rows of this origin were mixed into a FUELINST copy as fuelType SOLAR, without publish time."""


class UnknownForm(HistoryError):
    """A file that is no history: its columns are those of nothing we read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History(Columns):
    """One file, ready for scans.from_columns.

    form    fuelhh_year, fuel_long, fuelinst_legacy, frequency, embedded, neso_demand, household or feeder
    counts  repairs and omissions by name: shifted_label, duplicate, off_grid, foreign_row, clipped_unknown ..
    shifted rows whose settlement date stood a day late, UTC ns
    """

    path: Path
    form: str
    unit: str
    counts: Counter[str]
    shifted: I64


def read_any(path: Path | str, zone: str | None = None) -> History:
    """Read one history file of any known form.

    Args:    zone  of times that carry no offset (`UTC` or `Europe/London`); without it such files are refused
    Raises:  HistoryError naming the file, row and column; UnknownForm with the forms that are known.
    """
    path = Path(path)
    if not path.is_file():
        raise HistoryError(f"{path}: {'a folder; name the files in it' if path.is_dir() else 'no such file'}")
    with path.open("rb") as file:
        is_parquet = file.read(4) == PARQUET_MAGIC
    names = set(_parquet_names(path) if is_parquet else csv_header(path))
    for needed, reader in _FORMS:
        if needed <= names and (is_parquet or reader is not _fuel_long):
            return reader(path, zone)
    if names & _EVENT_MARKS:
        raise UnknownForm(f"{path}: a list of events, not a history; gg_ray.elexon.events reads it")
    known = "; ".join(", ".join(sorted(needed)) for needed, _ in _FORMS)
    raise UnknownForm(f"{path}: columns {', '.join(sorted(names)) or '(none)'} are no known form. Known by: {known}")


def sample(history: History, every_s: int = 15, phase_s: int = 0) -> History:
    """Frequency as the 15-s feed would show it: the samples at phase, phase + every, .. of each minute.

    Raises: ValueError unless every_s divides a minute and 0 <= phase_s < every_s.
    """
    if every_s < 1 or 60 % every_s or not 0 <= phase_s < every_s:
        raise ValueError(
            f"samples each {every_s} s with phase {phase_s} s; a divisor of 60 and a phase below it are due"
        )
    keep = (history.t0_ns // SECOND_NS) % every_s == phase_s
    return replace(history, period_s=every_s, t0_ns=history.t0_ns[keep], value_HC=history.value_HC[keep])


def _fuelhh_year(path: Path, zone: str | None) -> History:
    table = read_half_hours(path)
    return History(
        path=path, form="fuelhh_year", unit="MW", period_s=1800, channels=table.channels, t0_ns=table.t0_ns,
        value_HC=table.value_HC, counts=table.counts, shifted=table.shifted,
    )  # fmt: skip


def _fuel_long(path: Path, zone: str | None) -> History:
    """One row per period and fuel, in any order (defect 6): FUELINST, or FUELHH by its `dataset` column."""
    names = ["periodStartUTC", "fuelType", "generationMW", "publishTimeUTC"]
    have = _parquet_names(path)
    table = _read_parquet(path, [name for name in (*names, "source", "dataset") if name in have])
    counts: Counter[str] = Counter()
    if "source" in have:
        foreign = pc.fill_null(pc.equal(table["source"], SOLAR_SOURCE), False)
        if count := int(pc.sum(foreign).as_py() or 0):
            counts["foreign_row"] = count
            table = table.filter(pc.invert(foreign))
    datasets = [str(name).upper() for name in pc.unique(table["dataset"]).to_pylist()] if "dataset" in have else []
    if len(datasets) > 1:
        raise HistoryError(f"{path}: column dataset: {' and '.join(sorted(datasets))} in one file; split it")
    period = 1800 if datasets == ["FUELHH"] else 300
    fuel = table["fuelType"].combine_chunks().dictionary_encode()
    channel_of = np.array([CHANNEL_AT.get(name, -1) for name in fuel.dictionary.to_pylist()] or [-1])
    if fuel.null_count or table["periodStartUTC"].null_count:
        raise HistoryError(f"{path}: column fuelType or periodStartUTC has empty values")
    channel = channel_of[fuel.indices.to_numpy(zero_copy_only=False)]
    t_ns = _utc_ns(path, table["periodStartUTC"], "periodStartUTC", zone)
    published = np.zeros(t_ns.size, dtype=np.int64)
    if "publishTimeUTC" in have:
        published = _utc_ns(path, table["publishTimeUTC"], "publishTimeUTC", zone)
    value = table["generationMW"].cast(pa.float64()).to_numpy()
    known = channel >= 0
    for i in np.flatnonzero(channel_of < 0):
        name = fuel.dictionary[int(i)].as_py()
        counts[f"unknown_fuel:{name}"] = int(pc.sum(pc.equal(fuel.indices, int(i))).as_py() or 0)
    wide, met = pivot(t_ns[known], channel[known], value[known], published[known], FUEL_TYPES, period)
    there = np.flatnonzero(np.isfinite(wide.value_HC).any(axis=0))
    return History(
        path=path, form="fuel_long", unit="MW", period_s=period, t0_ns=wide.t0_ns,
        channels=tuple(FUEL_TYPES[i] for i in there),
        value_HC=wide.value_HC[:, there], counts=counts + met, shifted=_NONE,
        published_ns_HC=None if wide.published_ns_HC is None else wide.published_ns_HC[:, there],
    )  # fmt: skip


def _fuelinst_legacy(path: Path, zone: str | None) -> History:
    """Wide five-minute rows of the closed service (defect 7): `spot_time_as_filed` is an hour early and marks the end.

    PS and interconnectors were clipped at 0, so a 0 there is unknown; a positive one stands.
    """
    table = read_table(path, ("start_time_utc", "settlement_date", "settlement_period"))
    t0_ns = instants(table, "start_time_utc", 300, "five minutes")
    channels = tuple(name for name in FUEL_TYPES if name in table.columns)
    value = np.stack([numbers(table, name, "MW") for name in channels], axis=1)
    clipped = [i for i, name in enumerate(channels) if name == "PS" or name in INTERCONNECTOR_MW]
    counts: Counter[str] = Counter(clipped_unknown=int(np.sum(value[:, clipped] == 0)))
    value[:, clipped] = np.where(value[:, clipped] == 0, np.nan, value[:, clipped])
    wrong = [settlement_label(int(t)) != filed for t, filed in zip(t0_ns, labels(table), strict=True)]
    counts["label_disagrees"] = sum(wrong)
    return _ordered(
        path, "fuelinst_legacy", "MW", 300, channels, t0_ns, value, counts + _strangers(table, channels), table
    )


def _frequency_csv(path: Path, zone: str | None) -> History:
    table = read_table(path, ("utc_time", "frequency_hz"))
    t0_ns, hz = instants(table, "utc_time"), numbers(table, "frequency_hz", "Hz")
    return _ordered(path, "frequency", "Hz", _spacing(t0_ns), ("FREQ",), t0_ns, hz[:, None], Counter(), table)


def _frequency_dtm(path: Path, zone: str | None) -> History:
    """NESO's monthly one-second series: `dtm` without offset (defect 8), so the caller must say which clock it is."""
    if _is_parquet(path):
        found = _read_parquet(path, ["dtm", "f"])
        text, hz = found["dtm"].combine_chunks(), found["f"].cast(pa.float64()).to_numpy()
    else:
        table = read_table(path, ("dtm", "f"))
        text, hz = pa.array(table.columns["dtm"]), numbers(table, "f", "Hz")
    t_ns = _utc_ns(path, pa.chunked_array([text]), "dtm", zone)
    return _ordered(path, "frequency", "Hz", _spacing(t_ns), ("FREQ",), t_ns, hz[:, None], Counter(), None)


def _embedded(path: Path, zone: str | None) -> History:
    table = read_table(path, ("period_start_utc", "settlement_date", "settlement_period"))
    t0_ns = instants(table, "period_start_utc", 1800, "half-hour")
    channels = tuple(name for name in table.columns if name.startswith("embedded_"))
    value = np.stack([numbers(table, name, "MW") for name in channels], axis=1)
    wrong = [settlement_label(int(t)) != filed for t, filed in zip(t0_ns, labels(table), strict=True)]
    return _ordered(path, "embedded", "MW", 1800, channels, t0_ns, value, Counter(label_disagrees=sum(wrong)), table)


def _neso_demand(path: Path, zone: str | None) -> History:
    """NESO's demand data update: labels only, dates ISO or DD-MON-YYYY. ND and TSD are not INDO and ITSDO."""
    table = read_table(path, ("SETTLEMENT_DATE", "SETTLEMENT_PERIOD", "ND"))
    t0: list[int] = []
    for i, (day, period) in enumerate(labels(table, "SETTLEMENT_DATE", "SETTLEMENT_PERIOD")):
        start = settlement_start_ns(day, period)
        if start is None:
            raise HistoryError(f"{table.where(i)}, column SETTLEMENT_PERIOD: {day} has no period {period}")
        t0.append(start)
    channels = tuple(
        name for name in table.columns
        if name in ("ND", "TSD") or name.startswith("EMBEDDED_") or name.endswith("_FLOW")
    )  # fmt: skip
    value = np.stack([numbers(table, name, "MW") for name in channels], axis=1)
    t0_ns = np.array(t0, dtype=np.int64)
    return _ordered(path, "neso_demand", "MW", 1800, channels, t0_ns, value, Counter(), table)


def _household(path: Path, zone: str | None) -> History:
    """Low Carbon London: one row per household and half-hour, local text times (zone), blanks around the numbers."""
    table = read_table(path, ("LCLid", "tstp", "energy_kWh"))
    text = pa.array([stamp.partition(".")[0] for stamp in table.columns["tstp"]])
    t_ns = _utc_ns(path, pa.chunked_array([text]), "tstp", zone, ordered=False)
    return _by_id(path, "household", "kWh", table.columns["LCLid"], t_ns, numbers(table, "energy_kWh", "kWh"))


def _feeder(path: Path, zone: str | None) -> History:
    """SSEN feeders: active import per feeder and half-hour, Wh; ids are text, since they begin with zeros."""
    table = read_table(path, ("dataset_id", "data_collection_log_timestamp", "total_consumption_active_import"))
    t_ns = instants(table, "data_collection_log_timestamp", 1800, "half-hour")
    value = numbers(table, "total_consumption_active_import", "Wh")
    return _by_id(path, "feeder", "Wh", table.columns["dataset_id"], t_ns, value)


def _by_id(path: Path, form: str, unit: str, ids: list[str], t_ns: I64, value: F64) -> History:
    names, channel = np.unique(np.array(ids), return_inverse=True)
    channels = tuple(str(name) for name in names)
    wide, counts = pivot(t_ns, channel.astype(np.int64), value, np.zeros(t_ns.size, dtype=np.int64), channels, 1800)
    return History(
        path=path, form=form, unit=unit, period_s=1800, channels=channels, t0_ns=wide.t0_ns, value_HC=wide.value_HC,
        counts=counts, shifted=_NONE,
    )  # fmt: skip


def _ordered(
    path: Path, form: str, unit: str, period_s: int, channels: tuple[str, ...], t0_ns: I64, value_HC: F64,
    counts: Counter[str], table: Table | None,
) -> History:  # fmt: skip
    """Rows by time; the same row again is counted, two different values of one time are refused."""
    order = np.argsort(t0_ns, kind="stable")
    t0_ns, value_HC = t0_ns[order], value_HC[order]
    again = np.flatnonzero(np.diff(t0_ns) == 0)
    for i in again:
        if not np.array_equal(value_HC[i], value_HC[i + 1], equal_nan=True):
            line = int(order[i + 1])
            where = f"{path}: row {line + 1}" if table is None else table.where(line)
            raise HistoryError(f"{where}: a second row of the same time with other values")
    keep = np.ones(t0_ns.size, dtype=np.bool_)
    keep[again + 1] = False
    return History(
        path=path, form=form, unit=unit, period_s=period_s, channels=channels, t0_ns=t0_ns[keep],
        value_HC=value_HC[keep], counts=+(counts + Counter(duplicate=int(again.size))), shifted=_NONE,
    )  # fmt: skip


def _strangers(table: Table, channels: tuple[str, ...]) -> Counter[str]:
    """Columns in capitals that are no known fuel."""
    unknown = [name for name in table.columns if name.isupper() and name not in CHANNELS and name not in channels]
    return Counter({f"unknown_fuel:{name}": table.rows for name in unknown})


def _spacing(t0_ns: I64) -> int:
    """Usual distance of samples, s."""
    gaps = np.diff(np.sort(t0_ns))
    return max(1, int(np.median(gaps[gaps > 0])) // SECOND_NS) if np.any(gaps > 0) else 1


def _utc_ns(path: Path, column: Any, name: str, zone: str | None, ordered: bool = True) -> I64:
    """A column of times or of `YYYY-MM-DD HH:MM:SS` text as UTC nanoseconds; null is 0.

    Without offsets the zone must be given. In the hour that a local clock runs through twice the second pass is told
    by the order of the rows; where they are in no such order (ordered=False) the first pass is taken.
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            column = pc.strptime(pc.replace_substring(column, "T", " "), "%Y-%m-%d %H:%M:%S", "s")
        except pa.ArrowInvalid as error:
            raise HistoryError(f"{path}: column {name}: {error}") from None
    if not pa.types.is_timestamp(column.type):
        raise HistoryError(f"{path}: column {name} is {column.type}, no time")
    if column.type.tz is None:
        if zone is None:
            raise HistoryError(
                f"{path}: column {name} carries no offset, and its clock is not known: say --zone UTC or Europe/London"
            )
        try:
            first, second = (
                _as_ns(pc.assume_timezone(column, zone, ambiguous=which, nonexistent="raise"))
                for which in ("earliest", "latest")
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise HistoryError(f"{path}: column {name}: {error}; is the zone {zone!r} right?") from None
        if not ordered or not first.size:
            return first
        before = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(first)[:-1]])
        return np.where((first != second) & (first <= before), second, first)
    return _as_ns(column)


def _as_ns(column: Any) -> I64:
    out: I64 = pc.fill_null(column.cast(pa.timestamp("ns", "UTC")).cast(pa.int64()), 0).to_numpy()
    return out


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == PARQUET_MAGIC


def _parquet_names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise HistoryError(f"{path}: no readable Parquet ({error}); is it cut off?") from None


def _read_parquet(path: Path, names: list[str]) -> Any:
    try:
        return pq.read_table(path, columns=names, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise HistoryError(f"{path}: no readable Parquet ({error}); is it cut off?") from None


_NONE: I64 = np.empty(0, dtype=np.int64)
_EVENT_MARKS = {"all_fuels_zero", "first_utc", "shortfall"}
_FORMS: tuple[tuple[frozenset[str], Callable[[Path, str | None], History]], ...] = (
    (frozenset({"spot_time_as_filed", "start_time_utc"}), _fuelinst_legacy),
    (frozenset({"period_start_utc", "settlement_date", "CCGT", "INDO"}), _fuelhh_year),
    (frozenset({"periodStartUTC", "fuelType", "generationMW"}), _fuel_long),
    (frozenset({"utc_time", "frequency_hz"}), _frequency_csv),
    (frozenset({"dtm", "f"}), _frequency_dtm),
    (frozenset({"period_start_utc", "embedded_wind_mw"}), _embedded),
    (frozenset({"SETTLEMENT_DATE", "SETTLEMENT_PERIOD", "ND"}), _neso_demand),
    (frozenset({"LCLid", "tstp", "energy_kWh"}), _household),
    (frozenset({"dataset_id", "data_collection_log_timestamp"}), _feeder),
)
