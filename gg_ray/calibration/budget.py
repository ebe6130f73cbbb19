"""A budget in incidents a day to a threshold, searched on incidents after grouping and not on scans.

Flow:    scores of whole benign days -> [budget] -> threshold -> incidents, score
Source:  runs declustering and the extremal index (Leadbetter 1983; Coles 2001, ch. 5); generalised-Pareto tail of
         cluster levels as SPOT (Siffer et al. 2017) has it for single values; at_most: conformal risk control with
         days as the exchangeable unit (Angelopoulos et al., ICLR 2024)
Shapes:  D days of S scans and N buses (N = 1: one score per scan), L levels
Rules:   a scan is flagged when score > threshold; flags at most `gap` scans apart, at the same bus or across a branch,
         are one incident

`threshold_for` aims at the budget: its expected error is the Poisson error of the incidents seen on the calibration
days, about 1 / sqrt(budget * D), and it holds for days like those. `at_most` keeps below the budget on average,
exactly, for exchangeable days, and pays for it with a higher threshold and a least number of days.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse, stats

from gg_ray.calibration.conformal import LEAST_EXCESSES, CalibrationError, fit_excesses
from gg_ray.records import F64, I64

FLAG_SHARE = 0.1
"""Largest share of scans (or of scan-bus pairs) that may be flagged while levels are searched: an alarm that is always
on would be a single incident."""
TAIL_FACTOR = 3.0
"""Levels that a tail is fitted to, in multiples of the incidents allowed."""
CAP_FACTOR = 10.0
"""`at_most` counts at most this many budgets of incidents of one day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What benign days say about thresholds: the k-th level is the highest at which a day first has k incidents.

    Counts of incidents do not fall steadily with the threshold (neighbouring alarms merge), so each day counts the most
    it ever had from the top down.
    """

    by_day: tuple[F64, ...]
    """Levels of each day, descending."""
    days: float
    """Length of the record in days, parts included."""

    scans_per_day: float

    @property
    def all(self) -> F64:
        """Levels of all days, descending."""
        return np.sort(np.concatenate(self.by_day))[::-1]

    def as_json(self) -> dict[str, Any]:
        """Plain values; from_json reads them back."""
        by_day = [[round(float(level), 6) for level in day] for day in self.by_day]
        return {"by_day": by_day, "days": self.days, "scans_per_day": self.scans_per_day}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Levels:
        """What as_json wrote.  Raises: CalibrationError naming a field that is missing or unusable."""
        try:
            return cls(
                by_day=tuple(np.array(day, dtype=np.float64) for day in stored["by_day"]),
                days=float(stored["days"]), scans_per_day=float(stored["scans_per_day"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"stored levels: {type(error).__name__} {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A threshold and what it stands on."""

    value: float
    source: str
    """tail (fitted), rank (levels seen) or top (no level may be exceeded: the budget is below one in the record)."""
    expected: float
    """Incidents a day on days like those of the calibration."""
    relative_error: float
    """One standard deviation of realised over budgeted that the length of the record leaves, Poisson."""


def dedup_scans(scans_per_day: float, minutes: float = 15.0) -> int:
    """Largest distance, in scans, of two flags of one incident; at least 1: neighbouring scans always merge."""
    return max(1, math.floor(minutes * scans_per_day / 1440.0 + 1e-9))


def incident_levels(days: Sequence[ArrayLike], gap: int, scans_per_day: float, edges: I64 | None = None) -> Levels:
    """Levels of benign days.

    Args:   days  scores of each day, [S] or [S, N], higher is less believable;  gap  scans (dedup_scans)
            edges  [2, E] branches between buses, where there is one score per bus
    Raises: CalibrationError without days, for scores that are not finite.
    """
    scores = [np.asarray(day, dtype=np.float64) for day in days]
    if not scores or not all(day.size and np.isfinite(day).all() for day in scores):
        raise CalibrationError(f"{len(scores)} benign days: give at least one, every score finite")
    scores = [day.reshape(day.shape[0], -1) for day in scores]
    buses = scores[0].shape[1]
    start, neighbour = _neighbours(buses, edges)
    found = []
    for day in scores:
        allowed = max(1, int(FLAG_SHARE * day.size))
        order = np.argsort(-day, axis=None, kind="stable")[:allowed]
        scan, bus = np.divmod(order, buses)
        found.append(_merge(day.ravel()[order], scan, bus, day.shape[0], gap, start, neighbour)[0])
    length = sum(day.shape[0] for day in scores) / scans_per_day
    return Levels(by_day=tuple(found), days=length, scans_per_day=scans_per_day)


def incidents_at(day: ArrayLike, threshold: float, gap: int, edges: I64 | None = None) -> int:
    """Incidents of one day of scores, [S] or [S, N], at a threshold; gap and edges as for incident_levels."""
    scores = np.asarray(day, dtype=np.float64)
    scores = scores.reshape(scores.shape[0], -1)
    scan, bus = np.nonzero(scores > threshold)
    start, neighbour = _neighbours(scores.shape[1], edges)
    return int(_merge(scores[scan, bus], scan, bus, scores.shape[0], gap, start, neighbour)[1])


