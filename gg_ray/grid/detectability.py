"""Detectability d_eff of an anomaly, and the linearised moves that a size is searched with.

Flow:    grid.estimation (gains) -> [detectability] -> scenario (sizes, gate G4), selfplay (completions)
Source:  d^2 = a' (R + J Q J')^-1 a = min over plausible moves of the misfit; docs/adr/0012-detectability-and-labels.md
Shapes:  P programs, R rows, T scans, N buses
Units:   p.u., rad
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from gg_ray.grid.cases import PQ, SLACK, GridCase
from gg_ray.grid.estimation import Gain, Prior, jacobian, plausible_prior
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F64

MODE_SCALES = (12.0, 1.5, 0.15)
"""Variance levels of the window's time modes: each eigenvalue of the AR(1) correlation is rounded up to one of them."""


class Detectability:
    """d_eff of an anomaly over a whole window (gate G4).

    The plausible set is Gaussian and separable: meter noise white in time, injection moves AR(1) in time. In the
    eigenbasis of the AR(1) correlation each time mode is an ordinary misfit with the prior variance scaled by its
    eigenvalue; eigenvalues are rounded up to three levels, so three factorisations serve every window length.
    Approximation: linear at the base state, with the base topology.
    """

    def __init__(self, case: GridCase, plan: MeterPlan, load_noise: float, rho: float) -> None:
        h = jacobian(case, case.v0)
        base = plausible_prior(case, load_noise)
        self.rho, self.n_pseudo = rho, 3 * case.n_bus
        self.gains = [
            Gain(case, plan, Prior(base.p * np.sqrt(s), base.q * np.sqrt(s), base.v * np.sqrt(s)), h)
            for s in MODE_SCALES
        ]  # fmt: skip
        self._modes: dict[int, tuple[F64, NDArray[np.int64]]] = {}

    def modes(self, scans: int) -> tuple[F64, NDArray[np.int64]]:
        """Eigenvectors [T, T] (columns) of the AR(1) correlation and the level of each mode."""
        if scans not in self._modes:
            lag = np.abs(np.subtract.outer(np.arange(scans), np.arange(scans)))
            values, vectors = np.linalg.eigh(self.rho**lag)
            level = np.array([max(i for i, s in enumerate(MODE_SCALES) if s >= min(v, MODE_SCALES[0])) for v in values])
            self._modes[scans] = (vectors, level)
        return self._modes[scans]

    def squared(self, innovations: Sequence[Innovation], scans: int) -> F64:
        """[P] d_eff^2 of each program's innovation.

        An innovation touches few channels, so its [T, c] block has low rank: each level needs only as many solves as
        that rank (one for a single meter), all programs together in one multi-right-hand-side solve.
        """
        vectors, level = self.modes(scans)
        out = np.zeros(len(innovations))
        for index, gain in enumerate(self.gains):
            chosen = vectors[:, level == index]
            if not chosen.shape[1]:
                continue
            owners: list[int] = []
            rows: list[F64] = []
            meters = gain.plan.size
            for program, item in enumerate(innovations):
                block = np.concatenate([chosen.T @ item.a_Tc, chosen.T @ item.u_Tk], axis=1)
                for row in _row_basis(block):
                    spread = np.zeros(meters + self.n_pseudo)
                    np.add.at(spread, np.concatenate([item.meters, meters + item.pseudo]), row)
                    owners.append(program)
                    rows.append(spread)
            if owners:
                np.add.at(out, owners, gain.misfit(np.stack(rows)))
        return out


@dataclass(frozen=True, slots=True)
class Innovation:
    """What telemetry shows beyond the declared model at the true state, on few channels.

    meters [c] installed positions with a_Tc [T, c];  pseudo [k] pseudo-measurement positions with u_Tk [T, k]
    """

    meters: NDArray[np.int64]
    a_Tc: F64
    pseudo: NDArray[np.int64]
    u_Tk: F64


def _row_basis(block: F64, keep: float = 1e-8) -> F64:
    """Rows with the same Gram matrix as block (block' block): its singular vectors scaled, negligible ones dropped."""
    if block.shape[0] == 1 or not block.any():
        return block[:1] if block.any() else block[:0]
    _, s, vt = np.linalg.svd(block, full_matrices=False)
    rank = int((s**2 > keep * s[0] ** 2).sum())
    return np.asarray(s[:rank, None] * vt[:rank])


class LinearFlow:
    """Linearised power flow at the base state: state moves caused by small injection changes.

    Invariant: the angle of the slack and controlled voltages stay put.   Source: Newton power-flow Jacobian
    """

    def __init__(self, case: GridCase) -> None:
        n = case.n_bus
        h = jacobian(case, case.v0)
        self.h = h
        self._angle = np.flatnonzero(case.kind != SLACK)
        self._magnitude = np.flatnonzero(case.kind == PQ)
        rows = np.concatenate([n + self._angle, 2 * n + self._magnitude])
        columns = np.concatenate([self._angle, n + self._magnitude])
        self._columns, self._n = columns, n
        self._lu = splu(h[rows][:, columns].tocsc())

    def moves(self, dp_RN: F64, dq_RN: F64) -> F64:
        """[R, 2N] change of (angle, |V|) for injection changes, p.u."""
        rhs = np.concatenate([dp_RN[:, self._angle], dq_RN[:, self._magnitude]], axis=1)
        out = np.zeros((dp_RN.shape[0], 2 * self._n))
        out[:, self._columns] = self._lu.solve(np.ascontiguousarray(rhs.T)).T
        return out
