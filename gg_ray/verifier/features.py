"""Telemetry windows to network inputs: physics residuals by noise-normalised estimation, temporal innovations, masks.

Flow:    scenario.executor (Window) -> [features] -> Experience -> verifier.batch -> verifier.model
Source:  verifier.md, section 6 (noise-normalised residuals); grid.estimation; features see the observed window only
Shapes:  B windows, T scans, N buses, E branches, M installed meters, F full layout
Units:   estimation in float64 p.u.; what the network gets is float16, dimensionless
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gg_ray.grid import balance, balance_estimation
from gg_ray.grid.cases import PV, SLACK, GridCase, load_case
from gg_ray.grid.estimation import Estimator
from gg_ray.grid.jacobian import F_JAC, jacobian_features
from gg_ray.grid.meters import MeterPlan
from gg_ray.grid.ybus import branch_admittance
from gg_ray.records import F32, F64, Window
from gg_ray.verifier.batch import F_EDGE, F_NODE, CaseStatic, GraphBatch, from_arrays

C128 = NDArray[np.complex128]
SCHEMA = 2
"""Version of what the network reads, features and statistics; kept in every model manifest."""
ESTIMATORS = 256
"""Factorised estimators kept per process; the oldest leaves."""


class FeatureError(ValueError):
    """A window that cannot be turned into features; the message names the field, the value and the way out."""


@dataclass(slots=True)
class Prepared:
    """Windows of one grid and plan after estimation: what every detector, learned or classical, is given.

    z_BTM readings (NaN absent); r_BTM normalised residuals (unit normal when clean); v_BTN estimated voltages
    """

    case: GridCase
    plan: MeterPlan
    windows: Sequence[Window]
    z_BTM: F64
    r_BTM: F64
    v_BTN: C128


@dataclass(slots=True)
class Features:
    """Network inputs of B windows of one grid (see verifier.batch for the meaning of each column)."""

    node_BTNF: NDArray[np.float16]
    edge_BTEF: NDArray[np.float16]
    xhat_BN2: F32
    meas_BN2: F32
    sigma_BN2: F32
    param_BE3: F32
    jac_BNJ: NDArray[np.float16]


class Featurizer:
    """Estimation and features for any (case, plan), Jacobian block on request; factors are built once and kept.

    Args: keep  meterings whose factors are kept; the one that was longest unused leaves
    Invariant: a window's features depend on that window alone, not on the others it is batched with (to 1e-9).
    Threads: one at a time.
    """

    def __init__(self, jacobian: bool = False, keep: int = ESTIMATORS) -> None:
        self.jacobian, self._keep = jacobian, keep
        self._estimators: OrderedDict[tuple[str, bytes], Estimator] = OrderedDict()

    def estimator(self, case: GridCase, plan: MeterPlan) -> Estimator:
        # All meters and their classes: plans from outside share one plan number.
        meters = hashlib.blake2b(plan.channels.tobytes() + plan.sigma.tobytes(), digest_size=16).digest()
        key = (case.name, meters)
        if key not in self._estimators:
            self._estimators[key] = Estimator(case, plan)
            if len(self._estimators) > self._keep:
                self._estimators.popitem(last=False)
        self._estimators.move_to_end(key)
        return self._estimators[key]

    def prepare(self, windows: Sequence[Window], plan: MeterPlan) -> Prepared:
        """Estimate every scan of windows that share a case and a plan.

        Raises: FeatureError for an empty list, a mix of cases, lengths or plans, or arrays of the wrong shape.
        """
        check(windows, plan)
        case = load_case(windows[0].case)
        z = np.stack([w.z_TM for w in windows])
        count, scans, m = z.shape
        # An aged value belongs to an earlier scan: after a real step it contradicts its fresh neighbours.
        fresh = np.where(np.stack([w.age_TM for w in windows]) == 0, z, np.nan)
        if case.name == balance.NAME:
            v_BTN, r_BTM = balance_estimation.estimate(fresh, plan)
            return Prepared(case, plan, windows, z, r_BTM, v_BTN)
        fresh = fresh.reshape(-1, m)
        status = np.stack([w.status_TE for w in windows]).astype(bool).reshape(-1, case.n_branch)
        r = np.empty((count * scans, m))
        v = np.empty((count * scans, case.n_bus), dtype=np.complex128)
        estimator = self.estimator(case, plan)
        for tap, x_scale, rows in _declared_models(case, windows):
            y = None if tap is None else branch_admittance(case, tap, x_scale)
            v[rows], r[rows] = estimator.estimate(fresh[rows], status[rows], y)
        return Prepared(case, plan, windows, z, r.reshape(count, scans, m), v.reshape(count, scans, -1))

    def features(self, prepared: Prepared) -> Features:
        """Float16 network inputs of prepared windows."""
        case, plan, z = prepared.case, prepared.plan, prepared.z_BTM
        count, scans, m = z.shape
        n, e = case.n_bus, case.n_branch
        present = np.isfinite(z)
        filled, seen = _carry_forward(z, present)
        mean = filled.sum(axis=1, where=seen, keepdims=True) / np.maximum(seen.sum(axis=1, keepdims=True), 1)
        unit = balance_estimation.scale(z, plan) if case.name == balance.NAME else plan.sigma[None, None]
        zeta = np.where(seen, (filled - mean) / unit, 0.0)
        delta = np.zeros_like(z)
        delta[:, 1:] = np.where(seen[:, :-1], np.diff(filled, axis=1) / (np.sqrt(2) * unit[:, -scans + 1 :]), 0.0)
        age = np.stack([w.age_TM for w in prepared.windows]).astype(np.float32)
        fresh = np.where(seen, np.exp(-age), 0.0)
        columns = np.empty((count, scans, m, 5), dtype=np.float32)
        columns[..., 0] = _value(np.where(seen, filled, 0.0), plan) * seen
        columns[..., 1] = np.arcsinh(zeta)
        columns[..., 2] = np.arcsinh(prepared.r_BTM)
        columns[..., 3] = np.arcsinh(delta)
        columns[..., 4] = fresh
        full = np.zeros((count, scans, plan.layout.size, 5), dtype=np.float16)
        full[:, :, plan.channels] = columns
        node = full[:, :, : 4 * n].reshape(count, scans, 4, n, 5).transpose(0, 1, 3, 2, 4)
        node = node.reshape(count, scans, n, F_NODE)
        edge = np.empty((count, scans, e, F_EDGE), dtype=np.float16)
        ends = full[:, :, 4 * n :].reshape(count, scans, 4, e, 5).transpose(0, 1, 3, 2, 4)
        edge[..., :-1] = ends.reshape(count, scans, e, 20)
        edge[..., -1] = np.stack([w.status_TE for w in prepared.windows])
        last = prepared.v_BTN[:, -1]
        xhat = np.stack([np.abs(last) - 1.0, np.angle(last)], axis=-1).astype(np.float32)
        meas, sigma = np.zeros((count, n, 2), dtype=np.float32), np.full((count, n, 2), np.inf, dtype=np.float32)
        for column, channel in ((0, 1), (1, 2)):
            index = plan.index_of[channel * n : (channel + 1) * n]
            on = np.flatnonzero(index >= 0)
            got = present[:, -1][:, index[on]]
            meas[:, on, column] = np.where(got, z[:, -1][:, index[on]], 0.0)
            sigma[:, on, column] = np.where(got, plan.sigma[index[on]], np.inf)
        param = np.stack(
            [np.stack([w.status_TE[-1], w.last_tap_E, w.x_scale_E], axis=-1) for w in prepared.windows]
        ).astype(np.float32)  # fmt: skip
        return Features(np.ascontiguousarray(node), edge, xhat, meas, sigma, param, self._jacobian(prepared))

    def _jacobian(self, prepared: Prepared) -> NDArray[np.float16]:
        """[B, N, F_JAC] the last scan against the estimate of the scan before; [B, N, 0] where it is not asked for.

        Zeros on the balance graph, which has no Jacobian, and for a single scan, which has none before it.
        """
        case, windows = prepared.case, prepared.windows
        count, scans, _ = prepared.z_BTM.shape
        out = np.zeros((count, case.n_bus, F_JAC if self.jacobian else 0), dtype=np.float16)
        if not self.jacobian or case.name == balance.NAME or scans < 2:
            return out
        estimator = self.estimator(case, prepared.plan)
        z = np.where(np.stack([w.age_TM[-1] for w in windows]) == 0, prepared.z_BTM[:, -1], np.nan)
        status = np.stack([w.status_TE[-1] for w in windows]).astype(bool)
        for tap, x_scale, rows in _declared_models(case, windows):
            last = rows[rows % scans == scans - 1] // scans
            if last.size:
                y = None if tap is None else branch_admittance(case, tap, x_scale)
                out[last] = jacobian_features(estimator, z[last], prepared.v_BTN[last, -2], status[last], y)
        return out


def check(windows: Sequence[Window], plan: MeterPlan) -> None:
    """FeatureError unless the windows fit one plan and one length and carry no infinite value."""
    if not windows:
        raise FeatureError("no windows")
    first = windows[0]
    shape = first.z_TM.shape
    for index, window in enumerate(windows):
        if window.case != plan.case or window.plan_id != plan.plan_id:
            raise FeatureError(
                f"window {index}: {window.case} plan {window.plan_id}, expected {plan.case} plan {plan.plan_id}"
            )
        if window.z_TM.shape != shape or window.z_TM.shape[1] != plan.size:
            raise FeatureError(f"window {index}: readings {window.z_TM.shape}, expected {(shape[0], plan.size)}")
        if window.status_TE.shape != (shape[0], plan.n_branch):
            raise FeatureError(f"window {index}: status {window.status_TE.shape}, expected {(shape[0], plan.n_branch)}")
        if np.isinf(window.z_TM).any():
            raise FeatureError(f"window {index}: an infinite reading; use NaN for a value that did not arrive")


def _declared_models(
    case: GridCase, windows: Sequence[Window]
) -> list[tuple[F64 | None, F64 | None, NDArray[np.int64]]]:
    """Rows (window x scan) grouped by declared taps and line lengths; None stands for the published model."""
    scans = windows[0].z_TM.shape[0]
    groups: dict[bytes, tuple[F64 | None, F64 | None, list[NDArray[np.int64]]]] = {}
    for index, window in enumerate(windows):
        edges = sorted({0, scans, *(min(max(t, 0), scans) for _, _, t in window.moves)})
        for start, stop in pairwise(edges):
            tap = window.tap_E.copy()
            for branch, ratio, first in window.moves:
                if first <= start:
                    tap[branch] = ratio
            published = bool((tap == case.tap).all() and (window.x_scale_E == 1.0).all())
            key = b"" if published else tap.tobytes() + window.x_scale_E.tobytes()
            entry = groups.setdefault(key, (None if published else tap, None if published else window.x_scale_E, []))
            entry[2].append(np.arange(index * scans + start, index * scans + stop))
    return [(tap, x_scale, np.concatenate(rows)) for tap, x_scale, rows in groups.values()]


def _carry_forward(z_BTM: F64, present: NDArray[np.bool_]) -> tuple[F64, NDArray[np.bool_]]:
    """Last value seen so far in the window, and whether anything has been seen."""
    scans = z_BTM.shape[1]
    last = np.maximum.accumulate(np.where(present, np.arange(scans)[None, :, None], -1), axis=1)
    seen = last >= 0
    filled = np.take_along_axis(np.where(present, z_BTM, 0.0), np.maximum(last, 0), axis=1)
    return np.where(seen, filled, 0.0), seen


def _value(z_BTM: F64, plan: MeterPlan) -> F64:
    """Readings on a common scale: |V| as ten times its distance from 1 p.u., angles in rad, powers as asinh(p.u.)."""
    kind = np.where(plan.channels < 4 * plan.n_bus, plan.channels // plan.n_bus, 4)
    out = np.arcsinh(z_BTM)
    out[..., kind == 0] = 10.0 * (z_BTM[..., kind == 0] - 1.0)
    out[..., kind == 3] = z_BTM[..., kind == 3]
    return out


@functools.lru_cache(maxsize=16)
def case_static(name: str) -> CaseStatic:
    """Static network inputs of a grid, per unit, without per-grid scaling (it would break transfer)."""
    case = load_case(name)
    n = case.n_bus
    degree = np.bincount(np.concatenate([case.f_bus, case.t_bus]), minlength=n)
    gen = np.zeros(n)
    gen[case.gen_bus] = case.gen_p
    z = np.hypot(case.r, case.x)
    node = np.stack(
        [
            np.arcsinh(case.load_p), np.arcsinh(case.load_q), np.arcsinh(gen), case.kind == PV, case.kind == SLACK,
            case.vn_kv / 400.0, np.arcsinh(case.bs), degree / 5.0,
        ],
        axis=1,
    )  # fmt: skip
    edge = np.stack(
        [
            np.arcsinh(10 * case.r), np.arcsinh(10 * case.x), np.arcsinh(case.b), case.tap - 1.0, case.shift,
            np.arcsinh(case.rate), case.transformer, np.log10(np.maximum(z, 1e-6)) / 3.0,
        ],
        axis=1,
    )  # fmt: skip
    phys = np.stack([case.r, case.x, case.b, case.tap, case.shift, np.ones(case.n_branch)], axis=1)
    return CaseStatic(
        node_static=node, edge_static=edge, edge_index=np.stack([case.f_bus, case.t_bus]), substation=case.substation,
        region=case.region, n_regions=int(case.region.max()) + 1, edge_phys_base=phys,
        node_shunt=np.stack([case.gs, case.bs], axis=1),
    )  # fmt: skip


def batch_of(case: str, features: Features, rows: slice = slice(None)) -> GraphBatch:
    """Unlabelled network batch of some windows of one grid: the path of scoring, evaluation and serving."""
    return from_arrays(
        case_static(case),
        node_BTNF=features.node_BTNF[rows],
        edge_BTEF=features.edge_BTEF[rows],
        xhat_BN2=features.xhat_BN2[rows],
        meas_BN2=features.meas_BN2[rows],
        sigma_BN2=features.sigma_BN2[rows],
        param_BE3=features.param_BE3[rows],
        jac_BNJ=features.jac_BNJ[rows],
    )
