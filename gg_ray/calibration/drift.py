"""Has the world left the days that a model was calibrated on? Named findings, each with a value and its limit.

Flow:    benign calibration days -> limits -> [drift] <- scores, readings and status of today
Source:  population stability index (Siddiqi 2006); two-sample Kolmogorov-Smirnov (scipy); Page 1954, Hinkley 1971;
         verifier.md, section 8
Shapes:  D days, K scores, M meters, E branches

Limits come from the calibration days themselves where there are days to take them from: scores of one day are alike,
so the textbook limits of PSI and KS, which count every score as new evidence, alarm on every Monday.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from gg_ray.calibration.conformal import CalibrationError
from gg_ray.records import F64, I64, U8, Bool

PSI_LEAST = 0.1
"""A smaller index is no drift, whatever the calibration days show (the usual reading: .1 slight, .25 clear)."""
_BINS = 10
_EMPTY = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that left its limit."""

    name: str
    value: float
    limit: float
    detail: str


# Distribution of the scores of a day ----------------------------------------------------------------------------------


def psi(reference_K: ArrayLike, sample_K: ArrayLike) -> float:
    """Population stability index over deciles of the reference: sum of (a - b) ln(a / b); 0 for the same shares."""
    reference, sample = np.asarray(reference_K, dtype=np.float64), np.asarray(sample_K, dtype=np.float64)
    inner = np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1])
    shares = [
        np.maximum(np.bincount(np.searchsorted(inner, values), minlength=_BINS) / values.size, _EMPTY)
        for values in (reference, sample)
    ]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def ks(reference_K: ArrayLike, sample_K: ArrayLike) -> float:
    """Largest distance between the two distribution functions, 0 to 1."""
    return float(stats.ks_2samp(reference_K, sample_K, method="asymp").statistic)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDrift:
    """Scores of one class on the calibration days, and how far one of those days lies from the others at most."""

    reference_K: F64
    psi_limit: float
    ks_limit: float

    @classmethod
    def of(cls, days: Sequence[ArrayLike]) -> ScoreDrift:
        """Limits by leaving one day out: a day like those exceeds one of them with chance 1 / (D + 1).

        Raises: CalibrationError with fewer than three days.
        """
        if len(days) < 3:
            raise CalibrationError(f"score drift: {len(days)} calibration days; at least 3 say how days differ")
        parts = [np.asarray(day, dtype=np.float64) for day in days]
        rest = [np.concatenate(parts[:i] + parts[i + 1 :]) for i in range(len(parts))]
        return cls(
            reference_K=np.concatenate(parts),
            psi_limit=max(PSI_LEAST, *(psi(others, own) for others, own in zip(rest, parts, strict=True))),
            ks_limit=max(ks(others, own) for others, own in zip(rest, parts, strict=True)),
        )

    def check(self, day_K: ArrayLike, name: str) -> list[Finding]:
        """Findings of one day of the class called name."""
        out = []
        for kind, value, limit in (
            ("psi", psi(self.reference_K, day_K), self.psi_limit), ("ks", ks(self.reference_K, day_K), self.ks_limit),
        ):  # fmt: skip
            if value > limit:
                detail = f"scores of {name} lie further from the calibration days than any of those from the others"
                out.append(Finding(name=f"score-{kind}", value=value, limit=limit, detail=detail))
        return out


# A creeping change ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PageHinkley:
    """Page-Hinkley test for a rising mean, one value a day or an hour (a benign quantile of the score); plain state.

    sum rises by value - mean - slack; drift when it stands more than `limit` above its lowest point.
    """

    slack: float
    """Rise per value that is tolerated."""
    limit: float
    least: int = 10
    """Values before the first finding: the mean must have settled."""
    count: int = 0
    mean: float = 0.0
    total: float = 0.0
    lowest: float = 0.0

    def after(self, value: float) -> PageHinkley:
        """State with one more value.  Raises: CalibrationError for one that is not finite."""
        if not math.isfinite(value):
            raise CalibrationError(f"Page-Hinkley: value {value}; leave out hours without scores")
        count = self.count + 1
        mean = self.mean + (value - self.mean) / count
        total = self.total + value - mean - self.slack
        moved = {"count": count, "mean": mean, "total": total, "lowest": min(self.lowest, total)}
        return PageHinkley(**{**asdict(self), **moved})

    @property
    def finding(self) -> Finding | None:
        """What it found; start a new one after the calibration has been refreshed."""
        risen = self.total - self.lowest
        if self.count < self.least or risen <= self.limit:
            return None
        return Finding(
            name="page-hinkley", value=risen, limit=self.limit, detail=f"benign scores have risen; mean {self.mean:.4g}"
        )


