"""The closed BMRS API's XML, both ways: rows -> the text that it sent, and the legacy package's table -> rows.

Flow:    rows -> [legacy_xml: write] -> ElexonDataPortal -> table of text -> [legacy_xml: read] -> elexon.parse
Source:  shapes of FUELHH and FREQ as the package reads them; those of SYSDEM, ROLSYSDEM and DEVINDOD could not be
         confirmed from a recorded answer, as that API was shut on 2024-05-31; docs/gb-data.md
Times:   FUELHH and SYSDEM by London date and settlement period; FREQ and ROLSYSDEM in UTC

The legacy form carries no publication time and no label of its own: rows that went through it have neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from xml.sax.saxutils import escape

from gg_ray.elexon.rows import DailyDemandRow, DemandRow, FrequencyRow, FuelRow, OneDemandRow, Row
from gg_ray.elexon.settlement import settlement_label
from gg_ray.elexon.times import ns_of

DATE, PERIOD, LOCAL = "startTimeOfHalfHrPeriod", "settlementPeriod", "local_datetime"
_NO_FUEL = frozenset((LOCAL, "recordType", DATE, "settlementDate", PERIOD, "activeFlag"))
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
Item = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Legacy:
    """How one of our streams was called by the closed API and its package."""

    report: str
    """Name in the address and in the package's method, get_<report>."""
    by_day: bool
    """Asked by London days; else by UTC times."""


LEGACY = {
    "FUELHH": Legacy(report="FUELHH", by_day=True),
    "DEMAND": Legacy(report="SYSDEM", by_day=True),
    "INDOD": Legacy(report="DEVINDOD", by_day=True),
    "FREQ": Legacy(report="FREQ", by_day=False),
    "ROLSYSDEM": Legacy(report="ROLSYSDEM", by_day=False),
}
"""Streams that the package carries."""


def envelope(items: Sequence[Item], *, code: int = 200, error: str = "Ok", description: str = "") -> str:
    """Legacy XML of a whole answer. Without items it says 204: the package raises TypeError on an empty list."""
    if not items and code == 200:
        code, error = 204, "No Content"
    said = {"httpCode": str(code), "errorType": error, "description": description, "cappingApplied": "No"}
    body = "".join(f"<item>{_elements(item)}</item>" for item in items)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><response><responseMetadata>{_elements(said)}</responseMetadata>'
        f"<responseBody><responseList>{body}</responseList></responseBody></response>"
    )


def items_of(stream: str, rows: Iterable[Row]) -> list[Item]:
    """The items of a legacy answer, oldest first; a code that can be no element name is left out."""
    if stream == "FUELHH":
        return _fuel_items(cast(Iterable[FuelRow], rows))
    if stream == "DEMAND":
        return [item for row in cast(Iterable[DemandRow], rows) for item in _demand_items(row)]
    if stream == "INDOD":
        return [
            {"recordType": "DEVINDOD", "date": row.settlement_date.isoformat(), "volume": _text(row.demand_mwh)}
            for row in cast(Iterable[DailyDemandRow], rows)
        ]
    if stream == "FREQ":
        return [
            {"recordType": "FREQ", **_snapshot(row.time), "frequency": repr(row.frequency_hz)}
            for row in cast(Iterable[FrequencyRow], rows)
        ]
    return [
        {"recordType": stream, **_snapshot(row.start), "demand": _text(row.demand_mw)}
        for row in cast(Iterable[OneDemandRow], rows)
    ]


def rows_of(stream: str, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of the package's table (all values text) -> rows as the Insights API would send them.

    What is no number stays as it is, so that the parser rejects it with a reason.
    """
    read = {"FUELHH": _read_fuels, "DEMAND": _read_demand, "INDOD": _read_daily, "FREQ": _read_frequency}
    return list(read.get(stream, _read_rolling)(records))


def _elements(values: dict[str, str]) -> str:
    return "".join(f"<{name}>{escape(text)}</{name}>" for name, text in values.items())


def _text(value: int | None) -> str:
    return "" if value is None else str(value)  # an empty element is read as None: published without a value


def _label(start: datetime) -> Item:
    day, period = settlement_label(ns_of(start))
    return {DATE: day.isoformat(), PERIOD: str(period)}


def _snapshot(time: datetime) -> Item:
    return {"reportSnapshotTime": f"{time:%Y-%m-%d}", "spotTime": f"{time:%H:%M:%S}"}


def _fuel_items(rows: Iterable[FuelRow]) -> list[Item]:
    items: dict[datetime, Item] = {}
    for row in rows:
        item = items.setdefault(row.start, {"recordType": "FUELHH", **_label(row.start)})
        if _CODE.fullmatch(row.fuel):
            item[row.fuel.lower()] = _text(row.generation_mw)
    return list(items.values())


def _demand_items(row: DemandRow) -> Iterator[Item]:
    for kind, demand_mw in (("INDO", row.indo_mw), ("ITSDO", row.itsdo_mw)):
        yield {"recordType": kind, **_label(row.start), "demand": _text(demand_mw)}


def _absent(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _number(value: Any) -> Any:
    """Whole numbers as int, other numbers as float, an empty element as None; anything else as it is."""
    if value is None or not isinstance(value, str):
        return value
    text = value.strip()
    if re.fullmatch(r"-?\d{1,12}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d{1,12}\.\d{1,17}", text) else text


def _labelled(record: dict[str, Any]) -> dict[str, Any]:
    """Start (of the package's local time, NaT where it found none) and label as they stand in the record."""
    day = record.get(DATE, record.get("settlementDate"))
    local = record.get(LOCAL)
    start = local.isoformat() if isinstance(local, datetime) else f"no half-hour {day}, period {record.get(PERIOD)}"
    return {"startTime": start, "settlementDate": day, "settlementPeriod": _number(record.get(PERIOD))}


def _spot(record: dict[str, Any]) -> str:
    return f"{record.get('reportSnapshotTime')}T{record.get('spotTime')}Z"


def _read_fuels(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records:
        for name, value in record.items():
            if name not in _NO_FUEL and not _absent(value):
                yield {**_labelled(record), "fuelType": name.upper(), "generation": _number(value)}


def _read_demand(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    fields = {"INDO": "initialDemandOutturn", "ITSDO": "initialTransmissionSystemDemandOutturn"}
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        field = fields.get(str(record.get("recordType")))
        if field is not None:
            row = _labelled(record)
            rows.setdefault(row["startTime"], row)[field] = _number(record.get("demand"))
    yield from rows.values()


def _read_daily(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records:
        yield {"settlementDate": record.get("date"), "demand": _number(record.get("volume"))}


def _read_frequency(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records:
        yield {"measurementTime": _spot(record), "frequency": _number(record.get("frequency"))}


def _read_rolling(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for record in records:
        yield {"startTime": _spot(record), "demand": _number(record.get("demand"))}
