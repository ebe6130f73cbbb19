"""Labelled events: dead publications, days that were never published whole, and the record of 9 August 2019.

Flow:    data folder (events/*.csv, events/*.toml, known_gaps.csv) -> [events] -> elexon.check, evaluate
Source:  the data folder's PROVENANCE.md; the record cites the operator's and the regulator's reports
Units:   MW; times are UTC nanoseconds
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gg_ray.elexon.settlement import HALF_HOUR_NS, midnight_ns, periods_in_day
from gg_ray.elexon.tables import HistoryError, csv_header, instants, numbers, parse_date, read_table
from gg_ray.elexon.times import SECOND_NS, aware, ns_of

RECORD = "stability-2019-event.toml"
"""The cited record, beside the swing-model input that counts its seconds from the record's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One labelled stretch, from first_ns to last_ns (UTC, both included); an instant has both equal.

    kind   dead_generation, all_zero, short_day, loss, or a moment of the record (fault, lfdd_trigger ..)
    size   MW for residuals and losses, periods for gaps; None where the label has none
    """

    kind: str
    first_ns: int
    last_ns: int
    size: float | None = None
    detail: str = ""


def read_events(path: Path | str) -> list[Event]:
    """Events of a CSV or TOML of the data folder, oldest first.

    Raises: HistoryError naming the file, row and column.
    """
    path = Path(path)
    found = _toml(path) if path.suffix == ".toml" else _csv(path)
    return sorted(found, key=lambda event: (event.first_ns, event.kind, event.detail))


def _csv(path: Path) -> list[Event]:
    names = set(csv_header(path))
    if "all_fuels_zero" in names:
        table = read_table(path, ("period_start_utc", "net_supply_minus_INDO_mw", "all_fuels_zero"))
        starts = instants(table, "period_start_utc", 1800, "half-hour").tolist()
        off = numbers(table, "net_supply_minus_INDO_mw", "MW").tolist()
        zero = table.columns["all_fuels_zero"]
        return [
            Event(kind="dead_generation", first_ns=t, last_ns=t, size=mw, detail="all zero" if flag == "1" else "")
            for t, mw, flag in zip(starts, off, zero, strict=True)
        ]
    if {"first_utc", "last_utc"} <= names:
        table = read_table(path, ("first_utc", "last_utc", "n_5min_records"))
        spans = zip(
            instants(table, "first_utc", 300, "five minutes").tolist(),
            instants(table, "last_utc", 300, "five minutes").tolist(),
            numbers(table, "n_5min_records", "records").tolist(), strict=True,
        )  # fmt: skip
        return [Event(kind="all_zero", first_ns=a, last_ns=b, size=count) for a, b, count in spans]
    if "shortfall" in names:
        table = read_table(path, ("settlement_date", "actual", "expected", "shortfall"))
        out = []
        for i, text in enumerate(table.columns["settlement_date"]):
            try:
                day = parse_date(text)
            except ValueError as error:
                raise HistoryError(f"{table.where(i)}, column settlement_date: {error}") from None
            first = midnight_ns(day)
            last = first + (periods_in_day(day) - 1) * HALF_HOUR_NS
            missing = float(numbers(table, "shortfall", "half-hours")[i])
            out.append(Event(kind="short_day", first_ns=first, last_ns=last, size=missing, detail=day.isoformat()))
        return out
    raise HistoryError(f"{path}: no list of events; its columns are {', '.join(sorted(names)) or '(none)'}")


def _toml(path: Path) -> list[Event]:
    record = _load(path)
    if "frequency" in record and "event_times_utc" in record["frequency"]:
        times = {k: v for k, v in record["frequency"]["event_times_utc"].items() if isinstance(v, str)}
        return [
            Event(kind=kind, first_ns=t, last_ns=t, detail=str(record.get("event_id", "")))
            for kind, t in ((kind, _ns(path, kind, text)) for kind, text in times.items())
        ]
    if "losses" not in record:
        raise HistoryError(f"{path}: neither event times nor losses; known are the two records of 9 August 2019")
    fault = next((event for event in _toml(path.with_name(RECORD)) if event.kind == "fault"), None)
    if fault is None:
        raise HistoryError(f"{path}: its seconds count from a fault that {RECORD} does not name")
    out = []
    for loss in record["losses"]:
        t = fault.first_ns + round(float(loss["at_s"]) * SECOND_NS)
        out.append(Event(kind="loss", first_ns=t, last_ns=t, size=float(loss["mw"]), detail=str(loss["name"])))
    return out


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise HistoryError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HistoryError(f"{path}: {error}; is it a TOML file?") from None


def _ns(path: Path, name: str, text: str) -> int:
    t = aware(text)
    if t is None:
        raise HistoryError(f"{path}: {name} = {text!r} is no time with an offset or Z")
    return ns_of(t)
