"""National figures spread over the 29 buses of `gb29`: context for a map, never a measurement of a bus.

Flow:    elexon.scans (one scan of streams) -> [allocation] -> the map of the live path (its first caller comes with it)
Source:  demand by year: PyPSA-GB `Demand_Distribution.csv` in the data folder; landing points of links: its `links.csv`
         and `links_future.csv` (docs/gb-data.md); fuels: installed capacity of the case (pandapower, BSD)
Shapes:  N merged nodes of gb29, C supply streams in FUEL_TYPES order
Units:   MW

Elexon's data are national. A bus gets its documented share of the total, whatever really happened there, so a picture
made of this must say "allocated" (Allocation.note) and no detector may read it.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gg_ray.elexon.rows import FUEL_TYPES, INTERCONNECTOR_MW
from gg_ray.grid.cases import GridCase, load_case
from gg_ray.records import F64

CASE = "gb29"
PLACES = (
    "Beauly", "Peterhead", "Errochty", "Denny/Bonnybridge", "Neilston", "Strathaven", "Torness", "Eccles", "Harker",
    "Stella West", "Penwortham", "Deeside", "Daines", "Th. Marsh/Stocksbridge", "Thornton/Drax/Eggborough", "Keadby",
    "Ratcliffe", "Feckenham", "Walpole", "Bramford", "Pelham", "Sundon/East Claydon", "Melksham", "Bramley", "London",
    "Kemsley", "Sellindge", "Lovedean", "S.W.Penisula",
)  # fmt: skip
"""Names of the 29 published buses in the order of the case."""
LANDING = {
    "INTFR": "Sellindge", "INTIFA2": "Lovedean", "INTELEC": "Sellindge", "INTNED": "Kemsley", "INTNEM": "Sellindge",
    "INTNSL": "Stella West", "INTVKL": "Walpole", "INTEW": "Deeside", "INTIRL": "Neilston", "INTGRNL": "Melksham",
}  # fmt: skip
"""Bus at which each link lands; a test compares it with the data folder."""
_FOLDER = "topology/reduced29"


class AllocationError(ValueError):
    """Shares cannot be read; the message names the file and the column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Shares of each national stream by node.

    Invariant: each row of supply_CN, and demand_N, adds up to 1.
    """

    demand_N: F64
    supply_CN: F64
    note: str
    """What a picture made with it must say."""

    def injections(self, supply_C: F64, demand_mw: float) -> F64:
        """[N] net injection, MW: supply by shares less demand by shares. A stream that is NaN adds nothing."""
        return np.asarray(np.nan_to_num(supply_C) @ self.supply_CN - demand_mw * self.demand_N)


@functools.lru_cache(maxsize=8)
def allocation(year: int, data_dir: str = "") -> Allocation:
    """Shares for a year.

    Args:   year  of the demand table, 2020 to 2050; earlier years use 2020
            data_dir  GB data folder; without it (or the table) demand falls as in the case itself
    Raises: AllocationError for a table without that year or with other buses.
    """
    case = load_case(CASE)
    path = Path(data_dir) / _FOLDER / "Demand_Distribution.csv"
    if data_dir and path.is_file():
        published, source = _demand_table(path, max(year, 2020)), f"demand by PyPSA-GB's table for {max(year, 2020)}"
    else:
        published, source = None, "demand as in the network case"
    demand = _by_node(case, published) if published is not None else np.maximum(case.load_p, 0.0)
    plant = np.zeros(case.n_bus)
    np.add.at(plant, case.gen_bus[case.unit_gen], np.maximum(case.unit_pmax, 0.0))
    supply = np.tile(plant / plant.sum(), (len(FUEL_TYPES), 1))
    for name in INTERCONNECTOR_MW:
        supply[FUEL_TYPES.index(name)] = 0.0
        supply[FUEL_TYPES.index(name), case.node_of_bus[PLACES.index(LANDING[name])]] = 1.0
    return Allocation(
        demand_N=demand / demand.sum(), supply_CN=supply,
        note=f"allocated, not measured: {source}; output by installed capacity; links at their landing points",
    )  # fmt: skip


def _by_node(case: GridCase, published_29: F64) -> F64:
    out = np.zeros(case.n_bus)
    np.add.at(out, case.node_of_bus, published_29)
    return out


def _demand_table(path: Path, year: int) -> F64:
    """[29] MW of demand by published bus.  The table has a byte-order mark, share columns without name, a blank end."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0]]
    if str(year) not in rows[0]:
        raise AllocationError(f"{path}: no column {year}; it has {rows[0][1]} to {rows[0][-2]}")
    column = rows[0].index(str(year))
    by_name = {row[0]: float(row[column]) for row in rows[1:]}
    lacking = [name for name in PLACES if name not in by_name]
    if lacking:
        raise AllocationError(f"{path}: no row for {lacking[0]!r}")
    return np.array([by_name[name] for name in PLACES])
