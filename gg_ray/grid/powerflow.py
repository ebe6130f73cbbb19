"""The executor's engine: many AC power flows in one call, with divergence and islanding told apart.

Flow:    grid.cases -> [powerflow] -> scenario.executor;  the judge (grid.ybus) checks what comes out
Source:  lightsim2grid >= 1.2, ScenarioSweepCPP with Newton-Raphson on KLU (one slack bus; the Jacobian is factorised
         at every third iteration: Shamanskii 1967); docs/physics.md
Shapes:  R rows, N buses, E branches, G generator buses
Units:   p.u. here; MW and Mvar only at the engine's edge
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from gg_ray.grid.cases import PQ, SLACK, CaseError, GridCase
from gg_ray.records import F64, I64, Bool

C128 = NDArray[np.complex128]
FACTOR_EVERY = 3
"""Iterations that share a Jacobian: more of them are needed, but fewer factorisations (measured in docs/physics.md)."""
MAX_ITERATIONS = 24
_ALGORITHM = "NRSing_KLU"
_EVERY_N = 1
_POLICY, _PERIOD = 1, 3
"""Positions in AlgoConfig.int_params: refactorisation policy, and its period."""


@dataclass(frozen=True, slots=True)
class Solution:
    """States of one sweep; rows that did not converge hold NaN, never the engine's silent zeros."""

    v_RN: C128
    converged_R: Bool
    split_R: Bool
    """The row's outages islanded the grid: it was never handed to the solver."""
    iterations_R: I64


@contextmanager
def _without_pandapower() -> Iterator[None]:
    """lightsim2grid reads pandapower networks where it can, and so imports it: 160 MiB and two seconds in each actor.

    We hand it dictionaries only, and it takes pandapower's absence for what it is: an option that is not there.
    """
    hide = "pandapower" not in sys.modules
    if hide:
        sys.modules["pandapower"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules["pandapower"]


class PowerFlow:
    """One lightsim2grid model of one case, solved in batches.

    Invariant: bus, branch and generator order are the GridCase's; a split row is never reported as diverged.
    """

    def __init__(
        self, case: GridCase, tol_pu: float = 1e-8, max_iter: int = MAX_ITERATIONS, start_N: C128 | None = None
    ) -> None:
        """
        Args: start_N  voltages at which every row begins, p.u. (the case's base state by default)
        """
        with _without_pandapower():
            from lightsim2grid.network import init_from_powermodels

        self.case = case
        self.tol_pu = tol_pu
        self.max_iter = max_iter
        self.start_N = case.v0 if start_N is None else start_N
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = init_from_powermodels(_powermodels(case))
        loaded = (case.load_p != 0) | (case.load_q != 0)
        self._loads, self._unloaded = np.flatnonzero(loaded), np.flatnonzero(~loaded)
        tapped = case.transformer | (case.tap != 1) | (case.shift != 0)
        self._lines = np.flatnonzero(~tapped)
        self._trafos = np.flatnonzero(tapped)
        self._sweep: Any = None
        self._shape: tuple[int, bool, bool] | None = None

    @property
    def load_buses(self) -> I64:
        """Buses that carry a load in the model; only they may change demand."""
        return self._loads

    def _fresh_sweep(self) -> Any:
        from lightsim2grid.scenarioSweep import ScenarioSweepCPP

        sweep = ScenarioSweepCPP(self._model)
        sweep.change_algorithm(_ALGORITHM)
        config = sweep.get_algo_config()
        settings = list(config.int_params)  # a copy: the whole list has to be assigned again
        settings[_POLICY], settings[_PERIOD] = _EVERY_N, FACTOR_EVERY
        config.int_params = settings
        sweep.set_algo_config(config)
        # A base factor kept from the previous call moves the last bits: rows would depend on the engine's history.
        sweep.reuse_base_case = False
        return sweep

    def solve(
        self,
        load_p_RN: F64,
        load_q_RN: F64,
        gen_p_RG: F64,
        gen_v_RG: F64,
        branch_out_RE: Bool | None = None,
        gen_out_RG: Bool | None = None,
    ) -> Solution:
        """AC power flow of every row from the start state.

        Args:    loads [R, N] p.u. (only load_buses may be non-zero), generator output [R, G] p.u. (the slack's entry
                 is ignored), set-points [R, G] p.u., outage masks (True = out)
        Returns: Solution
        Raises:  CaseError if an input is not finite or a load sits on a bus without one.
        """
        case, base = self.case, self.case.base_mva
        for label, array in (("load_p", load_p_RN), ("load_q", load_q_RN), ("gen_p", gen_p_RG), ("gen_v", gen_v_RG)):
            if not np.isfinite(array).all():
                row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(array)))
                raise CaseError(f"{case.name}: {label} is not finite at row {row}, column {column}")
        for label, array in (("load_p", load_p_RN), ("load_q", load_q_RN)):
            stray = np.flatnonzero(array[:, self._unloaded].any(axis=0))
            if stray.size:
                bus = case.bus_names[self._unloaded[stray[0]]]
                raise CaseError(f"{case.name}: {label} at bus {bus}, which has no load in the model; see load_buses")
        rows = load_p_RN.shape[0]
        # A sweep object locks its row count and its set of modified quantities, so a changed shape needs a new one.
        shape = (rows, branch_out_RE is not None, gen_out_RG is not None)
        if self._sweep is None or self._shape != shape:
            self._sweep, self._shape = self._fresh_sweep(), shape
        sweep = self._sweep
        sweep.modify_load_p(np.ascontiguousarray(load_p_RN[:, self._loads] * base))
        sweep.modify_load_q(np.ascontiguousarray(load_q_RN[:, self._loads] * base))
        sweep.modify_gen_p(np.ascontiguousarray(gen_p_RG * base))
        sweep.modify_gen_v(np.ascontiguousarray(gen_v_RG))
        if branch_out_RE is not None:
            sweep.set_contingency_lines(np.ascontiguousarray(branch_out_RE[:, self._lines]))
            sweep.set_contingency_trafos(np.ascontiguousarray(branch_out_RE[:, self._trafos]))
        if gen_out_RG is not None:
            sweep.set_contingency_gens(np.ascontiguousarray(gen_out_RG))
        sweep.compute(self.start_N, self.max_iter, self.tol_pu)
        v = np.array(sweep.get_voltages())
        converged = np.array(sweep.converged_mask(), dtype=bool)
        iterations = np.array(sweep.get_row_nb_iter(), dtype=np.int64)
        split = np.zeros(rows, dtype=bool)
        if branch_out_RE is not None:
            # Zero iterations mean "not handed to the solver"; our own connectivity test confirms the split.
            for unsolved in np.flatnonzero(~converged & (iterations == 0)):
                split[unsolved] = not connected(case, branch_out_RE[unsolved])
        v[~converged] = np.nan
        return Solution(v_RN=v, converged_R=converged, split_R=split, iterations_R=iterations)

    def solve_base(self) -> Solution:
        """The case's own operating point."""
        case = self.case
        return self.solve(case.load_p[None], case.load_q[None], case.gen_p[None], case.gen_v[None])


