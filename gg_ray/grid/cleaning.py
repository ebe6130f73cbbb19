"""From a published network to one that may be called normal: merging, voltages, ratings, hierarchy.

Flow:    grid.cases (published) -> [cleaning] -> GridCase used everywhere
Source:  docs/physics.md; GB bands: 400 kV +-5 %, 275 and 132 kV +-10 %, lower +-6 %
Shapes:  N buses, E branches
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from gg_ray.grid.cases import _NO_RATING_MVA, MERGE_Z_PU, PQ, SLACK, CaseError, GridCase
from gg_ray.grid.hierarchy import regions_of, spring_layout, substations_of
from gg_ray.grid.powerflow import PowerFlow
from gg_ray.grid.ybus import branch_admittance, branch_flows, ybus
from gg_ray.records import F64, I64

TAP_STEP = 0.0125
_MAX_STEP_PU = 0.2
_GB = ("gb",)
_SCALE_BUSES = 5_000


def prepare(case: GridCase) -> GridCase:
    """Clean, solve and annotate a published case.

    Raises: CaseError if the cleaned base state does not converge, naming the case.
    """
    if case.name == "case57":
        case = _tap_side(case)
    if case.n_bus <= _SCALE_BUSES:
        case = merge_low_impedance(case, MERGE_Z_PU)
    if case.name in _GB:
        case = reset_voltages(case)
    return annotate(case)


def annotate(case: GridCase) -> GridCase:
    """Solve a case as it stands, and derive what its source does not say: bands, ratings, units, hierarchy, layout.

    Raises: CaseError if the base state does not converge, naming the case.
    """
    case = _solve(case)
    case = replace(case, v_min=_bands(case)[0], v_max=_bands(case)[1])
    case = _ratings(case)
    case = replace(case, unit_p=_unit_output(case), unit_pmax=_unit_capacity(case))
    substation = substations_of(case)
    case = replace(case, substation=substation, region=regions_of(case, substation))
    if not case.layout.any():
        case = replace(case, layout=spring_layout(case))
    return case


def _tap_side(case: GridCase) -> GridCase:
    """Put case57's taps back on the IEEE end.

    pandapower turns every transformer round (high voltage first) but keeps the ratio at the new from end, which
    sends bus 31 to 0.72 p.u.; the published solution has 0.936. Turning them back restores it.
    """
    turn = case.transformer
    return replace(
        case, f_bus=np.where(turn, case.t_bus, case.f_bus), t_bus=np.where(turn, case.f_bus, case.t_bus)
    )  # fmt: skip


def merge_low_impedance(case: GridCase, threshold: float) -> GridCase:
    """Merge buses joined by lines of |z| below threshold; operators keep seeing the published names.

    Transformers are never merged, however small their impedance: their tap or voltage step is real. The charging of
    the branches that disappear stays, as a shunt of the merged bus: on `gb` it is 1,564 Mvar.
    """
    plain = (case.tap == 1) & (case.shift == 0) & (case.vn_kv[case.f_bus] == case.vn_kv[case.t_bus])
    small = (np.hypot(case.r, case.x) < threshold) & plain
    if not small.any():
        return case
    f, t = case.f_bus[small], case.t_bus[small]
    graph = sp.coo_matrix((np.ones(f.size), (f, t)), shape=(case.n_bus, case.n_bus))
    n, node = connected_components(graph, directed=False)
    # Keep the order of first appearance, so that neighbouring numbers stay neighbours.
    _, first = np.unique(node, return_index=True)
    rank = np.empty(n, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(n)
    node = rank[node]

    def total(values: F64) -> F64:
        out = np.zeros(n)
        np.add.at(out, node, values)
        return out

    keep = ~small & (node[case.f_bus] != node[case.t_bus])
    gone = ~keep
    gs, bs = total(case.gs), total(case.bs)
    for end, ratio in ((case.f_bus, case.tap), (case.t_bus, np.ones(case.n_branch))):
        np.add.at(gs, node[end[gone]], 0.5 * case.g[gone] / ratio[gone] ** 2)
        np.add.at(bs, node[end[gone]], 0.5 * case.b[gone] / ratio[gone] ** 2)
    names: list[list[str]] = [[] for _ in range(n)]
    for bus, target in enumerate(node):
        names[target].append(case.bus_names[bus])
    kind = np.full(n, PQ, dtype=np.int64)
    np.maximum.at(kind, node, case.kind)
    head = np.array([np.flatnonzero(node == i)[0] for i in range(n)]) if n < 10_000 else first[np.argsort(first)]
    gen_node = node[case.gen_bus]
    gen_bus = np.unique(gen_node)
    where = np.searchsorted(gen_bus, gen_node)
    gen_p, gen_v = np.zeros(gen_bus.size), np.ones(gen_bus.size)
    np.add.at(gen_p, where, case.gen_p)
    gen_v[where[::-1]] = case.gen_v[::-1]  # the first published machine of a merged node sets its voltage
    return replace(
        case,
        bus_names=tuple("/".join(part) for part in names),
        node_of_bus=node[case.node_of_bus],
        vn_kv=case.vn_kv[head], kind=kind,
        load_p=total(case.load_p), load_q=total(case.load_q), gs=gs, bs=bs,
        v_min=case.v_min[head], v_max=case.v_max[head],
        f_bus=node[case.f_bus][keep], t_bus=node[case.t_bus][keep],
        r=case.r[keep], x=case.x[keep], g=case.g[keep], b=case.b[keep],
        tap=case.tap[keep], shift=case.shift[keep], rate=case.rate[keep], transformer=case.transformer[keep],
        gen_bus=gen_bus, gen_p=gen_p, gen_v=gen_v, unit_gen=where[case.unit_gen],
        v0=case.v0[head], layout=case.layout[head], substation=np.arange(n),
        merged_z=tuple(case.branch_names[e] for e in np.flatnonzero(small)),
    )  # fmt: skip


def statutory_bands(case: GridCase) -> tuple[F64, F64]:
    """[N] lower and upper voltage limits, p.u., of the GB transmission licence by nominal voltage."""
    width = np.where(case.vn_kv >= 380, 0.05, np.where(case.vn_kv >= 130, 0.10, 0.06))
    return 1 - width, 1 + width


def reset_voltages(case: GridCase, rounds: int = 60) -> GridCase:
    """Bring `gb` into the statutory bands: set-points at most 1.04 p.u., then taps and compensation step by step.

    The published data run from 0.798 to 1.199 p.u. because taps were never tuned. Each round solves, then moves the
    tap of every transformer whose low-voltage bus leaves the inner 70 % of its band by one step of 1.25 % (0.85 to
    1.15), and gives buses that no transformer can bring back some of the reactive compensation the data omit.

    Raises: CaseError if a bus is still outside its band after all rounds.
    """
    case = _solve(replace(case, gen_v=np.clip(case.gen_v, 1.0, 1.04)))
    low, high = statutory_bands(case)
    half = (high - low) / 2
    differs = case.vn_kv[case.f_bus] != case.vn_kv[case.t_bus]
    low_from = case.vn_kv[case.f_bus] < case.vn_kv[case.t_bus]
    regulated = np.where(low_from, case.f_bus, case.t_bus)
    has_tap = np.zeros(case.n_bus, dtype=bool)
    has_tap[regulated[case.transformer & differs]] = True
    for turn in range(rounds):
        error = np.abs(case.v0) - 1.0
        outside = (np.abs(error) > 0.7 * half) & (case.kind == PQ)
        if not outside.any():
            break
        act = case.transformer & differs & outside[regulated]
        # The ratio sits at the from end: raising it lowers the to-side voltage and lifts the from side.
        direction = np.where(low_from, -1.0, 1.0) * np.sign(error[regulated])
        tap = np.clip(case.tap + np.where(act, TAP_STEP * direction, 0.0), 0.85, 1.15)
        bs = case.bs.copy()
        stuck = np.flatnonzero(outside & (~has_tap | (turn > rounds // 3)))
        bs[stuck] -= np.clip(0.5 * error[stuck] / _driving_point(case, stuck), -_MAX_STEP_PU, _MAX_STEP_PU)
        case = _solve(replace(case, tap=tap, bs=bs))
    vm = np.abs(case.v0)
    bad = np.flatnonzero((vm < low) | (vm > high))
    if bad.size:
        raise CaseError(f"{case.name}: bus {case.bus_names[bad[0]]} stays at {vm[bad[0]]:.3f} p.u. ({bad.size} buses)")
    return case


def _driving_point(case: GridCase, buses: I64) -> F64:
    """[len(buses)] driving-point impedance |Z_ii|, voltage-controlled buses held: volts per unit of compensation."""
    stiff = sp.diags(np.where(case.kind == PQ, 0.0, 1e4))
    factor = splu((ybus(case) + stiff).tocsc())
    unit = np.zeros((case.n_bus, buses.size), dtype=np.complex128)
    unit[buses, np.arange(buses.size)] = 1.0
    return np.asarray(np.abs(factor.solve(unit)[buses, np.arange(buses.size)]))


def _solve(case: GridCase) -> GridCase:
    """Attach the solved base state; the slack's output becomes what it really delivers."""
    solution = PowerFlow(case, tol_pu=1e-8, max_iter=30).solve_base()
    if not solution.converged_R[0]:
        raise CaseError(f"{case.name}: the base state does not converge; the case data are not usable")
    v = solution.v_RN[0]
    y = branch_admittance(case)
    s_f, s_t = branch_flows(case, v[None], y)
    at = np.flatnonzero(case.kind == SLACK)[0]
    delivered = s_f[0][case.f_bus == at].sum() + s_t[0][case.t_bus == at].sum()
    delivered += np.abs(v[at]) ** 2 * (case.gs[at] - 1j * case.bs[at])
    gen_p = case.gen_p.copy()
    gen_p[case.gen_bus == at] = delivered.real + case.load_p[at]
    return replace(case, v0=v, gen_p=gen_p)


