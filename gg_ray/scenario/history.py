"""Half-hourly Great Britain records from the four FUELHH/INDO files, with the published label defects repaired.

Flow:    data folder (elexon_fuelhh_indo/fuelhh_*.csv) -> elexon.halfhours -> [history] -> scenario.climatology,
         scenario.context
Source:  Elexon FUELHH and INDO, period-start labels; "Contains BMRS data (c) Elexon Limited copyright and
         database right 2019, 2021, 2023, 2024"; defects 1, 2, 3 and 5 of the data folder's PROVENANCE.md
Shapes:  H half-hours that survive the repair, in UTC order; a half-hour that is not there is a gap, never a guess
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gg_ray.elexon.halfhours import read_half_hours
from gg_ray.elexon.tables import HistoryError
from gg_ray.elexon.times import iso
from gg_ray.records import F64, I64, Bool

__all__ = ["HalfHours", "HistoryError", "balanced", "capacity_factor", "history_files", "read_history", "read_year"]

log = logging.getLogger(__name__)

YEARS = (2019, 2021, 2023, 2024)
FOLDER = "elexon_fuelhh_indo"

SYNCHRONOUS = ("CCGT", "COAL", "NUCLEAR", "BIOMASS", "NPSHYD", "OCGT", "OIL", "OTHER")
INTERCONNECTORS = (
    "INTELEC", "INTEW", "INTFR", "INTGRNL", "INTIFA2", "INTIRL", "INTNED", "INTNEM", "INTNSL", "INTVKL",
)  # fmt: skip
COLUMNS = (
    "settlement_date", "settlement_period", "period_start_utc", *SYNCHRONOUS, "WIND", "PS", *INTERCONNECTORS, "INDO",
)  # fmt: skip
"""Columns that a file must have."""
REQUIRED = (*SYNCHRONOUS, "WIND", "PS")
"""Columns without which a row is no use; a blank interconnector did not exist yet and counts as 0 MW."""

RESIDUAL_LIMIT_MW = 2_000.0
"""|supply - INDO - year's median| above this is a bad publication or label. Normal 1-99 % spread is under 600 MW;
the listed defects reach from -2 to -37 GW and the two unrepairable change-over rows of 2021 are 3 and 4 GW off."""
WIND_CAPACITY_QUANTILE = 0.999
"""The year's quantile of metered wind that stands for its capacity: the maximum alone follows single readings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfHours:
    """Repaired half-hours in UTC order.

    Invariant: t0_ns strictly increasing on the half-hour grid; every value finite; all arrays [H].
    load_mw is INDO, synchronous_mw the eight thermal and hydro fuels, imports_mw and pumped_mw are negative
    for export and pumping; wind_cf is wind over the 99.9 % quantile of its calendar year (UTC), at most 1.
    """

    t0_ns: I64
    load_mw: F64
    wind_mw: F64
    synchronous_mw: F64
    imports_mw: F64
    pumped_mw: F64
    wind_cf: F64
    dropped: int
    """Half-hours present in the files and left out: no INDO, all fuels zero, or out of balance."""

    @property
    def shape(self) -> F64:
        """Synchronous share of demand [H]; above 1 only when exporting, there clipped to 1."""
        return np.clip(self.synchronous_mw / self.load_mw, 0.0, 1.0)


def history_files(data_dir: str | Path) -> tuple[Path, ...]:
    """The four files, checked to exist.  Raises: HistoryError naming the first that does not."""
    paths = tuple(Path(data_dir) / FOLDER / f"fuelhh_{year}.csv" for year in YEARS)
    for path in paths:
        if not path.is_file():
            raise HistoryError(f"{path}: no such file; set scenario.data_dir to the folder that holds {FOLDER}/")
    return paths


