"""Detectors that need physics only: chance, Kirchhoff's law on one line, chi-square and own normalised residuals.

Flow:    verifier.features (Prepared) -> [physics] -> evaluate (rows B0, B1, B2 and "random")
Source:  Schweppe 1970; Abur and Exposito 2004, ch. 5; selfplay.md, sections 3 and 17.3
Shapes:  B windows, T scans, N buses, E branches, M installed meters, K checkable balances
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from gg_ray.baselines.base import DetectorError, GroupDetector, bus_maximum, fresh_readings
from gg_ray.grid.cases import GridCase
from gg_ray.grid.estimation import Gain, wide_prior
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F64, I64
from gg_ray.verifier.evidence import SPANS
from gg_ray.verifier.features import Prepared

SMOOTH_SCANS = 3
"""Moving average of the chi-square statistic: a lasting error beats one noisy scan, a short one is not washed out."""


class RandomScore:
    """The row of chance. The draw is keyed by the readings, so it does not depend on order or batching."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, benign: Sequence[Prepared], rng: np.random.Generator) -> None:
        """Nothing to learn."""

    def score(self, prepared: Prepared) -> F64:
        """[B] uniform numbers."""
        return np.array([self._rng(window).random() for window in prepared.z_BTM])

    def node_scores(self, prepared: Prepared) -> F64:
        """[B, N] uniform numbers."""
        n = prepared.case.n_bus
        return np.stack([self._rng(window).random(n + 1)[1:] for window in prepared.z_BTM])

    def _rng(self, z_TM: F64) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(np.ascontiguousarray(z_TM).tobytes())])


@dataclass(frozen=True, slots=True)
class Balances:
    """Power balances that the installed meters close: row k reads a_KM z = shunt draw, variance var_K.

    bus_K  bus of each balance;  volt_K installed |V| meter of that bus, -1 if none
    gs_K   shunt conductance (P rows) or minus susceptance (Q rows), p.u.
    """

    a_KM: sp.csr_matrix
    uses_KM: sp.csr_matrix
    var_K: F64
    bus_K: I64
    volt_K: I64
    shunt_K: F64


class KclResidual(GroupDetector[Balances]):
    """B0: what enters a bus must leave it, checked where the injection and every incident branch end are metered.

    A bus without load or plant needs no injection meter. Balances with an absent or aged reading are skipped in that
    scan, a grid without any complete bus scores 0: that blindness is the point of the row.
    """

    name = "kcl"

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Balances:
        return balances(members[0].case, members[0].plan)

    def _score(self, model: Balances, prepared: Prepared) -> F64:
        return np.asarray(self._ratio(model, prepared).max(axis=1, initial=0.0))

    def _nodes(self, model: Balances, prepared: Prepared) -> F64:
        out = np.zeros((prepared.case.n_bus, prepared.z_BTM.shape[0]))
        np.maximum.at(out, model.bus_K, self._ratio(model, prepared).T)
        return out.T

    @staticmethod
    def _ratio(model: Balances, prepared: Prepared) -> F64:
        """[B, K] largest |imbalance| / sigma over the scans."""
        count, scans, m = prepared.z_BTM.shape
        if not model.bus_K.size:
            return np.zeros((count, 0))
        rows = fresh_readings(prepared).reshape(-1, m)
        present = np.isfinite(rows)
        z = np.where(present, rows, 0.0)
        volts = np.where(model.volt_K >= 0, z[:, model.volt_K], 1.0)
        volts = np.where(volts > 0.0, volts, 1.0)
        gap = (model.a_KM @ z.T).T - model.shunt_K * volts**2
        missing = (model.uses_KM @ (~present).astype(np.float64).T).T > 0
        ratio = np.where(missing, 0.0, np.abs(gap) / np.sqrt(model.var_K))
        return np.asarray(ratio.reshape(count, scans, -1).max(axis=1))