def _bands(case: GridCase) -> tuple[F64, F64]:
    if case.name in _GB or case.name == "gb29":
        return statutory_bands(case)
    vm = np.abs(case.v0)
    return np.minimum(0.9, vm - 0.01), np.maximum(1.1, vm + 0.01)


def _ratings(case: GridCase) -> GridCase:
    """Ratings where the source has none (9,900 MVA or one flat placeholder): 1.5 x the base flow, with a floor.

    The floor, 60 % of the 75th percentile of |S|, keeps lightly loaded branches from looking critical.
    """
    flat = np.unique(np.round(case.rate, 6)).size == 1
    missing = (case.rate <= 0) | (case.rate * case.base_mva >= _NO_RATING_MVA) | flat
    if not missing.any():
        return case
    s_f, s_t = branch_flows(case, case.v0[None], branch_admittance(case))
    flow = np.maximum(np.abs(s_f[0]), np.abs(s_t[0]))
    derived = np.maximum(1.5 * flow, 0.6 * np.quantile(flow, 0.75))
    return replace(case, rate=np.where(missing, derived, np.maximum(case.rate, 1.05 * flow)), derived_rating=True)


def _unit_output(case: GridCase) -> F64:
    """[U] unit outputs that add up to their bus's output (the slack's unit has none in the source)."""
    p = case.unit_p.copy()
    for k in range(case.n_gen):
        units = np.flatnonzero(case.unit_gen == k)
        known = np.nansum(p[units])
        empty = units[np.isnan(p[units])]
        if empty.size:
            p[empty] = (case.gen_p[k] - known) / empty.size
    return p


def _unit_capacity(case: GridCase) -> F64:
    """[U] capacity: the source's, else 1.25 x output."""
    p = _unit_output(case)
    bad = ~np.isfinite(case.unit_pmax) | (case.unit_pmax * case.base_mva > 50_000) | (case.unit_pmax < p)
    return np.where(bad, 1.25 * np.abs(p), case.unit_pmax)


def published_to_node(case: GridCase, bus: int) -> int:
    """Node that holds a published bus index."""
    nodes: I64 = case.node_of_bus
    return int(nodes[bus])
