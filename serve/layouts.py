"""Where a page draws the buses and branches of a grid: published positions, turned so that north is up, or made ones.

Flow:    gg_ray.grid.cases -> [layouts] -> GET /v1/grids/{grid} -> serve/dashboard/map.js
Source:  pandapower's positions of its networks; docs/page.md
Units:   positions run from 0 to 1 on the longer side, the shorter side is centred; y runs downwards; kV, MVA
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gg_ray.config import SCALE_CASES
from gg_ray.grid import balance
from gg_ray.grid.cases import PV, SLACK, GridCase, load_case
from gg_ray.records import F64

GEOGRAPHIC = {"gb29": np.array([-1.0, 1.0])}
"""Cases whose positions follow the land, and what makes them read so (x to the right, y downwards). The published ones
of gb29 are those of a map that was turned by half a circle; those of gb are an even spread without geography."""
_KINDS = {SLACK: "slack", PV: "generator"}
_GAP = 2.2
"""Room between groups of the national ring, in places."""
_GOLDEN = np.pi * (3.0 - np.sqrt(5.0))


@functools.lru_cache(maxsize=16)
def layout_of(name: str) -> dict[str, Any]:
    """The drawing of a case as docs/live.md has it, without its grid. The same case always gives the same one.

    rate_mva is None where the source publishes no rating.
    Raises: CaseError for an unknown case, or one of an extra that is not installed.
    """
    case = load_case(name)
    position = _unit(positions(case))
    region = case.region[case.substation]
    national = name == balance.NAME
    return {
        "case": name, "base_mva": case.base_mva, "f0_hz": case.f0_hz, "geographic": name in GEOGRAPHIC,
        "buses": [
            {
                "name": case.bus_names[i], "x": round(float(position[i, 0]), 5), "y": round(float(position[i, 1]), 5),
                "kv": float(case.vn_kv[i]), "region": int(region[i]),
                "kind": _national_kind(i) if national else _KINDS.get(int(case.kind[i]), "load"),
            }
            for i in range(case.n_bus)
        ],
        "branches": [
            {
                "name": branch, "from": int(case.f_bus[e]), "to": int(case.t_bus[e]),
                "transformer": bool(case.transformer[e]),
                "rate_mva": None if case.derived_rating else round(float(case.rate[e]) * case.base_mva, 1),
            }
            for e, branch in enumerate(case.branch_names)
        ],
    }  # fmt: skip


def positions(case: GridCase) -> F64:
    """[N, 2] drawing positions in any unit, y downwards."""
    if case.name == balance.NAME:
        return _ring()
    if case.name in SCALE_CASES:
        return _clusters(case)
    return case.layout * GEOGRAPHIC.get(case.name, 1.0)


def _unit(position: F64) -> F64:
    """Positions in the unit square: one scale for both sides, the shorter one centred."""
    low, high = position.min(axis=0), position.max(axis=0)
    size = high - low
    return np.asarray((position - low + (size.max() - size) / 2.0) / size.max())


def _national_kind(bus: int) -> str:
    if bus == balance.HUB:
        return "hub"
    if bus in balance.SUPPLY_BUS:
        return "link" if bus - 1 in balance.LINKS else "fuel"
    return "embedded" if bus in (balance.WIND_BUS, balance.SOLAR_BUS) else "demand"


def _ring() -> F64:
    """The national graph: the hub, and around it fuels, links, demand, each kind in one arc; embedded plant outside."""
    n = len(balance.BUSES)
    kinds = [_national_kind(i) for i in range(n)]
    out = np.zeros((n, 2))
    arcs = [[i for i in range(n) if kinds[i] == kind] for kind in ("fuel", "link", "demand")]
    step = 2.0 * np.pi / (sum(map(len, arcs)) + len(arcs) * (_GAP - 1.0))
    at = -np.pi / 2.0 - step * (len(arcs[0]) - 1) / 2.0  # fuels around the top
    angle = np.zeros(n)
    for arc in arcs:
        for bus in arc:
            angle[bus] = at
            at += step
        at += step * (_GAP - 1.0)
    for bus in (i for arc in arcs for i in arc):
        out[bus] = np.cos(angle[bus]), np.sin(angle[bus])
    for bus, side in ((balance.WIND_BUS, -0.5), (balance.SOLAR_BUS, 0.5)):
        turn = angle[balance.DEMAND] + side * step
        out[bus] = 1.25 * np.cos(turn), 1.25 * np.sin(turn)
    return out


def _clusters(case: GridCase) -> F64:
    """Large grids without positions: regions by Kamada and Kawai's springs, the buses of each on a spiral."""
    import networkx as nx

    region = case.region[case.substation]
    count = int(region.max()) + 1
    graph = nx.Graph()
    graph.add_nodes_from(range(count))
    pairs = np.unique(np.sort(np.stack([region[case.f_bus], region[case.t_bus]], axis=1), axis=1), axis=0)
    graph.add_edges_from(pairs[pairs[:, 0] != pairs[:, 1]].tolist())
    placed = nx.kamada_kawai_layout(graph)
    centre = np.array([placed[r] for r in range(count)])
    apart = np.linalg.norm(centre[:, None] - centre[None], axis=2) + np.where(np.eye(count, dtype=bool), np.inf, 0.0)
    radius = np.maximum(0.5 * apart.min(axis=1), 0.3 / np.sqrt(count)) if count > 1 else np.ones(1)
    out = np.zeros((case.n_bus, 2))
    for r in range(count):
        own = np.flatnonzero(region == r)
        k = np.arange(own.size)
        turn, reach = k * _GOLDEN, radius[r] * np.sqrt((k + 0.5) / own.size)
        out[own] = centre[r] + reach[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return out
