"""Distances from the benign: of a whole window (Mahalanobis), and of each meter at that hour of the day (seasonal z).

Flow:    baselines.series -> [distances] -> catalogue (row B5, seasonal z)
Source:  Mahalanobis 1936; Ledoit and Wolf 2004 (shrinkage); James and Stein 1961 (shrunk hourly means);
         selfplay.md, section 17.3
Shapes:  B windows, T scans, M installed meters, C channels, D = segments C features, R rank of the benign windows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

from gg_ray.baselines.base import GroupDetector, bus_maximum, day_bins, fresh_readings
from gg_ray.baselines.series import Channels, Usual, View, channels, enough, segment_means, usual
from gg_ray.records import F64, I64
from gg_ray.verifier.features import Prepared

HOURS = 24


@dataclass(frozen=True, slots=True)
class Shrunk:
    """Covariance (1 - s) S + s mu I as low rank plus diagonal, so that no D x D matrix is ever made.

    axes_RD eigenvectors of S;  inverse_R inverse eigenvalues along them, less the floor's;  floor = 1 / (s mu)
    precision_D diagonal of the inverse covariance
    """

    channels: Channels
    centre_D: F64
    axes_RD: F64
    inverse_R: F64
    floor: float
    precision_D: F64


class Mahalanobis(GroupDetector[Shrunk]):
    """B5: Mahalanobis distance of the window's segment means to the benign ones, covariance shrunk by Ledoit-Wolf.

    With fewer windows than features the benign covariance has low rank; the shrunk one is that plus a diagonal, and
    the inverse follows from the singular vectors (Woodbury). A bus is suspected by (S^-1 u)_i / sqrt((S^-1)_ii): how
    far a feature lies from its best linear prediction by all others, in standard deviations of that prediction.
    """

    name = "mahalanobis"

    def __init__(self, view: View = "readings", segments: int = 4) -> None:
        """Args: view what it reads;  segments means per channel and window."""
        super().__init__()
        self.view, self.segments = view, segments

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Shrunk:
        count = enough(self.name, members)
        known = channels(members, self.view)
        x = np.concatenate([segment_means(known.of(prepared), self.segments) for prepared in members])
        centre = x.mean(axis=0)
        u = x - centre
        shrinkage = float(np.clip(ledoit_wolf_shrinkage(u, assume_centered=True), 1e-3, 1.0))
        _, s, axes = np.linalg.svd(u, full_matrices=False)
        variance = s**2 / count
        diagonal = shrinkage * max(float(variance.sum()) / u.shape[1], 1e-12)
        inverse = 1.0 / ((1.0 - shrinkage) * variance + diagonal) - 1.0 / diagonal
        precision = 1.0 / diagonal + (axes**2 * inverse[:, None]).sum(axis=0)
        return Shrunk(known, centre, axes, inverse, 1.0 / diagonal, precision)

    def _score(self, model: Shrunk, prepared: Prepared) -> F64:
        u = self._away(model, prepared)
        along = u @ model.axes_RD.T
        square = model.floor * (u * u).sum(axis=1) + (along**2 * model.inverse_R).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(square, 0.0)))

    def _nodes(self, model: Shrunk, prepared: Prepared) -> F64:
        u = self._away(model, prepared)
        pull = model.floor * u + ((u @ model.axes_RD.T) * model.inverse_R) @ model.axes_RD
        size = np.abs(pull) / np.sqrt(model.precision_D)
        return model.channels.nodes(prepared, size.reshape(len(u), self.segments, -1).max(axis=1))

    def _away(self, model: Shrunk, prepared: Prepared) -> F64:
        return np.asarray(segment_means(model.channels.of(prepared), self.segments) - model.centre_D)


@dataclass(frozen=True, slots=True)
class Season:
    """Mean and standard deviation of every meter by hour of the UTC day, [24, M]."""

    mean: F64
    spread: F64


class SeasonalZ(GroupDetector[Season]):
    """The largest distance of any meter from its mean at that hour of the day in benign training months.

    An hour has few windows, and the scans of one window hardly differ: hourly means are drawn towards the mean of all
    hours as if `prior` windows of that had been seen as well, and the deviation is that around the drawn means.
    """

    name = "seasonal_z"

    def __init__(self, prior: float = 2.0) -> None:
        """Args: prior windows' worth of trust in the mean of all hours."""
        super().__init__()
        self.prior = prior

    def _build(self, members: Sequence[Prepared], rng: np.random.Generator) -> Season:
        enough(self.name, members)
        known = usual(members)
        values = np.concatenate([_held(known, part) for part in members])
        hours = np.concatenate([day_bins(part, HOURS) for part in members])
        scans = values.shape[1]
        flat, bins = values.reshape(-1, values.shape[2]), hours.ravel()
        total = np.zeros((HOURS, flat.shape[1]))
        np.add.at(total, bins, flat - known.mean_M)
        weight = np.bincount(bins, minlength=HOURS)[:, None] / scans
        mean = known.mean_M + total / scans / (weight + self.prior)
        square = np.zeros_like(total)
        np.add.at(square, bins, (flat - mean[bins]) ** 2)
        whole = square.sum(axis=0) / len(flat)
        spread = np.sqrt((square / scans + self.prior * whole) / (weight + self.prior))
        return Season(mean, np.maximum(spread, members[0].plan.sigma))

    def _score(self, model: Season, prepared: Prepared) -> F64:
        return np.asarray(self._distance(model, prepared).max(axis=(1, 2), initial=0.0))

    def _nodes(self, model: Season, prepared: Prepared) -> F64:
        return bus_maximum(prepared.case, prepared.plan, self._distance(model, prepared).max(axis=1, initial=0.0))

    def _distance(self, model: Season, prepared: Prepared) -> F64:
        at: I64 = day_bins(prepared, HOURS)
        return np.nan_to_num(np.abs(fresh_readings(prepared) - model.mean[at]) / model.spread[at])


def _held(known: Usual, prepared: Prepared) -> F64:
    """[B, T, M] readings of a scan or the last one before it."""
    return known.filled(prepared.z_BTM)