def threshold_for(levels: Levels, incidents_per_day: float) -> Threshold:
    """Threshold at which days like those of the calibration have that many incidents on average.

    Raises: CalibrationError for a budget that is not above 0, or above what the days can reach.
    """
    if not incidents_per_day > 0:
        raise CalibrationError(f"budget {incidents_per_day} incidents a day: give a number above 0")
    level, allowed = levels.all, incidents_per_day * levels.days
    if level.size < allowed + 1:
        raise CalibrationError(
            f"budget {incidents_per_day:g} a day: these days tell at most {level.size / levels.days:.3g} a day apart; "
            "give a smaller one"
        )
    error = 1.0 / math.sqrt(max(allowed, 1.0))
    beyond = min(level.size - 1, math.ceil(max(TAIL_FACTOR * allowed, LEAST_EXCESSES)))
    start = float(level[beyond])
    fitted = fit_excesses(level[:beyond] - start) if beyond > allowed else None
    if fitted is not None:
        shape, scale = fitted
        value = start + float(stats.genpareto.isf(allowed / beyond, shape, scale=scale))
        return Threshold(value=value, source="tail", expected=incidents_per_day, relative_error=error)
    # as many days more are expected to exceed the k-th level k times, though these days exceed it k - 1 times
    whole = int(allowed)
    if whole == 0:
        return Threshold(value=float(level[0]), source="top", expected=1.0 / (levels.days + 1.0), relative_error=error)
    value = float(np.interp(allowed, [whole, whole + 1], [level[whole - 1], level[whole]]))
    return Threshold(value=value, source="rank", expected=incidents_per_day, relative_error=error)


def at_most(levels: Levels, incidents_per_day: float) -> float:
    """Lowest threshold with E[min(incidents of a new day, cap)] <= budget, if days are exchangeable.

    The cap is CAP_FACTOR budgets: a day with more counts as the cap, without which no finite record could promise
    anything.
    Raises: CalibrationError if there are too few days for any finite threshold.
    """
    days, cap = len(levels.by_day), CAP_FACTOR * incidents_per_day
    allowed = incidents_per_day * (days + 1) - cap
    if not incidents_per_day > 0 or allowed < -1e-9:
        raise CalibrationError(
            f"{days} days cannot guarantee {incidents_per_day:g} incidents a day; give {int(CAP_FACTOR) - 1} days or"
            " more and a budget above 0"
        )
    level = levels.all
    # cost of lowering the threshold below each level: one incident, or what is left to that day's cap
    cost = [np.clip(cap - np.arange(day.size), 0.0, 1.0) for day in levels.by_day]
    order = np.argsort(-np.concatenate(levels.by_day), kind="stable")
    total = np.cumsum(np.concatenate(cost)[order])
    first = int(np.searchsorted(total, allowed + 1e-9, side="right"))
    return float(level[min(first, level.size - 1)])


def _neighbours(buses: int, edges: I64 | None) -> tuple[I64, I64]:
    """Rows of the adjacency with every bus its own neighbour, as (start [N + 1], neighbour)."""
    pairs = np.zeros((2, 0), dtype=np.int64) if edges is None else np.asarray(edges, dtype=np.int64)
    ones = np.ones(pairs.shape[1])
    near = sparse.csr_array((ones, (pairs[0], pairs[1])), shape=(buses, buses)) + sparse.eye_array(buses, format="csr")
    near = sparse.csr_array(near + near.T)
    return near.indptr.astype(np.int64), near.indices.astype(np.int64)


@numba.njit(cache=True)
def _merge(  # type: ignore[no-untyped-def]
    score, scan, bus, scans, gap, start, neighbour
):  # pragma: no cover - compiled
    """Flags are set from the highest score down; each joins what is near, and new maxima of the count are levels."""
    at = np.full((scans, start.size - 1), -1, dtype=np.int64)
    parent = np.arange(score.size)
    out = np.empty(score.size)
    count = most = 0
    for k in range(score.size):
        count += 1
        at[scan[k], bus[k]] = k
        for j in range(start[bus[k]], start[bus[k] + 1]):
            for t in range(max(0, scan[k] - gap), min(scans, scan[k] + gap + 1)):
                other = at[t, neighbour[j]]
                if other < 0:
                    continue
                a, b = k, other
                while parent[a] != a:
                    parent[a] = parent[parent[a]]
                    a = parent[a]
                while parent[b] != b:
                    parent[b] = parent[parent[b]]
                    b = parent[b]
                if a != b:
                    parent[a] = b
                    count -= 1
        last_of_ties = k + 1 == score.size or score[k + 1] < score[k]
        while last_of_ties and most < count:
            out[most] = score[k]
            most += 1
    return out[:most].copy(), count
