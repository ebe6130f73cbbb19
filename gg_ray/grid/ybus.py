"""Admittances, branch flows and the power-balance residual: our float64 judge.

Flow:    grid.cases -> [ybus] -> grid.powerflow (check), grid.meters, grid.estimation, scenario.executor
Source:  pi-branch with off-nominal tap and phase shift (MATPOWER manual, eq. 3.1-3.3); residual dS = S - V conj(Y V)
Run:     python -m gg_ray.grid.ybus case118      # largest residual of the base state, p.u.
Shapes:  R rows (scans of all programs), N buses, E branches
Units:   p.u.; voltages stay complex128: float32 storage alone costs up to 0.94 MVA on `gb`
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from gg_ray.grid.cases import SLACK, CaseError, GridCase
from gg_ray.records import F64, I64, Bool

C128 = NDArray[np.complex128]
_NOWHERE = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class BranchAdmittance:
    """[E] entries of the 2x2 branch admittance: I_f = yff V_f + yft V_t, I_t = ytf V_f + ytt V_t."""

    yff: C128
    yft: C128
    ytf: C128
    ytt: C128


def branch_admittance(case: GridCase, tap: F64 | None = None, x_scale: F64 | None = None) -> BranchAdmittance:
    """Pi-model admittances, optionally with declared taps or line lengths instead of the case's own.

    Args:   tap [E] ratio; x_scale [E] factor on r, x, g and b together: a line of another length
    Raises: CaseError if a branch has zero impedance.   Source: MATPOWER manual eq. 3.2
    """
    length = 1.0 if x_scale is None else x_scale
    z = ((case.r + 1j * case.x) * length).astype(np.complex128)
    if np.any(z == 0):
        dead = int(np.flatnonzero(z == 0)[0])
        raise CaseError(f"{case.name}: branch {dead} ({case.branch_names[dead]}) has r = x = 0; merge its buses")
    ys = 1.0 / z
    shunt = 0.5 * (case.g + 1j * case.b) * length
    ratio = (case.tap if tap is None else tap) * np.exp(1j * case.shift)
    ytt = np.asarray(ys + shunt, dtype=np.complex128)
    return BranchAdmittance(yff=ytt / (ratio * ratio.conj()), yft=-ys / ratio.conj(), ytf=-ys / ratio, ytt=ytt)


def ybus(case: GridCase, status: Bool | None = None, admittance: BranchAdmittance | None = None) -> sp.csr_matrix:
    """[N, N] bus admittance matrix with shunts; branches with status False are left out."""
    y = branch_admittance(case) if admittance is None else admittance
    on = np.ones(case.n_branch) if status is None else status.astype(np.float64)
    n, f, t = case.n_bus, case.f_bus, case.t_bus
    rows = np.concatenate([f, f, t, t, np.arange(n)])
    cols = np.concatenate([f, t, f, t, np.arange(n)])
    data = np.concatenate([y.yff * on, y.yft * on, y.ytf * on, y.ytt * on, case.gs + 1j * case.bs])
    matrix: sp.csr_matrix = sp.coo_matrix((data, (rows, cols)), shape=(n, n)).tocsr()
    matrix.sum_duplicates()
    return matrix


def branch_flows(case: GridCase, v_RN: C128, y: BranchAdmittance, status_RE: Bool | None = None) -> tuple[C128, C128]:
    """Complex power entering each branch at its from and at its to end, [R, E] each; zero where out of service."""
    vf, vt = v_RN[:, case.f_bus], v_RN[:, case.t_bus]
    s_f = vf * np.conj(y.yff * vf + y.yft * vt)
    s_t = vt * np.conj(y.ytf * vf + y.ytt * vt)
    if status_RE is not None:
        s_f = np.where(status_RE, s_f, 0)
        s_t = np.where(status_RE, s_t, 0)
    return s_f, s_t


@functools.lru_cache(maxsize=64)
def incidence(case_name: str, sha: str, n: int, f: bytes, t: bytes) -> sp.csr_matrix:
    """[N, 2E] 0/1 matrix that sums branch ends (all from ends, then all to ends) at their buses."""
    fb, tb = np.frombuffer(f, dtype=np.int64), np.frombuffer(t, dtype=np.int64)
    e = fb.size
    return sp.csr_matrix((np.ones(2 * e), (np.concatenate([fb, tb]), np.arange(2 * e))), shape=(n, 2 * e))


def ends_matrix(case: GridCase) -> sp.csr_matrix:
    """Cached incidence of branch ends; net injection without shunts = ends_matrix @ [s_f, s_t]."""
    return incidence(case.name, case.sha256(), case.n_bus, case.f_bus.tobytes(), case.t_bus.tobytes())


def injections(case: GridCase, v_RN: C128, s_f: C128, s_t: C128) -> C128:
    """Net injection per bus, shunts excluded (they belong to Ybus), plus the shunt draw: S = sum of ends + shunt.

    The meter model defines "injection" once: generation minus load, which equals branch ends plus the bus shunt.
    """
    ends = (ends_matrix(case) @ np.concatenate([s_f, s_t], axis=1).T).T
    shunt = (np.abs(v_RN) ** 2) * (case.gs - 1j * case.bs)
    return np.asarray(ends + shunt)


@numba.njit(cache=True, fastmath=False)
def _residual_kernel(  # type: ignore[no-untyped-def]
    indptr, indices, g, b, e, f, p, q, dp, dq, block
):  # pragma: no cover - compiled
    """dS = S - V conj(YV), batch last, rectangular, one fused pass; scratch stays in cache for `block` states."""
    n, width = e.shape
    re = np.empty(block)
    im = np.empty(block)
    for start in range(0, width, block):
        stop = min(start + block, width)
        m = stop - start
        for i in range(n):
            for k in range(m):
                re[k] = 0.0
                im[k] = 0.0
            for entry in range(indptr[i], indptr[i + 1]):
                j = indices[entry]
                gg = g[entry]
                bb = b[entry]
                for k in range(m):
                    ej = e[j, start + k]
                    fj = f[j, start + k]
                    re[k] += gg * ej - bb * fj
                    im[k] += gg * fj + bb * ej
            for k in range(m):
                ei = e[i, start + k]
                fi = f[i, start + k]
                dp[i, start + k] = p[i, start + k] - (ei * re[k] + fi * im[k])
                dq[i, start + k] = q[i, start + k] - (fi * re[k] - ei * im[k])


_LANES = 8


@numba.njit(cache=True)
def _larger(most, off):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """The larger of two deviations; what is not a number is infinitely large and stays so."""
    if off <= most:
        return most
    return off if off == off else np.inf


@numba.njit(cache=True, fastmath=False)
def _worst_kernel(  # type: ignore[no-untyped-def]
    indptr, indices, g, b, v, load_p, load_q, gen_bus, gen_p, gen_v, gen_out, kind, rows, f_bus, t_bus, delta
):  # pragma: no cover - compiled
    """Largest deviation of each row from what was asked for; `delta` corrects branches row by row, rows ascending.

    Rows go in lanes: one pass over the matrix serves them all, and the inner loops are as wide as the machine's words.
    """
    count, n = v.shape
    worst = np.zeros(count)
    e, f = np.zeros((n, _LANES)), np.zeros((n, _LANES))
    dp, dq = np.empty((n, _LANES)), np.empty((n, _LANES))
    re, im = np.empty(_LANES), np.empty(_LANES)
    holds = np.empty(n, dtype=np.bool_)
    at = 0
    for start in range(0, count, _LANES):
        lanes = min(_LANES, count - start)
        for k in range(lanes):
            for i in range(n):
                e[i, k], f[i, k] = v[start + k, i].real, v[start + k, i].imag
        for i in range(n):
            re[:] = 0.0
            im[:] = 0.0
            for entry in range(indptr[i], indptr[i + 1]):
                j, gg, bb = indices[entry], g[entry], b[entry]
                for k in range(_LANES):
                    re[k] += gg * e[j, k] - bb * f[j, k]
                    im[k] += gg * f[j, k] + bb * e[j, k]
            for k in range(_LANES):
                dp[i, k] = -(e[i, k] * re[k] + f[i, k] * im[k])
                dq[i, k] = -(f[i, k] * re[k] - e[i, k] * im[k])
        for k in range(lanes):
            r = start + k
            while at < rows.shape[0] and rows[at] == r:
                own, far = f_bus[at], t_bus[at]
                vf, vt = v[r, own], v[r, far]
                s_f = vf * np.conj(delta[at, 0] * vf + delta[at, 1] * vt)
                s_t = vt * np.conj(delta[at, 2] * vf + delta[at, 3] * vt)
                dp[own, k] -= s_f.real
                dq[own, k] -= s_f.imag
                dp[far, k] -= s_t.real
                dq[far, k] -= s_t.imag
                at += 1
            most = 0.0
            holds[:] = False
            for m in range(gen_bus.shape[0]):
                bus = gen_bus[m]
                if not gen_out[r, m]:
                    dp[bus, k] += gen_p[r, m]
                    holds[bus] = True
                    off = abs(np.hypot(e[bus, k], f[bus, k]) - gen_v[r, m])
                    most = _larger(most, off)
            for i in range(n):
                if kind[i] == SLACK:
                    continue
                off = abs(dp[i, k] - load_p[r, i])
                most = _larger(most, off)
                if not holds[i]:
                    off = abs(dq[i, k] - load_q[r, i])
                    most = _larger(most, off)
            worst[r] = most
    return worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a power flow was asked to solve, R rows: demand and output, p.u., set-points, machines and branches.

    taps: (rows, branch, ratio) where a ratio differs from the case's own
    """

    load_p_RN: F64
    load_q_RN: F64
    gen_p_RG: F64
    gen_v_RG: F64
    gen_out_RG: Bool
    status_RE: Bool
    taps: Sequence[tuple[slice, int, float]] = ()


