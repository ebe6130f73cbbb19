"""What the newest readings say against an earlier estimate, bus by bus, through the measurement Jacobian.

Flow:    grid.estimation (cached factors) -> [jacobian] -> verifier.features
Source:  verifier.md, section 6 (Jacobian features); hat matrix: Abur and Exposito 2004, ch. 5; model resolution
         matrix: Menke 2012, ch. 4; docs/adr/0015-jacobian-block.md
Shapes:  B windows, N buses, E branches, M installed meters, U pseudo-measurements, X = 2N states (angles, magnitudes)
Units:   p.u. and rad inside, float64; what comes out is dimensionless

With dz = z - h(x0) for an earlier estimate x0, G = Hm' W Hm + Hu' D^-1 Hu the estimator's gain matrix and P = G^-1:

    move         dx = P Hm' W dz                   how the state must have moved (an absent reading: as predicted)
    explained    Hm dx                             what such a move does to the meters
    unexplained  dz - Hm dx                        what no move of the state can do
    weak part    P Hu' D^-1 Hu dx, virtual meters left out: the share of dx that the prior decides, not the meters

Each is divided by the noise that both scans carry into it: Var dz = R + Hm P Hm', so Var dx <= 2 P, Var(Hm dx) <=
2 Hm P Hm' and Var(dz - Hm dx) <= R - Hm P Hm', with equality where meters and not the prior decide: on readings that
only noise moves, no column exceeds unit variance.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from gg_ray.grid.cases import GridCase
from gg_ray.grid.estimation import ZERO_INJECTION_SIGMA, Estimator, Gain
from gg_ray.grid.meters import MeterPlan, measure
from gg_ray.grid.ybus import BranchAdmittance
from gg_ray.records import F64, Bool

C128 = NDArray[np.complex128]
COLUMNS = (
    "move_angle", "move_v", "move_p", "move_q", "explained", "unexplained", "ratio", "weak", "sensitivity_angle",
    "sensitivity_v", "leverage", "seen",
)  # fmt: skip
"""Per bus: asinh of the moves of angle, |V|, P and Q injection in standard deviations; log of 1 + root mean square of
the explained and the unexplained part over the meters at the bus; (u - e) / (u + e + 1) of their mean squares; log of
1 + root mean square of the weak part of the move; a fifth of the log10 of 1 + column norm of W^(1/2) Hm over the
readings that are there; mean leverage of those; log of 1 + their number."""
F_JAC = len(COLUMNS)
_SCANS = 2
"""Scans whose noise is in a move: the newest and the one before."""
_LEAST_SPREAD = 0.01
"""Share of a meter's variance below which its explained part counts no finer: a chord is not that exact."""


def jacobian_features(
    estimator: Estimator,
    z_BM: F64,
    v_BN: C128,
    status_BE: Bool,
    y: BranchAdmittance | None = None,
) -> F64:
    """The Jacobian block of windows that share a grid, a metering plan and declared admittances.

    Args:    z_BM  newest readings, NaN where absent or aged;  v_BN  estimate of an earlier scan, p.u.
             status_BE  declared branch status of the newest scan;  y  declared admittances (default: published)
    Returns: [B, N, F_JAC], columns as in COLUMNS; zero moves where readings say what the estimate predicts.
             A window's block depends on that window alone.
    """
    case, plan = estimator.case, estimator.plan
    # a meter on a branch that is declared out has nothing to say about the state
    at_branch = plan.channels >= 4 * case.n_bus
    present = np.isfinite(z_BM)
    present[:, at_branch] &= status_BE[:, (plan.channels[at_branch] - 4 * case.n_bus) % case.n_branch]
    dz_BM = np.where(present, z_BM - measure(case, v_BN, y, status_BE, plan.channels), 0.0)
    place = _meters_at(case, plan)
    out = np.empty((z_BM.shape[0], case.n_bus, F_JAC))
    for rows, gain in estimator.gains(z_BM, status_BE):
        out[rows] = _block(gain, dz_BM[rows], present[rows], place)
    return out


def _block(gain: Gain, dz_BM: F64, present_BM: Bool, place_NM: sp.csr_matrix) -> F64:
    """COLUMNS of windows that share a factor."""
    case, prior, (count, meters), n = gain.case, gain.prior, dz_BM.shape, gain.case.n_bus
    variance_X, spread_K = gain.variances()
    spread, r = spread_K[:meters], gain.plan.sigma**2
    dx = gain.solve(gain.gradient(np.concatenate([dz_BM, np.zeros((count, 3 * n))], axis=1))).T
    dx[:, case.slack] = 0.0  # the reference, not a state
    response = gain.response(dx)
    explained, implied = response[:, :meters], response[:, meters:]
    # where nothing is connected nothing is injected: such a row is a meter without noise, not an assumption
    assumed = np.concatenate([prior.p > ZERO_INJECTION_SIGMA, prior.q > ZERO_INJECTION_SIGMA, np.isfinite(prior.v)])
    weak = gain.solve(gain.gradient(np.concatenate([np.zeros_like(dz_BM), implied * assumed], axis=1))).T

    at_bus = _Means(place_NM, present_BM)
    e = at_bus.of(explained**2 / (_SCANS * np.maximum(spread, _LEAST_SPREAD * r)))
    u = at_bus.of((dz_BM - explained) ** 2 / gain.omega)
    sd_x, sd_u = np.sqrt(_SCANS * variance_X), np.sqrt(_SCANS * spread_K[meters : meters + 2 * n])
    moves = np.concatenate([dx / sd_x, implied[:, : 2 * n] / sd_u], axis=1).reshape(count, 4, n)
    norms = np.stack([e, u, np.square(weak / sd_x).reshape(count, 2, n).mean(axis=1)], axis=1)
    size = np.log1p(np.sqrt(norms))
    columns = np.sqrt(gain.information(present_BM)).reshape(count, 2, n)
    leverage = at_bus.of(np.broadcast_to(np.clip(spread / r, 0.0, 1.0), dz_BM.shape))
    return np.concatenate(
        [
            np.arcsinh(moves), size[:, :2], ((u - e) / (u + e + 1))[:, None], size[:, 2:], np.log10(1 + columns) / 5,
            leverage[:, None], np.log1p(at_bus.count)[:, None],
        ],
        axis=1,
    ).transpose(0, 2, 1)  # fmt: skip


class _Means:
    """Means over the meters at each bus whose reading is there, 0 at a bus without any."""

    def __init__(self, place_NM: sp.csr_matrix, present_BM: Bool) -> None:
        self._place, self._present = place_NM, present_BM
        self.count: F64 = np.asarray((place_NM @ present_BM.T.astype(np.float64)).T)

    def of(self, values_BM: F64) -> F64:
        """[B, N]"""
        total = (self._place @ (values_BM * self._present).T).T
        return np.asarray(total / np.maximum(self.count, 1.0))


def _meters_at(case: GridCase, plan: MeterPlan) -> sp.csr_matrix:
    """[N, M] 1 where a meter sits at a bus: its own channels, and of each branch those at its end."""
    owner = np.concatenate([np.tile(np.arange(case.n_bus), 4), case.f_bus, case.f_bus, case.t_bus, case.t_bus])
    ones, meters = np.ones(plan.size), np.arange(plan.size)
    return sp.csr_matrix((ones, (owner[plan.channels], meters)), shape=(case.n_bus, plan.size))