# Telemetry and topology -----------------------------------------------------------------------------------------------


class StaleMonitor:
    """Meters that repeat their value for longer than they usually do.

    A meter that reports every fifth scan repeats four times on any day, so what is usual is taken from each meter
    alone: the longest run of equal values of its calibration days, but at least `least`. Readings that did not arrive
    neither lengthen nor end a run.
    """

    def __init__(self, usual_M: I64, names: Sequence[str], least: int = 3) -> None:
        self.limit_M = np.maximum(usual_M, least)
        self.names = tuple(names)
        self.run_M = np.zeros(self.limit_M.shape, dtype=np.int64)
        self._last_M = np.full(self.limit_M.shape, np.nan)

    @staticmethod
    def usual(z_TM: F64) -> I64:
        """[M] longest run of repeats of each meter in a benign record, NaN where nothing arrived."""
        monitor = StaleMonitor(np.zeros(z_TM.shape[1], dtype=np.int64), ())
        longest = np.zeros(z_TM.shape[1], dtype=np.int64)
        for z_M in z_TM:
            monitor._count(z_M)
            np.maximum(longest, monitor.run_M, out=longest)
        return longest

    def update(self, z_M: F64) -> list[Finding]:
        """Take in one scan; one finding per meter whose run passes its limit in this scan."""
        before = self.run_M.copy()
        self._count(z_M)
        crossed = np.flatnonzero((self.run_M > self.limit_M) & (before <= self.limit_M))
        return [
            Finding(
                name="stale-meter", value=float(self.run_M[m]), limit=float(self.limit_M[m]),
                detail=f"{self.names[m]} repeats {self._last_M[m]:.6g}",
            )
            for m in crossed
        ]  # fmt: skip

    @property
    def stale_M(self) -> Bool:
        """[M] meters beyond their limit now."""
        return self.run_M > self.limit_M

    def _count(self, z_M: F64) -> None:
        arrived, same = np.isfinite(z_M), z_M == self._last_M
        self.run_M = np.where(arrived, np.where(same, self.run_M + 1, 0), self.run_M)
        self._last_M = np.where(arrived, z_M, self._last_M)


class TopologyMonitor:
    """Declared branch status against the states that occurred on the calibration days.

    A new combination is a trigger to look at the calibration, not an alarm: outages are ordinary, but p-values were not
    made on this one.
    """

    def __init__(self, known_SE: U8, branches: Sequence[str]) -> None:
        """Args: known_SE  status of the scans of the calibration days, 1 in service;  branches  [E] names."""
        self._known = {row.tobytes() for row in np.unique(np.asarray(known_SE, dtype=np.uint8), axis=0)}
        self._usual_E = np.median(known_SE, axis=0) > 0
        self.branches = tuple(branches)

    def update(self, status_E: U8) -> Finding | None:
        """A finding the first time that a combination appears, with the branches that differ from the usual state."""
        key = np.asarray(status_E, dtype=np.uint8).tobytes()
        if key in self._known:
            return None
        self._known.add(key)
        changed = np.flatnonzero((np.asarray(status_E) > 0) != self._usual_E)
        named = ", ".join(self.branches[e] for e in changed) or "none against the usual state"
        return Finding(
            name="topology", value=float(changed.size), limit=0.0, detail=f"combination not calibrated on: {named}"
        )


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Plain values of findings."""
    return [asdict(finding) for finding in findings]