class Judge:
    """Power-balance residual of reported states, in float64, independent of any solver.

    Invariant: never calls the engine that made the state; with S taken as V conj(Y V) the residual is < 1e-8 p.u.
    """

    def __init__(self, case: GridCase) -> None:
        self.case = case
        self._y = branch_admittance(case)
        self._own = np.stack([self._y.yff, self._y.yft, self._y.ytf, self._y.ytt], axis=1)
        matrix = ybus(case)
        self._indptr = matrix.indptr.astype(np.int32)
        self._indices = matrix.indices.astype(np.int32)
        self._g = np.ascontiguousarray(matrix.data.real)
        self._b = np.ascontiguousarray(matrix.data.imag)

    def residual_batch_last(self, e: F64, f: F64, p: F64, q: F64) -> tuple[F64, F64]:
        """[N, R] rectangular voltage and reported injection -> [N, R] active and reactive mismatch, p.u."""
        dp, dq = np.empty_like(e), np.empty_like(e)
        _residual_kernel(self._indptr, self._indices, self._g, self._b, e, f, p, q, dp, dq, 64)
        return dp, dq

    def residual(self, v_RN: C128, s_RN: C128, status_RE: Bool | None = None) -> C128:
        """[R, N] complex mismatch, p.u.; positive means more power injected than carried away.

        status_RE marks branches in service per row; the base matrix is corrected by the flows of absent branches.
        """
        e, f = np.ascontiguousarray(v_RN.real.T), np.ascontiguousarray(v_RN.imag.T)
        p, q = np.ascontiguousarray(s_RN.real.T), np.ascontiguousarray(s_RN.imag.T)
        dp, dq = self.residual_batch_last(e, f, p, q)
        out: C128 = (dp + 1j * dq).T
        if status_RE is not None and not status_RE.all():
            rows, branches = np.nonzero(~status_RE)
            fb, tb = self.case.f_bus[branches], self.case.t_bus[branches]
            vf, vt = v_RN[rows, fb], v_RN[rows, tb]
            y = self._y
            np.add.at(out, (rows, fb), vf * np.conj(y.yff[branches] * vf + y.yft[branches] * vt))
            np.add.at(out, (rows, tb), vt * np.conj(y.ytf[branches] * vf + y.ytt[branches] * vt))
        return out

    def worst(self, v_RN: C128, asked: Asked) -> F64:
        """[R] largest deviation of a solved state from what was asked for, p.u.; inf where a state is not a number.

        Checked: P at every bus but the slack; Q at every bus without a machine in service, for a PV bus that has lost
        its machine holds no voltage (lightsim2grid solves it as PQ, tested); |V| where a machine is in service.
        """
        rows, branches, delta = self._corrections(asked)
        case = self.case
        return np.asarray(_worst_kernel(
            self._indptr, self._indices, self._g, self._b, np.ascontiguousarray(v_RN),
            np.ascontiguousarray(asked.load_p_RN), np.ascontiguousarray(asked.load_q_RN), case.gen_bus,
            np.ascontiguousarray(asked.gen_p_RG), np.ascontiguousarray(asked.gen_v_RG),
            np.ascontiguousarray(asked.gen_out_RG), case.kind, rows, case.f_bus[branches], case.t_bus[branches], delta,
        ))  # fmt: skip

    def _corrections(self, asked: Asked) -> tuple[I64, I64, C128]:
        """Rows (ascending) and branches whose admittance is not the case's own, and [., 4] by how much it differs."""
        own = self._own
        rows, branches = np.nonzero(~asked.status_RE) if not asked.status_RE.all() else _NOWHERE
        parts = [(rows, branches, -own[branches])]
        for when, branch, ratio in asked.taps:
            moved = np.arange(*when.indices(asked.status_RE.shape[0]))
            moved = moved[asked.status_RE[moved, branch]]  # an open branch carries nothing, whatever its ratio
            share = self.case.tap[branch] / ratio
            change = own[branch] * np.array([share * share, share, share, 1.0]) - own[branch]
            parts.append((moved, np.full(moved.size, branch), np.tile(change, (moved.size, 1))))
        rows, branches, delta = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(rows, kind="stable")
        return rows[order], branches[order], delta[order]


if __name__ == "__main__":
    import sys

    from gg_ray.grid.cases import load_case

    grid = load_case(sys.argv[1])
    state = grid.v0[None]
    reported = injections(grid, state, *branch_flows(grid, state, branch_admittance(grid)))
    sys.stdout.write(f"{grid.name}: {np.abs(Judge(grid).residual(state, reported)).max():.2e} p.u.\n")
