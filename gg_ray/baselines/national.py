"""What one would run on national streams without learning: the balance law's z-score, the same hour of other days.

Flow:    baselines.base -> [national] -> evaluate
Source:  docs/gb-data.md (baseline to beat); Hyndman and Athanasopoulos 2021, section 5.2 (seasonal naive)
Shapes:  B windows, T scans, N buses, M meters
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gg_ray.baselines.base import (
    DAY_NS,
    Detector,
    DetectorError,
    GroupDetector,
    bus_maximum,
    day_bins,
    fresh_readings,
)
from gg_ray.baselines.physics import ChiSquare, RandomScore
from gg_ray.baselines.statistical import Innovation, IsolationForest, Pca
from gg_ray.grid import balance
from gg_ray.records import F64, I64
from gg_ray.verifier.features import Prepared

_BINS = 48
_LAWS = [balance.M_STATION, balance.M_UNREPORTED]


class BalanceLaw(GroupDetector[bool]):
    """N1: the larger distance of the two balance laws from their rolling medians in the window, in rolling sigmas."""

    name = "balance_law"

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> bool:
        return True  # the rolling statistics travel with the readings: nothing is left to fit

    def _score(self, model: bool, prepared: Prepared) -> F64:
        return np.asarray(np.abs(prepared.r_BTM[..., _LAWS]).max(axis=(1, 2), initial=0.0))

    def _nodes(self, model: bool, prepared: Prepared) -> F64:
        r = np.abs(prepared.r_BTM).max(axis=1, initial=0.0)
        r[:, _LAWS] = 0.0  # a law is computed: what lies is one of its streams
        return bus_maximum(prepared.case, prepared.plan, r)


@dataclass(frozen=True, slots=True)
class Hours:
    """Median and robust spread of every meter by half-hour of the day, [48, M]."""

    middle: F64
    spread: F64


class HourlyProfile(GroupDetector[Hours]):
    """N2: the largest distance of any stream from its median at that half-hour of the UTC day in the fitted windows."""

    name = "hourly_profile"

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Hours:
        values = np.concatenate([fresh_readings(part).reshape(-1, part.plan.size) for part in members])
        bins = np.concatenate([day_bins(part, _BINS).ravel() for part in members])
        everything = _centre(values)
        middle, spread = np.tile(everything[0], (_BINS, 1)), np.tile(everything[1], (_BINS, 1))
        for half in range(_BINS):
            rows = values[bins == half]
            if len(rows) >= 8:
                middle[half], spread[half] = _centre(rows)
        return Hours(middle, np.maximum(spread, members[0].plan.sigma))

    def _score(self, model: Hours, prepared: Prepared) -> F64:
        return np.asarray(self._distance(model, prepared).max(axis=(1, 2), initial=0.0))

    def _nodes(self, model: Hours, prepared: Prepared) -> F64:
        return bus_maximum(prepared.case, prepared.plan, self._distance(model, prepared).max(axis=1, initial=0.0))

    def _distance(self, model: Hours, prepared: Prepared) -> F64:
        at = day_bins(prepared, _BINS)
        return np.nan_to_num(np.abs(fresh_readings(prepared) - model.middle[at]) / model.spread[at])


def _centre(values: F64) -> tuple[F64, F64]:
    """Median and 1.4826 times the median absolute deviation of each column, 0 where nothing was read."""
    heard = np.isfinite(values).any(axis=0)
    middle, spread = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    middle[heard] = np.nanmedian(values[:, heard], axis=0)
    spread[heard] = 1.4826 * np.nanmedian(np.abs(values[:, heard] - middle[heard]), axis=0)
    return middle, spread


class SeasonalNaive:
    """N3: the largest distance of any stream from itself one day before, in robust spreads of that difference.

    It is given what a window does not hold: the readings of the record before it.
    """

    name = "seasonal_naive"

    def __init__(self, z_HM: F64, t0_ns: I64) -> None:
        """Args: z_HM readings of a half-hourly record, t0_ns its starts, without a gap."""
        self._z, self._first = z_HM, int(t0_ns[0])
        self._spread: F64 | None = None

    def fit(self, benign: Sequence[Prepared], rng: np.random.Generator) -> None:
        """Spread of today minus yesterday over the fitted windows."""
        gaps = np.concatenate([self._since_yesterday(part).reshape(-1, part.plan.size) for part in benign])
        self._spread = np.maximum(_centre(gaps)[1], benign[0].plan.sigma)

    def score(self, prepared: Prepared) -> F64:
        """[B] implausibility.  Raises: DetectorError before fit."""
        return np.asarray(self._distance(prepared).max(axis=(1, 2), initial=0.0))

    def node_scores(self, prepared: Prepared) -> F64 | None:
        return bus_maximum(prepared.case, prepared.plan, self._distance(prepared).max(axis=1, initial=0.0))

    def _distance(self, prepared: Prepared) -> F64:
        if self._spread is None:
            raise DetectorError(f"{self.name}: not fitted; call fit with benign windows of the record first")
        away = np.nan_to_num(np.abs(self._since_yesterday(prepared)) / self._spread)
        away[..., [*_LAWS, *range(balance.M_STATION_USUAL, prepared.plan.size)]] = 0.0
        return np.asarray(away)

    def _since_yesterday(self, prepared: Prepared) -> F64:
        """[B, T, M] reading minus the record's reading a day earlier, NaN where either is missing."""
        start = np.array([(window.t0_ns - self._first) // (DAY_NS // _BINS) for window in prepared.windows])
        at = start[:, None] + np.arange(prepared.z_BTM.shape[1]) - _BINS
        before = self._z[np.clip(at, 0, len(self._z) - 1)]
        before[at < 0] = np.nan
        return np.asarray(fresh_readings(prepared) - before)


def national_detectors(seed: int) -> list[Detector]:
    """The rivals on the national balance graph, in the order of the tables."""
    return [
        RandomScore(seed), BalanceLaw(), HourlyProfile(), ChiSquare(), Innovation(), Pca(), IsolationForest(),
    ]  # fmt: skip
