"""The three-way verdict: thresholds from benign validation windows, and how often it is right.

Flow:    scores on validation months -> [calibrate -> Calibration] -> registry -> gg_ray.score
         scores on test months -> [confusion] -> results.json, report.md
Source:  selfplay.md, section 6 (rule, 3x3 matrix, natural events called implausible); verifier.md, section 7 (p-value)
Shapes:  B windows; V benign validation windows, of which O show no disturbance
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gg_ray.evaluate import metrics
from gg_ray.records import F64, I64, VERDICTS, Bool

FPR = 0.01
"""Share of benign validation windows that each threshold lets through."""
NORMAL, DISTURBANCE, IMPLAUSIBLE = range(3)
"""Positions in records.VERDICTS."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Benign validation scores (logits, ascending) and thresholds of a model: what a verdict needs beside it."""

    scores: F64
    implausible: float
    disturbance: float

    def p_value(self, score: float) -> float:
        """Conformal: (1 + number of benign scores at least as large) / (n + 1); never 0, never extrapolated."""
        above = self.scores.size - int(np.searchsorted(self.scores, score, side="left"))
        return (1 + above) / (self.scores.size + 1)

    def verdicts(self, implausible_B: F64, disturbance_B: F64) -> I64:
        """Positions in VERDICTS; implausible comes first, and a score on a threshold does not exceed it."""
        disturbed = np.where(disturbance_B > self.disturbance, DISTURBANCE, NORMAL)
        return np.where(implausible_B > self.implausible, IMPLAUSIBLE, disturbed)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as a registered model carries them."""
        return {
            "scores": [round(float(s), 5) for s in self.scores], "implausible": self.implausible,
            "disturbance": self.disturbance, "fpr": FPR,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Confusion:
    """Windows of one grid by truth and verdict (rows and columns in the order of VERDICTS)."""

    case: str
    counts: tuple[tuple[int, ...], ...]

    @property
    def natural_called_implausible(self) -> float | None:
        """Share of real disturbances that are called implausible; None without any."""
        row = self.counts[DISTURBANCE]
        return row[IMPLAUSIBLE] / sum(row) if sum(row) else None

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "confusion": {
                truth: dict(zip(VERDICTS, row, strict=True)) for truth, row in zip(VERDICTS, self.counts, strict=True)
            },
            "natural_events": sum(self.counts[DISTURBANCE]),
            "natural_called_implausible": self.natural_called_implausible,
        }


def calibrate(implausible_V: F64, disturbance_O: F64) -> Calibration:
    """Thresholds that FPR of these windows exceed; with fewer than 1 / FPR of them, their largest score.

    Args:    implausible_V  logits of benign windows, disturbed ones among them;  disturbance_O  of ordinary ones alone
    Raises:  MetricError without windows of either kind.
    """
    return Calibration(
        np.sort(implausible_V), metrics.threshold_for_fpr(implausible_V, FPR),
        metrics.threshold_for_fpr(disturbance_O, FPR),
    )  # fmt: skip


def truths(implausible_B: Bool, disturbance_B: Bool) -> I64:
    """Positions in VERDICTS; a masked fault is both and counts as implausible."""
    return np.where(implausible_B, IMPLAUSIBLE, np.where(disturbance_B, DISTURBANCE, NORMAL))


def confusion(case: str, truth_B: I64, verdict_B: I64) -> Confusion:
    """Counts of truth against verdict."""
    counts = np.bincount(3 * truth_B + verdict_B, minlength=9).reshape(3, 3)
    return Confusion(case, tuple(tuple(int(n) for n in row) for row in counts))
