"""Measurement Jacobian and prior-aided state estimation.

Flow:    grid.meters -> [estimation] -> grid.detectability, grid.jacobian, verifier.features, baselines
Source:  Schweppe 1970 (WLS); Abur and Exposito 2004, ch. 2 and 5; injections as pseudo-measurements; docs/physics.md
Shapes:  R rows, T scans, N buses, E branches, F full layout, M installed channels, X = 2N states (angles, magnitudes),
         U pseudo-measurements: P at every bus, Q at every bus, |V| at every bus (zero weight where it is free)
Units:   p.u., rad

One gain matrix G = H' W H + Hpq' D^-1 Hpq serves two purposes. With a wide prior D it is the estimator whose
normalised residuals feed every detector; with D = the plausible injection moves of a window it measures how far an
anomaly leads away from everything plausible (grid.detectability).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla
import scipy.sparse as sp
from numpy.typing import NDArray

from gg_ray.grid.cases import PV, SLACK, GridCase
from gg_ray.grid.meters import MeterPlan, measure
from gg_ray.grid.selected_inverse import SelectedInverse, symmetric_factor
from gg_ray.grid.ybus import BranchAdmittance, branch_admittance, ends_matrix
from gg_ray.records import F64, Bool

C128 = NDArray[np.complex128]
DENSE_STATES = 900
"""Up to this many states the gain matrix is inverted densely: matrix products beat sparse solves."""
ZERO_INJECTION_SIGMA = 1e-3


def jacobian(case: GridCase, v: C128, y: BranchAdmittance | None = None) -> sp.csr_matrix:
    """[F, 2N] derivative of every channel by (angle, |V|) at state v.

    Source: MATPOWER technical note 2 (complex derivatives of branch flows); checked against finite differences.
    """
    y = branch_admittance(case) if y is None else y
    n, e = case.n_bus, case.n_branch
    f, t = case.f_bus, case.t_bus
    vf, vt = v[f], v[t]
    i_f, i_t = y.yff * vf + y.yft * vt, y.ytf * vf + y.ytt * vt
    rows = np.arange(e)

    def end(vo: C128, current: C128, y_own: C128, y_far: C128, own: Any, far: Any, v_far: C128) -> sp.csr_matrix:
        unit_o, unit_f = vo / np.abs(vo), v_far / np.abs(v_far)
        d_own_angle = 1j * vo * np.conj(current) - 1j * vo * np.conj(y_own * vo)
        d_far_angle = -1j * vo * np.conj(y_far * v_far)
        d_own_mag = unit_o * np.conj(current) + vo * np.conj(y_own * unit_o)
        d_far_mag = vo * np.conj(y_far * unit_f)
        data = np.concatenate([d_own_angle, d_far_angle, d_own_mag, d_far_mag])
        cols = np.concatenate([own, far, n + own, n + far])
        return sp.csr_matrix((data, (np.tile(rows, 4), cols)), shape=(e, 2 * n))

    d_f = end(vf, i_f, y.yff, y.yft, f, t, vt)
    d_t = end(vt, i_t, y.ytt, y.ytf, t, f, vf)
    shunt = sp.csr_matrix(
        (2 * np.abs(v) * (case.gs - 1j * case.bs), (np.arange(n), n + np.arange(n))), shape=(n, 2 * n)
    )
    d_s = ends_matrix(case) @ sp.vstack([d_f, d_t]).tocsr() + shunt
    eye = sp.identity(n, format="csr")
    zero = sp.csr_matrix((n, n))
    slack = sp.csr_matrix((np.ones(n), (np.arange(n), np.full(n, case.slack))), shape=(n, n))
    magnitude = sp.hstack([zero, eye])
    angle = sp.hstack([eye - slack, zero])
    return sp.vstack(
        [magnitude, d_s.real, d_s.imag, angle, d_f.real, d_f.imag, d_t.real, d_t.imag], format="csr"
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prior:
    """Injection pseudo-measurements: standard deviations of P and Q at every bus and of |V| where it is controlled."""

    p: F64
    q: F64
    v: F64
    """[N]; inf where the voltage is free."""


def wide_prior(case: GridCase) -> Prior:
    """What an estimator may assume without a forecast: demand and output within about half of their nominal size."""
    return _prior(case, 0.5, 0.02)


def plausible_prior(case: GridCase, load_noise: float) -> Prior:
    """How far injections plausibly move within a window: bus noise, dispatch following demand, free reactive output."""
    return _prior(case, load_noise, 0.01)


def _prior(case: GridCase, share: float, v_sigma: float) -> Prior:
    injected = case.load_p != 0
    p = np.where(injected, share * np.abs(case.load_p) + ZERO_INJECTION_SIGMA, ZERO_INJECTION_SIGMA)
    q = np.where(case.load_q != 0, share * np.abs(case.load_q) + ZERO_INJECTION_SIGMA, ZERO_INJECTION_SIGMA)
    p[case.gen_bus] += share * np.abs(case.gen_p) + 0.01
    typical = max(float(np.median(np.abs(case.load_p[injected]))) if injected.any() else 0.1, 0.05)
    q[case.gen_bus] += 5.0 * typical
    p[case.kind == SLACK] += 10.0 * typical
    controlled = (case.kind == PV) | (case.kind == SLACK)
    return Prior(p=p, q=q, v=np.where(controlled, v_sigma, np.inf))


class Gain:
    """Factorised gain matrix of one metering plan and one prior at the base state.

    Invariant: G = Hm' W Hm + Hu' D^-1 Hu + anchor, with the rows of installed meters (m) and pseudo-measurements (u).
    """

    def __init__(self, case: GridCase, plan: MeterPlan, prior: Prior, h: sp.csr_matrix | None = None) -> None:
        self.case, self.plan, self.prior = case, plan, prior
        n = case.n_bus
        full = jacobian(case, case.v0) if h is None else h
        self.pseudo_channels = np.concatenate([np.arange(n, 2 * n), np.arange(2 * n, 3 * n), np.arange(n)])
        with np.errstate(divide="ignore"):
            pseudo = np.concatenate([1.0 / prior.p**2, 1.0 / prior.q**2, 1.0 / prior.v**2])
        self.precision = np.concatenate([1.0 / plan.sigma**2, pseudo])
        """[M + U] inverse variance of every reading, then of every pseudo-measurement."""
        rows = full[np.concatenate([plan.channels, self.pseudo_channels])]
        # Sparse on every grid: a bus has few branches, so even at 14 buses the dense product is the slower one.
        self._h_t = rows.T.tocsr()
        rows.data *= np.repeat(self.precision, np.diff(rows.indptr))
        # The slack angle is the reference; the faint rest keeps a bus that declarations cut off from being singular.
        anchor = np.where(np.arange(2 * n) == case.slack, 1e8, 1e-3)
        self._inverse: F64 | None = None
        self.dense = 2 * n <= DENSE_STATES
        if self.dense:
            gain = (self._h_t @ rows).toarray()
            gain[np.diag_indices(2 * n)] += anchor
            self._inverse = sla.inv(gain, overwrite_a=True, check_finite=False)
        else:
            self._lu = symmetric_factor((self._h_t @ rows + sp.diags(anchor)).tocsc())
        self._variances: tuple[F64, F64] | None = None

    @property
    def h_m(self) -> sp.csr_matrix:
        """[M, X] rows of the installed meters."""
        return self._h_t.T.tocsr()[: self.plan.size]

    @property
    def h_u(self) -> sp.csr_matrix:
        """[U, X] rows of the pseudo-measurements."""
        return self._h_t.T.tocsr()[self.plan.size :]

    def solve(self, rhs_XR: F64) -> F64:
        """G^-1 rhs for [X, R]."""
        if self._inverse is not None:
            return np.asarray(self._inverse @ rhs_XR)
        return np.asarray(self._lu.solve(np.ascontiguousarray(rhs_XR)))

    def gradient(self, au_RK: F64) -> F64:
        """[X, R] right-hand side Hm' W a + Hu' D^-1 u from [a, u] side by side, K = M + U."""
        return np.asarray(self._h_t @ (au_RK * self.precision).T)

    def response(self, dx_RX: F64) -> F64:
        """[R, K] changes of meters, then of pseudo-measurements, that a state move causes."""
        return np.asarray((self._h_t.T @ dx_RX.T).T)

    def information(self, present_RM: Bool) -> F64:
        """[R, X] diagonal of Hm' W Hm over the readings that are there."""
        squares = sp.csr_matrix((self._h_t.data**2, self._h_t.indices, self._h_t.indptr), shape=self._h_t.shape)
        weights = np.zeros((self.precision.size, present_RM.shape[0]))
        weights[: self.plan.size] = (present_RM * self.precision[: self.plan.size]).T
        return np.asarray((squares @ weights).T)

    def variances(self) -> tuple[F64, F64]:
        """Diagonal of G^-1 [X], and h G^-1 h' of every row h, meters and then pseudo-measurements [M + U]."""
        if self._variances is None:
            rows = self._h_t.T.tocsr()
            if self._inverse is not None:
                spread = rows.multiply(rows @ self._inverse).sum(axis=1).A1
                self._variances = np.diagonal(self._inverse).copy(), spread
            else:
                selected = SelectedInverse(self._lu, rows)
                self._variances = selected.diagonal, selected.quadratic(rows)
        return self._variances

    @property
    def omega(self) -> F64:
        """[M] variance of each meter's residual: R - Hm G^-1 Hm' (diagonal), floored at 10 % of R.

        A critical measurement has no redundancy and residual variance near zero; the floor keeps it from exploding.
        """
        r = self.plan.sigma**2
        return np.asarray(np.clip(r - self.variances()[1][: self.plan.size], 0.1 * r, r))

    def misfit(self, au_RK: F64) -> F64:
        """[R] squared distance of innovations to the plausible set: min_dx |a - Hm dx|_W^2 + |u - Hu dx|_D^2.

        Side by side in au_RK: a acts on the meters, u on the pseudo-measurements (zero for pure data anomalies).
        """
        rhs = self.gradient(au_RK)
        total = (au_RK * au_RK) @ self.precision
        return np.asarray(np.maximum(total - np.einsum("xr,xr->r", rhs, self.solve(rhs)), 0.0))


