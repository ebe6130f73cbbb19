"""Detectors that learn what is usual from benign windows: PCA, Isolation Forest, forecast innovations, and a maximum.

Flow:    verifier.features (Prepared) -> [statistical] -> catalogue (rows B3 to B7)
Source:  Jackson and Mudholkar 1979 (Q and T^2); Ledoit and Wolf 2004; Liu, Ting and Zhou 2008 (Isolation Forest);
         Leite da Silva et al. 1983 (innovations of a forecast-aided estimator); selfplay.md, section 17.3
Shapes:  B windows, T scans, M installed meters, D features of a window, K kept components
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.ensemble import IsolationForest as Forest

from gg_ray.baselines.base import Detector, GroupDetector, bus_maximum, fresh_readings
from gg_ray.baselines.series import Usual, enough, segment_means, usual
from gg_ray.records import F64
from gg_ray.verifier.features import Prepared

SEGMENTS = 4
"""A window is condensed to this many means per meter, so one model serves every window length."""
KEPT_VARIANCE = 0.95
CALIBRATION_SHARE = 0.3
"""Benign windows kept back to scale Q and T^2: on its own training windows PCA always looks good."""
_VARIANCE_FLOOR = 0.3
"""Smallest innovation deviation in meter sigmas: a held reading must not look infinitely sure."""


@dataclass(frozen=True, slots=True)
class Subspace:
    """Principal components of benign windows.

    axes_KD rows of unit length; score_K their variances; q and t2 (median, spread) of the benign statistics
    """

    usual: Usual
    centre_D: F64
    axes_KD: F64
    score_K: F64
    q: tuple[float, float]
    t2: tuple[float, float]


class Pca(GroupDetector[Subspace]):
    """B5 and B7: squared distance to the benign subspace (Q) plus Mahalanobis distance within it (T^2), standardised.

    Readings are in meter sigmas. With fewer windows than features the variances are shrunk (Ledoit-Wolf).
    """

    name = "pca"

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Subspace:
        count = enough(self.name, members)
        known, plan = usual(members), members[0].plan
        x = np.concatenate([_segments(known, prepared) for prepared in members])[rng.permutation(count)]
        split = round(count * (1.0 - CALIBRATION_SHARE))
        fitted, held = x[:split], x[split:]
        centre = fitted.mean(axis=0)
        u = fitted - centre
        _, s, axes = np.linalg.svd(u, full_matrices=False)
        variance = s**2 / split
        kept = int(np.searchsorted(np.cumsum(variance), KEPT_VARIANCE * variance.sum())) + 1
        kept = min(kept, int((variance > 1e-12 * variance[0]).sum()))
        if split < plan.size * SEGMENTS:
            shrinkage = float(ledoit_wolf_shrinkage(u, assume_centered=True))
            variance = (1.0 - shrinkage) * variance + shrinkage * variance.sum() / u.shape[1]
        draft = Subspace(known, centre, axes[:kept], variance[:kept], (0.0, 1.0), (0.0, 1.0))
        q, t2 = _statistics(draft, held)
        return Subspace(known, centre, draft.axes_KD, draft.score_K, _centre_spread(q), _centre_spread(t2))

    def _score(self, model: Subspace, prepared: Prepared) -> F64:
        q, t2 = _statistics(model, _segments(model.usual, prepared))
        return np.asarray((q - model.q[0]) / model.q[1] + (t2 - model.t2[0]) / model.t2[1])

    def _nodes(self, model: Subspace, prepared: Prepared) -> F64:
        u = _segments(model.usual, prepared) - model.centre_D
        left = np.abs(u - (u @ model.axes_KD.T) @ model.axes_KD)
        per_meter = left.reshape(-1, SEGMENTS, prepared.plan.size).max(axis=1)
        return bus_maximum(prepared.case, prepared.plan, per_meter)


def _segments(known: Usual, prepared: Prepared) -> F64:
    """[B, SEGMENTS M] means of the window's segments, in meter sigmas around the benign mean."""
    z = (known.filled(prepared.z_BTM) - known.mean_M) / prepared.plan.sigma
    return segment_means(z, SEGMENTS)


def _statistics(model: Subspace, x_BD: F64) -> tuple[F64, F64]:
    u = x_BD - model.centre_D
    along = u @ model.axes_KD.T
    return np.maximum((u * u).sum(axis=1) - (along * along).sum(axis=1), 0.0), (along**2 / model.score_K).sum(axis=1)


def _centre_spread(values: F64) -> tuple[float, float]:
    """Median and distance from there to the 84th percentile: one sigma that outliers among the benign do not move."""
    middle, high = np.quantile(values, (0.5, 0.84))
    return float(middle), float(max(high - middle, 1e-9))


@dataclass(frozen=True, slots=True)
class Trees:
    """Fitted forest and the scaling of its features."""

    usual: Usual
    mean_D: F64
    std_D: F64
    forest: Forest


