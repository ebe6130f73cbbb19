"""The three-way verdict: thresholds from benign validation windows, and how often it is right.

Flow:    scores on validation months -> [calibrate -> Calibration] -> registry -> gg_ray.score
         scores on test months -> [confusion] -> results.json, report.md
Source:  selfplay.md, section 6 (rule, 3x3 matrix, natural events called implausible); verifier.md, section 7 (p-value)
Shapes:  B windows; V benign validation windows, of which O show no disturbance
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gg_ray.calibration import conformal
from gg_ray.calibration.budget import Levels
from gg_ray.calibration.classes import hour_bin, metering_classes, voltage_levels
from gg_ray.calibration.conformal import Conformal
from gg_ray.evaluate import metrics
from gg_ray.grid.cases import GridCase, load_case
from gg_ray.grid.meters import MeterPlan
from gg_ray.records import F64, I64, VERDICTS, Bool, end_ns
from gg_ray.verifier.features import Prepared

FPR = 0.01
"""Share of benign validation windows that each threshold lets through."""
_DAY_NS = 86_400 * 10**9
NORMAL, DISTURBANCE, IMPLAUSIBLE = range(3)
"""Positions in records.VERDICTS."""


@dataclass(frozen=True, slots=True)
class Benign:
    """What a model says of benign validation windows of one grid and metering plan."""

    case: str
    end_ns_B: I64
    """Time of the newest scan."""
    score_B: F64
    node_BN: F64 | None
    level_N: NDArray[np.str_]
    metering_N: NDArray[np.str_]
    """Classes of the buses (calibration.classes)."""

    @classmethod
    def of(cls, prepared: Prepared, score_B: F64, node_BN: F64 | None) -> Benign:
        """Scores with the classes of the windows that they are of."""
        case, plan = prepared.case, prepared.plan
        ends = np.array([end_ns(window) for window in prepared.windows], dtype=np.int64)
        return cls(case.name, ends, score_B, node_BN, voltage_levels(case), metering_classes(plan, case))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Benign validation scores (logits, ascending) and thresholds of a model: what a verdict needs beside it."""

    scores: F64
    implausible: float
    disturbance: float
    windows: Conformal | None = None
    """p-values of a window by grid and hours of the week; None for a version registered before they were kept."""
    nodes: Conformal | None = None
    """p-values of a bus by voltage level, metering and hours of the week."""
    topology: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of each grid that the scores are of."""
    levels: Mapping[str, Levels] = field(default_factory=dict)
    """Levels of the benign validation days of each grid: what a budget of incidents a day is turned into."""

    def p_value(self, score: float, case: str = "", time_ns: int = 0) -> float:
        """(1 + number of benign scores at least as large) / (n + 1), among the class of grid and hour if any.

        Never 0. A class with enough scores goes on with a fitted tail; without classes nothing is extrapolated.
        """
        if self.windows is None:
            above = self.scores.size - int(np.searchsorted(self.scores, score, side="left"))
            return (1 + above) / (self.scores.size + 1)
        return float(self.windows.p([score], [[case], [hour_bin(time_ns)]])[0])

    def p_class(self, case: str, time_ns: int) -> str:
        """The benign windows among which p_value ranks: a grid and its hours, a grid, or all grids."""
        key = () if self.windows is None else self.windows.key_of((case, hour_bin(time_ns)))
        return ", ".join(key) or "all grids"

    def bus_p_values(
        self, case: GridCase, plan: MeterPlan, node_N: F64, buses: Sequence[int], time_ns: int
    ) -> tuple[float, ...]:
        """p-values of some buses among benign ones of their class; empty where the version has no node classes."""
        if self.nodes is None or not buses:
            return ()
        at = np.array(buses)
        columns = (voltage_levels(case)[at], metering_classes(plan, case)[at], hour_bin(time_ns))
        return tuple(self.nodes.p(node_N[at], columns).tolist())

    def verdicts(self, implausible_B: F64, disturbance_B: F64) -> I64:
        """Positions in VERDICTS; implausible comes first, and a score on a threshold does not exceed it."""
        disturbed = np.where(disturbance_B > self.disturbance, DISTURBANCE, NORMAL)
        return np.where(implausible_B > self.implausible, IMPLAUSIBLE, disturbed)

    def as_json(self) -> dict[str, Any]:
        """Plain values, as a registered model carries them."""
        plain: dict[str, Any] = {
            "scores": [round(float(s), 5) for s in self.scores], "implausible": self.implausible,
            "disturbance": self.disturbance, "fpr": FPR, "topology": dict(self.topology),
            "levels": {case: levels.as_json() for case, levels in self.levels.items()},
        }  # fmt: skip
        if self.windows is not None:
            plain["windows"] = self.windows.as_json()
        if self.nodes is not None:
            plain["nodes"] = self.nodes.as_json()
        return plain

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Calibration:
        """What as_json wrote, or an earlier version of it without classes, topology and levels.

        Raises: KeyError for scores or a threshold that is missing, CalibrationError for an unusable part.
        """
        classes = {name: Conformal.from_json(stored[name]) if name in stored else None for name in ("windows", "nodes")}
        return cls(
            np.array(stored["scores"]), float(stored["implausible"]), float(stored["disturbance"]),
            classes["windows"], classes["nodes"], dict(stored.get("topology", {})),
            {case: Levels.from_json(levels) for case, levels in stored.get("levels", {}).items()},
        )  # fmt: skip


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


def calibrate(
    implausible_V: F64, disturbance_O: F64, benign: Sequence[Benign] = (), levels: Mapping[str, Levels] | None = None
) -> Calibration:
    """Thresholds that FPR of these windows exceed; with fewer than 1 / FPR of them, their largest score.

    Args:    implausible_V  logits of benign windows, disturbed ones among them;  disturbance_O  of ordinary ones alone
             benign  the first again, with what their classes are made of;  levels  of benign days, by grid
    Raises:  MetricError without windows of either kind.
    """
    return Calibration(
        np.sort(implausible_V), metrics.threshold_for_fpr(implausible_V, FPR),
        metrics.threshold_for_fpr(disturbance_O, FPR), _window_classes(benign), _node_classes(benign),
        {case: load_case(case).topology() for case in sorted({part.case for part in benign})}, dict(levels or {}),
    )  # fmt: skip


def _window_classes(benign: Sequence[Benign]) -> Conformal | None:
    if not benign:
        return None
    case = np.concatenate([np.full(part.score_B.size, part.case) for part in benign])
    end = np.concatenate([part.end_ns_B for part in benign])
    hours = [hour_bin(int(time_ns)) for time_ns in end]
    return conformal.calibrate(np.concatenate([part.score_B for part in benign]), [case, hours], _days(case, end))


def _node_classes(benign: Sequence[Benign]) -> Conformal | None:
    scores: list[F64] = []
    columns: tuple[list[NDArray[np.str_]], ...] = ([], [], [], [])
    for part in benign:
        if part.node_BN is None:
            continue
        windows, buses = part.node_BN.shape
        scores.append(part.node_BN.ravel())
        hours = np.array([hour_bin(int(time_ns)) for time_ns in part.end_ns_B])
        columns[0].append(np.tile(part.level_N, windows))
        columns[1].append(np.tile(part.metering_N, windows))
        columns[2].append(np.repeat(hours, buses))
        columns[3].append(np.repeat(_days(np.full(windows, part.case), part.end_ns_B), buses))
    if not scores:
        return None
    level, metering, hour, day = (np.concatenate(column) for column in columns)
    return conformal.calibrate(np.concatenate(scores), [level, metering, hour], day)


def _days(case_B: NDArray[np.str_], end_ns_B: I64) -> NDArray[np.str_]:
    """[B] the day of each window, of each grid apart: what is exchanged as a whole."""
    return np.char.add(np.char.add(case_B, " "), (end_ns_B // _DAY_NS).astype(str))


def truths(implausible_B: Bool, disturbance_B: Bool) -> I64:
    """Positions in VERDICTS; a masked fault is both and counts as implausible."""
    return np.where(implausible_B, IMPLAUSIBLE, np.where(disturbance_B, DISTURBANCE, NORMAL))


def confusion(case: str, truth_B: I64, verdict_B: I64) -> Confusion:
    """Counts of truth against verdict."""
    counts = np.bincount(3 * truth_B + verdict_B, minlength=9).reshape(3, 3)
    return Confusion(case, tuple(tuple(int(n) for n in row) for row in counts))