LEVELS = (0.55, 0.7, 0.85, 1.0)
"""Demand levels at which an estimator keeps an operating point; rows use the nearest one."""
_TOPOLOGIES = 3
"""Outage patterns whose factors an estimator keeps: each is as large as an operating point and soon made again."""
_JACOBIANS, _GRIDS = 128, 16
"""Jacobians kept per grid, and grids: what a run of a few grids with single declared outages uses again."""
_SETTLED = 2e-5
"""Largest step, p.u. or rad, at which an estimate counts as converged: a hundredth of a voltage class."""


@dataclass(slots=True)
class _Point:
    """An operating point of an estimator: where the chord iteration starts and what it factorised."""

    v: C128
    gain: Gain


class Estimator:
    """Prior-aided weighted-least-squares estimate of every scan (accelerated chord Gauss-Newton on cached factors).

    Factors exist per demand level, and on grids small enough for dense algebra per declared outage pattern too, because
    a chord with the wrong level or topology converges too slowly to be called converged. Jacobians depend on the grid
    alone and are shared by the estimators of all metering plans.

    Invariant: factors belong to (case, plan); absent readings have no influence; twelve steps at most bring the update
    far below the meter noise on every shipped grid (tested). Large grids keep the base topology and take twice as many
    for outages.
    """

    def __init__(self, case: GridCase, plan: MeterPlan, steps: int = 12) -> None:
        self.case, self.plan, self.steps = case, plan, steps
        self._prior = wide_prior(case)
        self._shared = _linearisations(case)
        base = measure(case, case.v0[None])[0]
        self.points = [self._point(level) for level in range(len(self._shared.states))]
        self.gain = self.points[-1].gain
        self._special: OrderedDict[tuple[int, bytes], _Point] = OrderedDict()
        self._centre = base[self.gain.pseudo_channels]
        self._channels = np.concatenate([plan.channels, self.gain.pseudo_channels])
        demand = np.zeros(plan.layout.size, dtype=bool)
        demand[case.n_bus : 2 * case.n_bus] = case.load_p > 0.02
        demand[case.n_bus + case.gen_bus] = False
        self._scaling = np.flatnonzero(demand[plan.channels])
        self._scaling_base = base[plan.channels[self._scaling]]

    def _point(self, level: int, status_E: Bool | None = None) -> _Point:
        h = self._shared.jacobian(level, status_E)
        return _Point(self._shared.states[level], Gain(self.case, self.plan, self._prior, h))

    def estimate(self, z_RM: F64, status_RE: Bool | None = None, y: BranchAdmittance | None = None) -> tuple[C128, F64]:
        """State and normalised residuals of each row.

        Args:    z_RM readings with NaN where absent; status_RE declared branch status; y declared admittances
        Returns: v [R, N] complex p.u. (slack angle zero); r / sqrt(omega) [R, M], zero where absent.
                 Unit normal on clean data (tested).
        """
        rows = z_RM.shape[0]
        scale = self._scale(z_RM)
        v = np.empty((rows, self.case.n_bus), dtype=np.complex128)
        r = np.empty_like(z_RM)
        y = branch_admittance(self.case) if y is None else y
        for members, point, status in self._groups(z_RM, scale, status_RE):
            steps = self.steps if status is None or point.gain.dense else 2 * self.steps
            v[members], r[members] = self._iterate(z_RM[members], scale[members], point, status, y, steps)
        return v, r

    def gains(self, z_RM: F64, status_RE: Bool | None = None) -> Iterator[tuple[list[int], Gain]]:
        """Rows that share a factor, and the factor that `estimate` uses for them: arguments as there."""
        return ((rows, point.gain) for rows, point, _ in self._groups(z_RM, self._scale(z_RM), status_RE))

    def _groups(self, z_RM: F64, scale: F64, status_RE: Bool | None) -> Iterator[tuple[list[int], _Point, Bool | None]]:
        """Rows by demand level and declared outage pattern; status None where nothing is out."""
        rows = z_RM.shape[0]
        level = np.abs(scale[:, None] - np.array(LEVELS[-len(self.points) :])).argmin(axis=1)
        groups: dict[tuple[int, bytes], list[int]] = {}
        intact: Bool = np.ones(rows, dtype=bool) if status_RE is None else np.asarray(status_RE.all(axis=1))
        for row in range(rows):
            pattern = b"" if intact[row] or status_RE is None else np.packbits(status_RE[row]).tobytes()
            groups.setdefault((int(level[row]), pattern), []).append(row)
        for (index, pattern), members in groups.items():
            status = None if not pattern or status_RE is None else status_RE[members]
            yield members, self._lookup(index, pattern, status), status

    def _lookup(self, index: int, pattern: bytes, status: Bool | None) -> _Point:
        """The operating point of a level, refactorised for an outage pattern on small grids; least used leave first."""
        point = self.points[index]
        if status is None or not point.gain.dense:
            return point
        key = (index, pattern)
        if key in self._special:
            self._special.move_to_end(key)
            return self._special[key]
        special = self._point(index, status[0])
        self._special[key] = special
        if len(self._special) > _TOPOLOGIES:
            self._special.popitem(last=False)
        return special

    def _iterate(
        self, z_RM: F64, scale: F64, point: _Point, status_RE: Bool | None, y: BranchAdmittance, steps: int
    ) -> tuple[C128, F64]:
        case, gain = self.case, point.gain
        (rows, meters), n = z_RM.shape, case.n_bus
        present = np.isfinite(z_RM)
        # readings and pseudo-measurements side by side
        z = np.concatenate([np.where(present, z_RM, 0.0), np.tile(self._centre, (rows, 1))], axis=1)
        z[:, meters : meters + 2 * n] *= scale[:, None]
        used = np.concatenate([present, np.ones((rows, self._centre.size), dtype=bool)], axis=1)
        x = np.tile(np.concatenate([np.angle(point.v), np.abs(point.v)]), (rows, 1))
        memory = _Anderson()
        live = np.arange(rows)
        for _ in range(steps):
            status = None if status_RE is None else status_RE[live]
            h = measure(case, x[live, n:] * np.exp(1j * x[live, :n]), y, status, self._channels)
            step = gain.solve(gain.gradient((z[live] - h) * used[live])).T
            x[live] = memory.next(x[live], np.clip(step, -0.5, 0.5))
            x[:, n:] = np.clip(x[:, n:], 0.3, 1.7)
            # Each row stops by itself: its result must not depend on the rows it is batched with.
            moving = np.abs(step).max(axis=1) >= _SETTLED
            if not moving.any():
                break
            live = live[moving]
            memory.keep(moving)
        theta, vm = x[:, :n], x[:, n:]
        v = vm * np.exp(1j * theta)
        h = measure(case, v, y, status_RE, self.plan.channels)
        return v, np.where(present, z[:, :meters] - h, 0.0) / np.sqrt(gain.omega)

    def _scale(self, z_RM: F64) -> F64:
        """[R] demand level of each row: median ratio of metered to base demand, 1 where none is read."""
        if not self._scaling.size:
            return np.ones(z_RM.shape[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a row without any injection reading
            ratio = z_RM[:, self._scaling] / self._scaling_base
            scale = np.nanmedian(np.where(np.isfinite(ratio), ratio, np.nan), axis=1)
        return np.asarray(np.clip(np.nan_to_num(scale, nan=1.0), 0.3, 2.0))


class _Anderson:
    """Anderson acceleration of depth two for many fixed-point iterations at once, row by row.

    A chord step contracts by a factor near one half on stressed grids; combining the last three iterates so that their
    combined step is smallest makes eight steps worth about twenty.   Source: Walker and Ni 2011, eq. 2.1
    """

    def __init__(self) -> None:
        self._x: list[F64] = []
        self._f: list[F64] = []

    def keep(self, rows: Bool) -> None:
        """Forget the rows that have settled."""
        self._x, self._f = [x[rows] for x in self._x], [f[rows] for f in self._f]

    def next(self, x_RX: F64, f_RX: F64) -> F64:
        """The next iterate from the present one and its plain step."""
        self._x, self._f = [*self._x[-2:], x_RX], [*self._f[-2:], f_RX]
        if len(self._x) == 1:
            return x_RX + f_RX
        df = np.stack([f_RX - f for f in self._f[:-1]], axis=1)
        dx = np.stack([x_RX - x for x in self._x[:-1]], axis=1)
        gram = np.einsum("rix,rjx->rij", df, df)
        gram += 1e-10 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[1]) + 1e-300
        gamma = np.linalg.solve(gram, np.einsum("rix,rx->ri", df, f_RX)[..., None])[..., 0]
        return np.asarray(x_RX + f_RX - np.einsum("ri,rix->rx", gamma, dx + df))


def _without(y: BranchAdmittance, status_E: Bool) -> BranchAdmittance:
    return BranchAdmittance(y.yff * status_E, y.yft * status_E, y.ytf * status_E, y.ytt * status_E)


class _Linearisations:
    """Operating points of a grid and its Jacobians there, per declared outage pattern: the same for every plan."""

    def __init__(self, case: GridCase) -> None:
        self.case = case
        self.states = [v * np.exp(-1j * np.angle(v[case.slack])) for v in _operating_points(case)]
        self._y = branch_admittance(case)
        self._kept: OrderedDict[tuple[int, bytes], sp.csr_matrix] = OrderedDict()

    def jacobian(self, level: int, status_E: Bool | None = None) -> sp.csr_matrix:
        """[F, 2N] at operating point `level`; status_E leaves branches out. The least used ones are forgotten."""
        key = (level, b"" if status_E is None else np.packbits(status_E).tobytes())
        if key not in self._kept:
            y = self._y if status_E is None else _without(self._y, status_E)
            self._kept[key] = jacobian(self.case, self.states[level], y)
            if len(self._kept) > _JACOBIANS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _operating_points(case: GridCase) -> tuple[C128, ...]:
    """States at LEVELS, or the base state alone where one of them does not converge."""
    from gg_ray.grid.powerflow import PowerFlow

    levels = np.array(LEVELS)[:, None]
    solution = PowerFlow(case).solve(
        case.load_p * levels, case.load_q * levels, case.gen_p * levels, np.tile(case.gen_v, (len(LEVELS), 1))
    )  # fmt: skip
    lower = tuple(solution.v_RN[:-1]) if solution.converged_R[:-1].all() else ()
    return (*lower, case.v0)


def _linearisations(case: GridCase) -> _Linearisations:
    """The linearisations of a grid, made once per process."""
    key = case.sha256()
    if key not in _SHARED:
        if len(_SHARED) >= _GRIDS:
            _SHARED.pop(next(iter(_SHARED)))
        _SHARED[key] = _Linearisations(case)
    return _SHARED[key]


_SHARED: dict[str, _Linearisations] = {}