class IsolationForest(GroupDetector[Trees]):
    """B6: trees that isolate unusual summaries of a window: mean, last value and largest step of every meter."""

    name = "iforest"

    def __init__(self, trees: int = 200) -> None:
        """Args: trees in each forest; more make the score smoother, not sharper."""
        super().__init__()
        self.trees = trees

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Trees:
        enough(self.name, members)
        known = usual(members)
        x = np.concatenate([_summary(known, prepared) for prepared in members])
        mean, std = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-9)
        forest = Forest(n_estimators=self.trees, random_state=int(rng.integers(2**31)), n_jobs=1)
        return Trees(known, mean, std, forest.fit((x - mean) / std))

    def _score(self, model: Trees, prepared: Prepared) -> F64:
        x = (_summary(model.usual, prepared) - model.mean_D) / model.std_D
        return -np.asarray(model.forest.score_samples(x))


def _summary(known: Usual, prepared: Prepared) -> F64:
    """[B, 3M] mean, last reading and largest step between scans, in meter sigmas."""
    z = (known.filled(prepared.z_BTM) - known.mean_M) / prepared.plan.sigma
    step = np.abs(np.diff(z, axis=1)).max(axis=1, initial=0.0)
    return np.concatenate([z.mean(axis=1), z[:, -1], step], axis=1)


@dataclass(frozen=True, slots=True)
class Forecast:
    """AR(1) forecast of each meter: mean, coefficient and innovation variance, [M] each."""

    usual: Usual
    phi_M: F64
    variance_M: F64


class Innovation(GroupDetector[Forecast]):
    """B3: chi-square of the one-step forecast errors e_t = z_t - mean - phi (z_t-1 - mean), largest over the scans.

    The classical opponent of stealth attacks: it needs no model of the grid, only that readings move as they used to.
    """

    name = "innovation"

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Forecast:
        enough(self.name, members)
        known, plan = usual(members), members[0].plan
        cross, square = np.zeros(plan.size), np.zeros(plan.size)
        for prepared in members:
            now, before, fresh = _pairs(known, prepared)
            cross += (now * before * fresh).sum(axis=(0, 1))
            square += (before * before * fresh).sum(axis=(0, 1))
        phi = np.clip(cross / np.maximum(square, 1e-12), 0.0, 1.0)
        total, count = np.zeros(plan.size), np.zeros(plan.size)
        for prepared in members:
            now, before, fresh = _pairs(known, prepared)
            total += ((now - phi * before) ** 2 * fresh).sum(axis=(0, 1))
            count += fresh.sum(axis=(0, 1))
        floor = (_VARIANCE_FLOOR * plan.sigma) ** 2
        return Forecast(known, phi, np.maximum(total / np.maximum(count, 1), floor))

    def _score(self, model: Forecast, prepared: Prepared) -> F64:
        square, fresh = _squares(model, prepared)
        dof = np.maximum(fresh.sum(axis=2), 1)
        return np.asarray(((square.sum(axis=2) - dof) / np.sqrt(2.0 * dof)).max(axis=1, initial=0.0))

    def _nodes(self, model: Forecast, prepared: Prepared) -> F64:
        square, _ = _squares(model, prepared)
        return bus_maximum(prepared.case, prepared.plan, np.sqrt(square.max(axis=1, initial=0.0)))


def _pairs(known: Usual, prepared: Prepared) -> tuple[F64, F64, F64]:
    """[B, T-1, M] deviation now, deviation one scan before, and 1 where the present reading is fresh."""
    deviation = known.filled(prepared.z_BTM) - known.mean_M
    heard = np.logical_or.accumulate(np.isfinite(prepared.z_BTM), axis=1)[:, :-1]
    fresh = np.isfinite(fresh_readings(prepared)[:, 1:]) & heard
    return deviation[:, 1:], deviation[:, :-1], fresh.astype(np.float64)


def _squares(model: Forecast, prepared: Prepared) -> tuple[F64, F64]:
    now, before, fresh = _pairs(model.usual, prepared)
    return (now - model.phi_M * before) ** 2 / model.variance_M * fresh, fresh


class MaxOf(GroupDetector[list[tuple[float, float]]]):
    """B4: the largest of several detectors' scores, each in spreads above its benign median.

    The parts are fitted here; the model holds the (median, spread) of each.
    """

    def __init__(self, name: str, parts: Sequence[Detector]) -> None:
        """Args: parts, not shared with another owner: fit changes them."""
        super().__init__()
        self.name, self.parts = name, tuple(parts)

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> list[tuple[float, float]]:
        scales = []
        for part in self.parts:
            part.fit(members, rng)
            scales.append(_centre_spread(np.concatenate([part.score(prepared) for prepared in members])))
        return scales

    def _score(self, model: list[tuple[float, float]], prepared: Prepared) -> F64:
        pairs = zip(self.parts, model, strict=True)
        scaled = [(part.score(prepared) - middle) / spread for part, (middle, spread) in pairs]
        return np.asarray(np.max(scaled, axis=0))
