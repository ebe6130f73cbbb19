"""Yearly FUELHH files with INDO and ITSDO beside the fuels, their settlement labels repaired row by row.

Flow:    fuelhh_*.csv -> [halfhours] -> elexon.history, scenario.history
Source:  Elexon FUELHH and /demand/outturn, period-start labels; defects 1 and 2 of the data folder's PROVENANCE.md:
         in 2019 and much of 2021 the last period of a day carries the next day's date, and the demands were joined
         on that label, so they belong where their label says and the fuels where their start time says
Shapes:  H half-hours in UTC order; a half-hour that is not in the file is a gap
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np

from gg_ray.elexon.rows import FUELS, INTERCONNECTOR_MW
from gg_ray.elexon.settlement import settlement_label, settlement_start_ns
from gg_ray.elexon.tables import HistoryError, Table, instants, labels, numbers, read_table
from gg_ray.elexon.times import iso
from gg_ray.records import F64, I64

INTERCONNECTORS = tuple(sorted(INTERCONNECTOR_MW))
LABELS = ("settlement_date", "settlement_period", "period_start_utc")
REQUIRED = (*LABELS, *FUELS, *INTERCONNECTORS, "INDO")
"""Columns without which a yearly file is not read; ITSDO may be absent."""
DEMANDS = ("INDO", "ITSDO")


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfHourTable:
    """One file: t0_ns [H] increasing; value_HC [H, C] MW of `channels`, NaN where blank or where no demand belongs.

    shifted  rows whose settlement date stood one day late [H], in UTC order
    counts   shifted_label, unplaceable_label, demand_without_row, blank_indo: what was repaired or left out
    """

    channels: tuple[str, ...]
    t0_ns: I64
    value_HC: F64
    shifted: I64
    counts: Counter[str]


def read_half_hours(path: Path) -> HalfHourTable:
    """Read and repair one file.  Raises: HistoryError naming file, row and column."""
    table = read_table(path, REQUIRED)
    t0_ns = instants(table, "period_start_utc", 1800, "half-hour")
    demands = tuple(name for name in DEMANDS if name in table.columns)
    channels = (*FUELS, *INTERCONNECTORS, *demands)
    value = np.stack([numbers(table, name, "MW") for name in channels], axis=1)
    fuels = len(channels) - len(demands)
    as_filed = value[:, fuels:].copy()
    value[:, fuels:] = np.nan

    row_at: dict[int, int] = {}
    for i, t in enumerate(t0_ns.tolist()):
        if t in row_at:
            raise HistoryError(
                f"{table.where(i)}, period_start_utc: {iso(t)} already stood in row {row_at[t] + table.first}"
            )
        row_at[t] = i
    counts: Counter[str] = Counter()
    shifted: list[int] = []
    for i, start in enumerate(_places(table, t0_ns, counts, shifted)):
        if start is None:
            continue
        if start in row_at:
            value[row_at[start], fuels:] = as_filed[i]
        else:
            counts["demand_without_row"] += 1
    order = np.argsort(t0_ns)
    counts["blank_indo"] = int(np.isnan(value[:, fuels]).sum())
    return HalfHourTable(
        channels=channels, t0_ns=t0_ns[order], value_HC=value[order], shifted=np.array(sorted(shifted), dtype=np.int64),
        counts=+counts,
    )  # fmt: skip


def _places(table: Table, t0_ns: I64, counts: Counter[str], shifted: list[int]) -> list[int | None]:
    """Where each row's demands belong, UTC ns; None where the label has no known defect and is wrong all the same."""
    placed: dict[int, int] = {}
    out: list[int | None] = []
    for i, (day, period) in enumerate(labels(table)):
        true_day, true_period = settlement_label(int(t0_ns[i]))
        off = day - true_day
        start = None
        if period == true_period and off in (timedelta(0), timedelta(days=1)):
            start = settlement_start_ns(day, period)
        if off == timedelta(days=1):
            counts["shifted_label"] += 1
            shifted.append(int(t0_ns[i]))
        if start is None:
            counts["unplaceable_label"] += 1
        elif start in placed:
            before = placed[start] + table.first
            raise HistoryError(f"{table.where(i)}, settlement_date, settlement_period: same label as row {before}")
        else:
            placed[start] = i
        out.append(start)
    return out