def connected(case: GridCase, branch_out_E: Bool) -> bool:
    """Whether every bus stays reachable with the marked branches out."""
    on = ~branch_out_E
    graph = sp.coo_matrix((np.ones(int(on.sum())), (case.f_bus[on], case.t_bus[on])), shape=(case.n_bus, case.n_bus))
    return bool(connected_components(graph, directed=False, return_labels=False) == 1)


def bridges(case: GridCase, out: Sequence[int] = ()) -> Bool:
    """[E] branches whose single outage splits the grid (parallel circuits are never bridges).  Source: Tarjan 1974.

    Args: out  branches that are out of service already; they count as bridges, since none of them can be opened again
    """
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(case.n_bus))
    count: dict[tuple[int, int], int] = {}
    ends = [(min(f, t), max(f, t)) for f, t in zip(case.f_bus.tolist(), case.t_bus.tolist(), strict=True)]
    gone = set(out)
    for branch, key in enumerate(ends):
        if branch not in gone:
            count[key] = count.get(key, 0) + 1
            graph.add_edge(*key)
    cut = {(min(a, b), max(a, b)) for a, b in nx.bridges(graph)}
    return np.array([branch in gone or (key in cut and count[key] == 1) for branch, key in enumerate(ends)])


def _powermodels(case: GridCase) -> dict[str, Any]:
    """GridCase as the PowerModels dictionary that lightsim2grid reads: one load and one generator entry per bus."""
    network: dict[str, Any] = {"baseMVA": case.base_mva, "per_unit": False, "load": {}, "shunt": {}, "gen": {}}
    base = case.base_mva
    network["bus"] = {
        str(i + 1): {
            "bus_i": i + 1,
            "bus_type": int(case.kind[i]),
            "base_kv": float(case.vn_kv[i]),
            "vmin": float(case.v_min[i]),
            "vmax": float(case.v_max[i]),
        }
        for i in range(case.n_bus)
    }
    for i in np.flatnonzero((case.load_p != 0) | (case.load_q != 0)):
        network["load"][str(i + 1)] = {
            "load_bus": int(i) + 1, "pd": float(case.load_p[i] * base), "qd": float(case.load_q[i] * base), "status": 1
        }  # fmt: skip
    for i in np.flatnonzero((case.gs != 0) | (case.bs != 0)):
        network["shunt"][str(i + 1)] = {
            "shunt_bus": int(i) + 1,
            "gs": float(case.gs[i]),
            "bs": float(case.bs[i]),
            "status": 1,
        }
    for k in range(case.n_gen):
        bus = int(case.gen_bus[k])
        if case.kind[bus] == PQ:
            raise CaseError(f"{case.name}: generator {k} sits on PQ bus {case.bus_names[bus]}")
        network["gen"][str(k + 1)] = {
            "gen_bus": bus + 1, "pg": float(case.gen_p[k] * base), "qg": 0.0, "qmax": 1e9, "qmin": -1e9,
            "vg": float(case.gen_v[k]), "mbase": base, "gen_status": 1, "pmax": 1e9, "pmin": -1e9,
        }  # fmt: skip
    if int((case.kind == SLACK).sum()) != 1:
        raise CaseError(f"{case.name}: needs exactly one slack bus, has {int((case.kind == SLACK).sum())}")
    network["branch"] = {
        str(e + 1): {
            "f_bus": int(case.f_bus[e]) + 1, "t_bus": int(case.t_bus[e]) + 1,
            "br_r": float(case.r[e]), "br_x": float(case.x[e]),
            "g_fr": float(case.g[e] / 2), "g_to": float(case.g[e] / 2),
            "b_fr": float(case.b[e] / 2), "b_to": float(case.b[e] / 2),
            "tap": float(case.tap[e]), "shift": float(case.shift[e]),
            "transformer": bool(case.transformer[e]), "rate_a": float(case.rate[e] * base), "br_status": 1,
        }
        for e in range(case.n_branch)
    }  # fmt: skip
    return network