def balances(case: GridCase, plan: MeterPlan) -> Balances:
    """The complete P and Q balances of a metering plan."""
    n, e = case.n_bus, case.n_branch
    passive = (case.load_p == 0) & (case.load_q == 0)
    passive[case.gen_bus] = False
    ends = [np.flatnonzero(np.concatenate([case.f_bus, case.t_bus]) == bus) for bus in range(n)]
    rows: list[tuple[I64, F64, int, float]] = []
    for offset, first, second, shunt in ((n, 0, 2, case.gs), (2 * n, 1, 3, -case.bs)):
        start = np.concatenate([4 * n + first * e + np.arange(e), 4 * n + second * e + np.arange(e)])
        for bus in range(n):
            channels = start[ends[bus]]
            sign = -np.ones(channels.size)
            if not passive[bus]:
                channels, sign = np.append(channels, offset + bus), np.append(sign, 1.0)
            meters = plan.index_of[channels]
            if (meters >= 0).all():
                rows.append((meters, sign, bus, float(shunt[bus])))
    shape = (len(rows), plan.size)
    indptr = np.cumsum([0, *(row[0].size for row in rows)])
    columns = np.concatenate([row[0] for row in rows]) if rows else np.zeros(0, dtype=np.int64)
    signs = np.concatenate([row[1] for row in rows]) if rows else np.zeros(0)
    uses = sp.csr_matrix((np.ones(columns.size), columns, indptr), shape=shape)
    bus_k = np.array([row[2] for row in rows], dtype=np.int64)
    return Balances(
        a_KM=sp.csr_matrix((signs, columns, indptr), shape=shape), uses_KM=uses, var_K=uses @ plan.sigma**2,
        bus_K=bus_k, volt_K=plan.index_of[bus_k], shunt_K=np.array([row[3] for row in rows]),
    )  # fmt: skip


class ChiSquare(GroupDetector[F64]):
    """B1: the sum of squared estimation residuals against its degrees of freedom.

    J = sum ((z - h)/sigma)^2 and E[J] = sum omega/sigma^2 (m - n without a prior), over the fresh readings.
    The model is omega_M / sigma_M^2 at the base state. The prior is wider than the spread of injections in our worlds,
    so the mean on clean readings is a little below zero. Blind to a = h(x') - h(x) by construction.
    """

    name = "chi2"

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> F64:
        case, plan = members[0].case, members[0].plan
        return np.asarray(Gain(case, plan, wide_prior(case)).omega / plan.sigma**2)

    def standardised(self, prepared: Prepared) -> F64:
        """[B, T] (J - dof) / sqrt(2 dof) of every scan; about unit normal on clean readings at high redundancy."""
        return _standardised(self._model(prepared), prepared)

    def _score(self, model: F64, prepared: Prepared) -> F64:
        value = _standardised(model, prepared)
        width = min(SMOOTH_SCANS, value.shape[1])
        windows = np.lib.stride_tricks.sliding_window_view(value, width, axis=1)
        return np.asarray(windows.mean(axis=2).max(axis=1))

    def _nodes(self, model: F64, prepared: Prepared) -> F64:
        part = (prepared.r_BTM**2 * model).max(axis=1)
        return bus_maximum(prepared.case, prepared.plan, part)


def _standardised(share_M: F64, prepared: Prepared) -> F64:
    j = (prepared.r_BTM**2) @ share_M
    dof = np.maximum(np.isfinite(fresh_readings(prepared)) @ share_M, 1.0)
    return np.asarray((j - dof) / np.sqrt(2.0 * dof))


class LnrScan(GroupDetector[int]):
    """B2 over time: the largest sum of a meter's normalised residuals over 1, 2, 4, 8 or 16 neighbouring scans.

    Each sum is divided by the root of its length, so it is unit normal on clean readings; the model is the meter count.
    Source: scan statistics (Naus 1965); the same sums are among the network's inputs (verifier.evidence).
    """

    name = "lnr_scan"

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> int:
        return _meters(self.name, members)

    def _score(self, model: int, prepared: Prepared) -> F64:
        return np.asarray(_largest_sums(prepared.r_BTM).max(axis=1))

    def _nodes(self, model: int, prepared: Prepared) -> F64:
        return bus_maximum(prepared.case, prepared.plan, _largest_sums(prepared.r_BTM))


def _largest_sums(r_BTM: F64) -> F64:
    """[B, M] largest |sum| / sqrt(length) over all stretches of 1, 2, 4, 8, 16 scans that the window holds."""
    count, scans, meters = r_BTM.shape
    running = np.concatenate([np.zeros((count, 1, meters)), r_BTM.cumsum(axis=1)], axis=1)
    sums = [np.abs(running[:, k:] - running[:, :-k]).max(axis=1) / np.sqrt(k) for k in SPANS if k <= scans]
    return np.asarray(np.maximum.reduce(sums))


def _meters(name: str, members: Sequence[Prepared]) -> int:
    if not members[0].plan.size:
        raise DetectorError(f"{name}: {members[0].case.name} plan {members[0].plan.plan_id} has no meters")
    return members[0].plan.size


class LnrOwn(GroupDetector[int]):
    """B2 on our own estimator: the largest normalised residual over meters and scans. The model is the meter count."""

    name = "lnr_own"

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> int:
        return _meters(self.name, members)

    def _score(self, model: int, prepared: Prepared) -> F64:
        return np.asarray(np.abs(prepared.r_BTM).max(axis=(1, 2)))

    def _nodes(self, model: int, prepared: Prepared) -> F64:
        return bus_maximum(prepared.case, prepared.plan, np.abs(prepared.r_BTM).max(axis=1))