def read_history(data_dir: str | Path) -> HalfHours:
    """Read, repair and check the four years.

    Returns: HalfHours in UTC order; years that are not in the folder are gaps.
    Raises:  HistoryError for a missing file or column, a value that is no number or a half-hour given twice.
    """
    t0, load, fuel = [], [], []
    seen = dropped = 0
    for path in history_files(data_dir):
        t, load_mw, fuel_mw = read_year(path)
        keep = balanced(load_mw, fuel_mw)
        seen += t.size
        dropped += int(t.size - keep.sum())
        t0.append(t[keep])
        load.append(load_mw[keep])
        fuel.append(fuel_mw[keep])
    # The label defect leaves each file with 23:30 of the evening before its year: order by time, not by file.
    t0_ns = np.concatenate(t0)
    order = np.argsort(t0_ns, kind="stable")
    t0_ns = t0_ns[order]
    twice = np.flatnonzero(np.diff(t0_ns) == 0)
    if twice.size:
        raise HistoryError(f"{data_dir}: {iso(int(t0_ns[twice[0]]))} occurs in two files; keep one of them")
    fuel_mw = np.concatenate(fuel)[order]
    wind = fuel_mw[:, len(SYNCHRONOUS)]
    log.info("history: %d of %d half-hours kept from %s", t0_ns.size, seen, data_dir)
    return HalfHours(
        t0_ns=t0_ns,
        load_mw=np.concatenate(load)[order],
        wind_mw=wind,
        synchronous_mw=fuel_mw[:, : len(SYNCHRONOUS)].sum(axis=1),
        imports_mw=fuel_mw[:, len(REQUIRED) :].sum(axis=1),
        pumped_mw=fuel_mw[:, len(SYNCHRONOUS) + 1],
        wind_cf=capacity_factor(t0_ns, wind),
        dropped=dropped,
    )


def capacity_factor(t0_ns: I64, wind_mw: F64) -> F64:
    """Wind over the 99.9 % quantile of its UTC calendar year, clipped to 0..1; shapes [H]."""
    year = t0_ns.astype("datetime64[ns]").astype("datetime64[Y]")
    out = np.empty_like(wind_mw)
    for value in np.unique(year):
        rows = year == value
        out[rows] = wind_mw[rows] / np.quantile(wind_mw[rows], WIND_CAPACITY_QUANTILE)
    return np.clip(out, 0.0, 1.0)


def balanced(load_mw: F64, fuel_mw: F64) -> Bool:
    """True where a half-hour can be trusted: INDO and fuels published, not all zero, supply near demand.

    Args:    load_mw [H], fuel_mw [H, 20] in the order of COLUMNS; NaN where nothing was published.
    Source:  residual rule of the derived bad-publication list, tightened from -6,000 MW (its defect 5).
    """
    residual = fuel_mw.sum(axis=1) - load_mw
    alive: Bool = np.any(fuel_mw[:, : len(SYNCHRONOUS) + 1] != 0, axis=1) & np.isfinite(residual) & (load_mw > 0)
    if not alive.any():
        return alive
    centre = np.median(residual[alive])
    with np.errstate(invalid="ignore"):
        near: Bool = np.abs(residual - centre) <= RESIDUAL_LIMIT_MW
    return np.logical_and(alive, near)


def read_year(path: Path) -> tuple[I64, F64, F64]:
    """One file: fuels at the time the row says, INDO at the time its label says.

    Returns: t0_ns [H] ascending, load_mw [H] (NaN where no INDO belongs), fuel_mw [H, 20] (REQUIRED, interconnectors).
    Raises:  HistoryError naming file, row and column.
    """
    table = read_half_hours(path)
    fuel_mw = table.value_HC[:, [table.channels.index(name) for name in (*REQUIRED, *INTERCONNECTORS)]]
    fuel_mw[:, len(REQUIRED) :] = np.nan_to_num(fuel_mw[:, len(REQUIRED) :], nan=0.0)
    return table.t0_ns, table.value_HC[:, table.channels.index("INDO")], fuel_mw
